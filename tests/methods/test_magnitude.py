"""Magnitudes against sums written out in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.methods.magnitude import Magnitude


@pytest.mark.parametrize(("norm", "order"), [("l1", 1), ("l2", 2)])
def test_scores_equal_the_norm_of_all_weights_in_float64(
    decoder: Decoder, windows: TokenBatches, norm: Any, order: int
) -> None:
    plan = Magnitude(norm=norm).plan(decoder, windows, drop=3)
    expected = [
        sum((weight.detach().double().abs() ** order).sum().item() for weight in layer.parameters()) ** (1 / order)
        for layer in decoder.layers
    ]
    assert plan.scores is not None
    assert list(plan.scores) == pytest.approx(expected, rel=1e-12)
    assert list(plan.order) == sorted(range(6), key=lambda layer: expected[layer])[:3]


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_layer_with_smaller_weights_goes_first(decoder: Decoder, windows: TokenBatches, norm: Any) -> None:
    with torch.no_grad():
        for weight in decoder.layers[4].parameters():
            weight.mul_(0.9)
    assert Magnitude(norm=norm).plan(decoder, windows, drop=1).order == (4,)


def test_half_precision_weights_do_not_overflow(decoder: Decoder, windows: TokenBatches) -> None:
    decoder.model.half()
    with torch.no_grad():
        decoder.layers[1].mlp.up_proj.weight.fill_(6e4)
    plan = Magnitude(norm="l2").plan(decoder, windows, drop=5)
    assert plan.scores is not None
    assert plan.scores[1] == pytest.approx(float(torch.tensor(6e4).half()) * (32 * 64) ** 0.5, rel=1e-6)
    assert plan.kept == (1,)
