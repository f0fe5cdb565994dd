"""ReplaceMe: the block of `angular`, and the map of `absorb_`, which has oracles of its own."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.errors import RequestError, UnsupportedModelError
from secateur.methods import METHODS
from secateur.methods.angular import Angular
from secateur.methods.replaceme import ReplaceMe
from secateur.plan import PruningPlan
from secateur.surgery.absorb import absorb_
from tiny_families import build


@pytest.mark.parametrize("drop", [1, 3, 5])
def test_layers_are_the_nearest_block_that_has_a_layer_before_it(
    decoder: Decoder, windows: TokenBatches, drop: int
) -> None:
    plan = ReplaceMe().plan(decoder, windows, drop=drop)
    heat_map = plan.provenance["distances"]
    start = min(range(1, 7 - drop), key=lambda layer: heat_map[layer][drop - 1])
    assert plan.dropped == tuple(range(start, start + drop))
    assert plan.order == Angular(keep_first=1).plan(decoder, windows, drop=drop).order


def test_very_first_layer_is_never_replaced(decoder: Decoder, windows: TokenBatches) -> None:
    with torch.no_grad():
        decoder.layers[0].mlp.down_proj.weight.zero_()
        decoder.layers[0].self_attn.o_proj.weight.zero_()
    assert Angular().plan(decoder, windows, drop=1).dropped == (0,)
    assert ReplaceMe().plan(decoder, windows, drop=1).dropped != (0,)


@pytest.mark.parametrize("by", ["shortgpt", "sleb"])
def test_layers_can_be_those_of_another_method(decoder: Decoder, windows: TokenBatches, by: Any) -> None:
    plan = ReplaceMe(layers_by=by).plan(decoder, windows, drop=3)
    other = METHODS[by]().plan(decoder, windows, drop=3)
    assert plan.order == other.order
    assert list(plan.scores or ()) == list(other.scores or ())
    assert plan.method == "replaceme"
    assert plan.options == {"layers_by": by, "alpha": 0.0}


def test_map_of_one_block_equals_numpy_least_squares_in_float64(decoder: Decoder, windows: TokenBatches) -> None:
    """`min_T |M·T + Y − X|²`, tokens weighted by 1 / mean(X²), then `W ← Tᵀ·W`; nothing pulls by default."""
    seen: dict[str, torch.Tensor] = {}
    down = decoder.layers[1].mlp.down_proj
    handles = [
        down.register_forward_hook(lambda _m, _a, out: seen.update(M=out)),
        decoder.layers[1].register_forward_hook(lambda _m, _a, out: seen.update(H=out)),
        decoder.layers[3].register_forward_hook(lambda _m, _a, out: seen.update(X=out)),
    ]
    with torch.no_grad():
        decoder.model(input_ids=windows.input_ids, use_cache=False)
    for handle in handles:
        handle.remove()
    M, H, X = (seen[name].flatten(0, 1).double().numpy() for name in "MHX")
    root = 1 / np.sqrt(np.square(X).mean(1, keepdims=True))
    T = np.linalg.lstsq(root * M, root * (X - (H - M)), rcond=None)[0]
    expected = T.T @ down.weight.detach().double().numpy()
    report = ReplaceMe().prepare_(decoder, windows, PruningPlan(num_layers=6, order=(3, 2)))
    np.testing.assert_allclose(down.weight.detach().numpy(), expected, rtol=1e-3, atol=1e-4)
    (fitted,) = report["maps"]
    assert (fitted["layers"], fitted["into"], fitted["alpha"]) == ([2, 3], 1, 0.0)
    assert fitted["error_after"] < fitted["error_before"]


@pytest.mark.parametrize("alpha", [None, 0.0, 0.3])
def test_every_run_is_replaced_as_absorb_does(decoder: Decoder, windows: TokenBatches, alpha: float | None) -> None:
    twin = Decoder(copy.deepcopy(decoder.model))
    report = ReplaceMe(alpha=alpha).prepare_(decoder, windows, PruningPlan(num_layers=6, order=(4, 0, 2)))
    assert report["maps"] == absorb_(twin, [0, 2, 4], windows, form="map", alpha=alpha)
    assert [fitted["into"] for fitted in report["maps"]] == [None, 1, 3]
    for one, other in zip(decoder.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_model_without_a_plain_projection_is_refused_and_unchanged(windows: TokenBatches) -> None:
    model = build("gemma2")
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with pytest.raises(UnsupportedModelError, match="cannot absorb into layer 1"):
        ReplaceMe().prepare_(Decoder(model), windows, PruningPlan(num_layers=6, order=(2, 3)))
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize("alpha", [-0.1, float("nan")])
def test_pull_below_zero_is_refused(alpha: float) -> None:
    with pytest.raises(RequestError, match=f"alpha must be 0 or more, not {alpha:g}"):
        ReplaceMe(alpha=alpha)
