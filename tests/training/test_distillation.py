"""The distillation loss against its formula in float64, and the order that its top-k form must have."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.training.distillation import distillation_loss
from secateur.training.removal import RemovalTraining, train_towards_removal_

POSITIONS, VOCABULARY = 5, 11


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    """The model's and its teacher's."""
    generator = torch.Generator().manual_seed(3)
    ours, theirs = 3 * torch.randn(2, POSITIONS, VOCABULARY, generator=generator)
    return ours, theirs


def by_hand(ours: torch.Tensor, theirs: torch.Tensor, temperature: float, top_k: int | None) -> float:
    """`T²·Σ p·log(p/q)` in Python's floats, the tokens outside the teacher's k likeliest added up first."""
    total = 0.0
    for mine, wanted in zip(ours.tolist(), theirs.tolist(), strict=True):
        sizes = [[math.exp(value / temperature) for value in row] for row in (mine, wanted)]
        q, p = ([size / sum(row) for size in row] for row in sizes)
        if top_k is not None and top_k < len(p):
            likeliest = sorted(range(len(p)), key=p.__getitem__)[-top_k:]
            p, q = ([side[i] for i in likeliest] + [1 - sum(side[i] for i in likeliest)] for side in (p, q))
        total += sum(one * math.log(one / other) for one, other in zip(p, q, strict=True))
    return temperature**2 * total / len(ours)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 10, 11, 50])
def test_loss_equals_the_formula_in_float64(logits: Any, temperature: float, top_k: int | None) -> None:
    ours, theirs = logits
    found = distillation_loss(ours, theirs, temperature=temperature, top_k=top_k).item()
    assert found == pytest.approx(by_hand(ours.double(), theirs.double(), temperature, top_k), rel=1e-5)


def test_loss_grows_with_k_and_ends_at_that_of_the_whole_vocabulary(logits: Any) -> None:
    values = [distillation_loss(*logits, top_k=k).item() for k in range(1, VOCABULARY + 1)]
    assert values == sorted(values)
    assert values[-1] == distillation_loss(*logits).item()


@pytest.mark.parametrize("top_k", [None, 2])
def test_gradient_is_zero_at_the_teacher_and_finite_where_the_rest_is_all_but_impossible(top_k: int | None) -> None:
    teacher = torch.tensor([[400.0, 300.0, 0.0, -400.0]])
    for start in (teacher, -teacher):
        ours = start.clone().requires_grad_(True)
        loss = distillation_loss(ours, teacher, top_k=top_k)
        loss.backward()
        assert math.isfinite(loss.item())
        assert ours.grad is not None
        assert bool(torch.isfinite(ours.grad).all())
        assert (loss.item() == pytest.approx(0.0, abs=1e-6)) == (start is teacher)


@pytest.mark.parametrize("top_k", [2, None])
def test_gradient_equals_finite_differences_of_the_formula(logits: Any, top_k: int | None) -> None:
    ours, theirs = (side.double() for side in logits)
    ours.requires_grad_(True)
    distillation_loss(ours, theirs, temperature=2.0, top_k=top_k).backward()
    for position, token in ((0, 0), (2, 7), (4, 10)):
        ahead, behind = ours.detach().clone(), ours.detach().clone()
        ahead[position, token] += 1e-4
        behind[position, token] -= 1e-4
        slope = (by_hand(ahead, theirs, 2.0, top_k) - by_hand(behind, theirs, 2.0, top_k)) / 2e-4
        assert ours.grad[position, token].item() == pytest.approx(slope, abs=1e-6)


def test_training_records_the_divergence_of_its_own_temperature_and_k(tiny_model: Any) -> None:
    windows = TokenBatches(torch.randint(3, 120, (4, 12), generator=torch.Generator().manual_seed(7)), 2, "made up")
    teacher = copy.deepcopy(tiny_model)
    with torch.no_grad():
        teacher.lm_head.weight.mul_(1.3)
        ours, theirs = (
            model(input_ids=windows.input_ids).logits[:, :-1].double().flatten(0, 1) for model in (tiny_model, teacher)
        )
    settings = RemovalTraining(
        distil=0.4, distil_temperature=2.0, distil_top_k=5, steps=1, sequences_per_step=4, warmup=0.0
    )
    report = train_towards_removal_(Decoder(tiny_model), (), windows, settings=settings, teacher=teacher)
    first = report["losses"][0]
    assert first["distillation"] == pytest.approx(by_hand(ours, theirs, 2.0, 5), rel=1e-4)
    assert first["loss"] == pytest.approx(0.6 * first["cross_entropy"] + 0.4 * first["distillation"], rel=1e-5)
