"""Angular distances of blocks against arccos by hand in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.errors import RequestError, RunError
from secateur.methods import angular as angular_module
from secateur.methods.angular import Angular


def streams(decoder: Decoder, windows: TokenBatches) -> list[Tensor]:
    """The stream at each of the seven depths, (windows, tokens, hidden) in float64, with hooks of our own."""
    model = decoder.model.double()
    seen: dict[int, Tensor] = {}

    def look(_: Any, args: Any, out: Tensor, layer: int) -> None:
        seen[layer], seen[layer + 1] = args[0], out

    for layer, module in enumerate(decoder.layers):
        module.register_forward_hook(lambda *seen_of, layer=layer: look(*seen_of, layer))
    with torch.no_grad():
        model(input_ids=windows.input_ids, use_cache=False)
    return [seen[depth] for depth in range(7)]


def distance(one: Tensor, other: Tensor) -> float:
    """`arccos(x·y / |x||y|) / π`, mean over the rows."""
    angles = [
        math.acos(max(-1.0, min(1.0, float(x @ y / (x.square().sum() * y.square().sum()).sqrt())))) / math.pi
        for x, y in zip(one, other, strict=True)
    ]
    return sum(angles) / len(angles)


def by_hand(decoder: Decoder, windows: TokenBatches, tokens: str) -> dict[tuple[int, int], float]:
    """The distance of each block, by start and length."""
    depths = [stream[:, -1] if tokens == "last" else stream.flatten(0, 1) for stream in streams(decoder, windows)]
    return {
        (start, length): distance(depths[start], depths[start + length])
        for start in range(6)
        for length in range(1, min(5, 6 - start) + 1)
    }


@pytest.mark.parametrize("tokens", ["last", "all"])
@pytest.mark.parametrize("drop", [1, 3, 5])
def test_block_scores_and_heat_map_equal_arccos_in_float64(
    decoder: Decoder, windows: TokenBatches, tokens: Any, drop: int
) -> None:
    plan = Angular(tokens=tokens).plan(decoder, windows, drop=drop)
    expected = by_hand(decoder, windows, tokens)
    heat_map = plan.provenance["distances"]
    assert [len(row) for row in heat_map] == [5] * 6
    for start, row in enumerate(heat_map):
        for length, found in enumerate(row, start=1):
            assert (found is None) == ((start, length) not in expected)
            if found is not None:
                assert found == pytest.approx(expected[start, length], abs=1e-6)
    best = min(range(7 - drop), key=lambda start: expected[start, drop])
    assert plan.dropped == tuple(range(best, best + drop))
    assert plan.scores is not None
    for layer, score in enumerate(plan.scores):
        containing = [start for start in range(7 - drop) if start <= layer < start + drop]
        assert score == pytest.approx(min(expected[start, drop] for start in containing), abs=1e-6)


@pytest.mark.parametrize("drop", [1, 2, 3, 4, 5])
def test_layers_that_go_are_those_with_the_lowest_scores(decoder: Decoder, windows: TokenBatches, drop: int) -> None:
    plan = Angular().plan(decoder, windows, drop=drop)
    assert plan.scores is not None
    assert max(plan.scores[layer] for layer in plan.dropped) < min(plan.scores[layer] for layer in plan.kept)


def test_every_prefix_of_the_order_is_the_nearer_of_the_blocks_within_the_next(
    decoder: Decoder, windows: TokenBatches
) -> None:
    plan = Angular().plan(decoder, windows, drop=5)
    heat_map = plan.provenance["distances"]
    for length in range(1, 5):
        block, around = sorted(plan.order[:length]), sorted(plan.order[: length + 1])
        assert block == list(range(block[0], block[0] + length))
        assert heat_map[block[0]][length - 1] == min(heat_map[start][length - 1] for start in around[:2])


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_distances_do_not_depend_on_the_batches(
    decoder: Decoder, windows: TokenBatches, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(angular_module, "_TOKENS_AT_ONCE", 7)
    one, five = (Angular(tokens=tokens).plan(decoder, windows.rebatch(size), drop=2) for size in (1, 5))
    assert list(one.scores or ()) == pytest.approx(list(five.scores or ()), rel=1e-6)


def test_run_of_layers_that_are_the_identity_goes(decoder: Decoder, windows: TokenBatches) -> None:
    with torch.no_grad():
        for layer in (2, 3):
            decoder.layers[layer].mlp.down_proj.weight.zero_()
            decoder.layers[layer].self_attn.o_proj.weight.zero_()
    plan = Angular().plan(decoder, windows, drop=2)
    assert plan.dropped == (2, 3)
    assert plan.provenance["distances"][2][1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("keep_first", "drop", "first"), [(2, 3, 2), (6, 2, 4), (3, 5, 1)])
def test_kept_layers_at_the_front_are_in_no_block_while_there_is_another(
    decoder: Decoder, windows: TokenBatches, keep_first: int, drop: int, first: int
) -> None:
    plan = Angular(keep_first=keep_first).plan(decoder, windows, drop=drop)
    assert min(plan.dropped) >= first
    assert plan.scores is not None
    assert [math.isnan(score) for score in plan.scores] == [layer < first for layer in range(6)]


def test_activations_that_are_not_finite_are_an_error(decoder: Decoder, windows: TokenBatches) -> None:
    with torch.no_grad():
        decoder.layers[2].mlp.down_proj.weight[0, 0] = math.inf
    with pytest.raises(RunError, match="not finite"):
        Angular().plan(decoder, windows, drop=2)


def test_negative_keep_first_is_refused() -> None:
    with pytest.raises(RequestError, match="keep_first must be 0 or more, not -1"):
        Angular(keep_first=-1)
