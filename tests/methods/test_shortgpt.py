"""ShortGPT against its formula, by hand in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.methods.shortgpt import ShortGPT


def block_influence(decoder: Decoder, windows: TokenBatches) -> list[float]:
    """`1 − mean_t x·y/(|x||y|)` a layer, one window at a time in float64."""
    model = decoder.model.double()
    seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in decoder.layers]
    for layer, module in enumerate(decoder.layers):
        module.register_forward_hook(lambda _, args, out, layer=layer: seen[layer].append((args[0], out)))
    with torch.no_grad():
        for row in windows.input_ids:
            model(input_ids=row[None], use_cache=False)
    scores = []
    for pairs in seen:
        cosines = [
            float(x @ y / (x.square().sum().sqrt() * y.square().sum().sqrt()))
            for before, after in pairs
            for x, y in zip(before[0], after[0], strict=True)
        ]
        scores.append(1 - sum(cosines) / len(cosines))
    return scores


def test_scores_equal_block_influence_in_float64(decoder: Decoder, windows: TokenBatches) -> None:
    plan = ShortGPT().plan(decoder, windows, drop=2)
    expected = block_influence(decoder, windows)
    assert plan.scores is not None
    assert list(plan.scores) == pytest.approx(expected, rel=1e-5)
    assert list(plan.order) == sorted(range(6), key=lambda layer: expected[layer])[:2]


def test_scores_are_a_mean_over_tokens_whatever_the_batches(decoder: Decoder, windows: TokenBatches) -> None:
    one, all_of_them = (ShortGPT().plan(decoder, windows.rebatch(size), drop=1).scores for size in (1, 5))
    assert one is not None
    assert all_of_them is not None
    assert list(one) == pytest.approx(list(all_of_them), rel=1e-6)


def test_layer_that_is_the_identity_has_no_influence(decoder: Decoder, windows: TokenBatches) -> None:
    with torch.no_grad():
        decoder.layers[3].mlp.down_proj.weight.zero_()
        decoder.layers[3].self_attn.o_proj.weight.zero_()
    plan = ShortGPT().plan(decoder, windows, drop=1)
    assert plan.scores is not None
    assert plan.order == (3,)
    assert plan.scores[3] == pytest.approx(0, abs=1e-6)


def test_scores_equal_those_of_another_implementation(decoder: Decoder, windows: TokenBatches) -> None:
    """optipfair (on PyPI) computes block influence too: the same scores and order on the same batches."""
    depth = pytest.importorskip("optipfair.pruning.depth", reason="optipfair is in the extra dev")
    equal = windows.take(4)  # they take the mean of the batches' means
    theirs = depth.analyze_layer_importance(decoder.model, list(equal), show_progress=False)
    ours = ShortGPT().plan(decoder, equal, drop=5)
    assert ours.scores is not None
    assert list(ours.scores) == pytest.approx([theirs[layer] for layer in range(6)], rel=1e-4)
    assert list(ours.order) == sorted(theirs, key=theirs.__getitem__)[:5]
