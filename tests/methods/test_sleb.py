"""SLEB against brute force: every candidate tried with complete forward passes."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch.nn import functional

from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.errors import RequestError
from secateur.methods.base import Run
from secateur.methods.sleb import Sleb, removal_losses


def full_loss(decoder: Decoder, windows: TokenBatches, gone: set[int]) -> float:
    """The mean loss of a model whose other layers alone are in its list, on complete forward passes."""
    layers = decoder.model.model.layers
    decoder.model.model.layers = torch.nn.ModuleList(module for at, module in enumerate(layers) if at not in gone)
    decoder.model.config.num_hidden_layers = len(decoder.model.model.layers)
    try:
        with torch.no_grad():
            logits = decoder.model(input_ids=windows.input_ids, use_cache=False).logits.double()
        return float(functional.cross_entropy(logits[:, :-1].flatten(0, 1), windows.input_ids[:, 1:].flatten()))
    finally:
        decoder.model.model.layers = layers
        decoder.model.config.num_hidden_layers = len(layers)


@pytest.mark.parametrize("drop", [1, 3, 5])
def test_order_and_losses_equal_brute_force_greedy(decoder: Decoder, windows: TokenBatches, drop: int) -> None:
    plan = Sleb(sequences=None).plan(decoder, windows, drop=drop)
    gone: list[int] = []
    last: dict[int, float] = {}
    for _ in range(drop):
        losses = {layer: full_loss(decoder, windows, {*gone, layer}) for layer in range(6) if layer not in gone}
        last.update(losses)
        gone.append(min(losses, key=lambda layer: losses[layer]))
    assert list(plan.order) == gone
    assert plan.scores is not None
    assert list(plan.scores) == pytest.approx([last[layer] for layer in range(6)], rel=1e-5)


def test_removal_losses_from_cached_prefix_equal_complete_passes(decoder: Decoder, windows: TokenBatches) -> None:
    found = removal_losses(decoder, windows, [1, 4], [0, 2, 3, 5], Run())
    assert found == pytest.approx({layer: full_loss(decoder, windows, {1, 4, layer}) for layer in found}, rel=1e-5)
    assert list(found) == [0, 2, 3, 5]


def test_prefix_before_the_candidate_is_never_computed_twice(decoder: Decoder, windows: TokenBatches) -> None:
    """Layer l runs once for the prefix of those behind it, and once for each candidate before it."""
    calls: Counter[int] = Counter()
    for layer, module in enumerate(decoder.layers):

        def count(*_: Any, layer: int = layer) -> None:
            calls[layer] += 1

        module.mlp.register_forward_pre_hook(count)  # a bypassed layer never gets there
    removal_losses(decoder, windows.take(1), [], range(6), Run())
    assert [calls[layer] for layer in range(6)] == [layer + (layer < 5) for layer in range(6)]


def test_only_as_many_windows_are_used_as_asked_for(decoder: Decoder, windows: TokenBatches) -> None:
    few = Sleb(sequences=2).plan(decoder, windows, drop=2)
    same = Sleb(sequences=None).plan(decoder, windows.take(2), drop=2)
    assert few.order == same.order
    assert few.scores == same.scores


def test_removal_that_gives_nan_counts_as_infinitely_bad(decoder: Decoder, windows: TokenBatches) -> None:
    def spoil(_: Any, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        return out * math.nan

    decoder.layers[2].register_forward_hook(spoil)
    found = removal_losses(decoder, windows, [], range(6), Run())
    assert [layer for layer in found if math.isfinite(found[layer])] == []


@pytest.mark.parametrize("sequences", [0, -1])
def test_no_windows_at_all_are_refused(sequences: int) -> None:
    with pytest.raises(RequestError, match=rf"sequences must be above 0, not {sequences}"):
        Sleb(sequences=sequences)
