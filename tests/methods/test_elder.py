"""ELDeR's choice against finite differences and by construction, and its second stage as a whole."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from secateur.data import TokenBatches
from secateur.decoder import Decoder, evaluating
from secateur.errors import RequestError, TrainingDivergedError
from secateur.methods import METHODS, Run
from secateur.methods import gates as gates_module
from secateur.methods.elder import Elder, ElderPublished
from secateur.methods.gates import on_budget
from secateur.methods.sleb import Sleb
from secateur.plan import PruningPlan

FEW: dict[str, Any] = {"first_steps": 3, "round_steps": 2, "joint_steps": 12, "steps": 2}
GREEDY: dict[str, Any] = {"selection": "greedy", "first_steps": 25, "round_steps": 1, "lambda_1": 0.05, "shortlist": 1}
JOINT: dict[str, Any] = {"selection": "joint", "joint_steps": 40, "shortlist": 1}


def make_identity_(decoder: Decoder, layer: int) -> None:
    with torch.no_grad():
        decoder.layers[layer].mlp.down_proj.weight.zero_()
        decoder.layers[layer].self_attn.o_proj.weight.zero_()


# ---- choosing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 3, 5])
@pytest.mark.parametrize("how", [GREEDY, JOINT], ids=["greedy", "joint"])
def test_layer_made_the_identity_is_chosen_first(
    decoder: Decoder, windows: TokenBatches, layer: int, how: dict[str, Any]
) -> None:
    """Every other layer of a model that has learned a little helps: its removal must cost more than nothing."""
    make_identity_(decoder, layer)
    overfit_(decoder, windows, frozen=layer)
    plan = Elder(**how, gate="residual", gate_sequences=None).plan(decoder, windows, drop=2)
    assert plan.order[0] == layer


def overfit_(decoder: Decoder, windows: TokenBatches, *, frozen: int) -> None:
    decoder.layers[frozen].requires_grad_(False)
    optimizer = torch.optim.Adam([w for w in decoder.model.parameters() if w.requires_grad], lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss_of(decoder, windows).backward()
        optimizer.step()
    decoder.model.zero_grad()


def loss_of(decoder: Decoder, windows: TokenBatches) -> torch.Tensor:
    logits = decoder.logits(windows.input_ids)[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), windows.input_ids[:, 1:].flatten())


@pytest.mark.parametrize("kind", ["residual", "output"])
def test_gradient_of_the_gates_equals_finite_differences_in_float64(
    decoder: Decoder, windows: TokenBatches, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exact(norm: Any, hidden: torch.Tensor) -> torch.Tensor:  # the original computes in float32 whatever it is given
        return norm.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + norm.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", exact)
    decoder.model.double()
    values = torch.linspace(0.2, 1.3, 6, dtype=torch.float64, requires_grad=True)

    def loss_at(point: torch.Tensor) -> torch.Tensor:
        with evaluating(decoder.model), decoder.gate(point, kind=kind):
            return loss_of(decoder, windows)

    (gradient,) = torch.autograd.grad(loss_at(values), values)
    step = 1e-5
    with torch.no_grad():
        for layer in range(6):
            shift = step * functional.one_hot(torch.tensor(layer), 6)
            difference = (loss_at(values + shift) - loss_at(values - shift)).item() / (2 * step)
            assert gradient[layer].item() == pytest.approx(difference, rel=1e-6, abs=1e-9)


def test_greedy_round_equals_adam_on_loss_plus_l1_norm_by_hand(decoder: Decoder, windows: TokenBatches) -> None:
    """The weights after the first round, against Adam written out in float64."""
    setting = Elder(selection="greedy", gate_sequences=None, first_steps=4, lambda_1=0.3, shortlist=1)
    plan = setting.plan(decoder, windows, drop=1)
    decoder.model.double()
    s = torch.ones(6, dtype=torch.float64)
    first, second = torch.zeros(6).double(), torch.zeros(6).double()
    for step in range(1, 5):
        point = s.clone().requires_grad_(True)
        with evaluating(decoder.model), decoder.gate(point):
            total = loss_of(decoder, windows) + 0.3 * point.abs().sum()
        (slope,) = torch.autograd.grad(total, point)
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope.square()
        moved = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        s = (s - setting.gate_learning_rate * moved).clamp(min=0)
    assert plan.scores is not None
    assert list(plan.scores) == pytest.approx(s.tolist(), abs=1e-4)
    assert s[plan.order[0]].item() == pytest.approx(s.min().item(), abs=1e-4)


def test_no_gradient_is_kept_for_frozen_weights(
    decoder: Decoder, windows: TokenBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder.model.requires_grad_(True)
    wanted: list[bool] = []
    logits = Decoder.logits

    def watched(self: Decoder, input_ids: torch.Tensor) -> torch.Tensor:
        wanted.append(any(weight.requires_grad for weight in self.model.parameters()))
        return logits(self, input_ids)

    monkeypatch.setattr(Decoder, "logits", watched)
    for how in (GREEDY, JOINT):
        Elder(**{**FEW, **how}).plan(decoder, windows, drop=2)
    assert wanted
    assert not any(wanted)
    assert all(weight.grad is None for weight in decoder.model.parameters())
    assert all(weight.requires_grad for weight in decoder.model.parameters())


def test_bypassed_layers_are_never_called(decoder: Decoder, windows: TokenBatches) -> None:
    calls = dict.fromkeys(range(6), 0)
    for layer, module in enumerate(decoder.layers):

        def count(*_: Any, layer: int = layer) -> None:
            calls[layer] += 1

        module.mlp.register_forward_pre_hook(count)
    setting = Elder(selection="greedy", fixed_batch=True, gate_sequences=2, first_steps=3, round_steps=2, shortlist=1)
    plan = setting.plan(decoder, windows, drop=3)
    expected = dict.fromkeys(range(6), 3 + 2 + 2)
    expected[plan.order[0]] = 3
    expected[plan.order[1]] = 3 + 2
    assert calls == expected


def test_stage_2_never_calls_layers_that_are_faded_from_the_start(decoder: Decoder, windows: TokenBatches) -> None:
    calls: list[int] = []
    for layer in (1, 2):
        decoder.layers[layer].mlp.register_forward_pre_hook(lambda _m, _a, layer=layer: calls.append(layer))
    plan = PruningPlan(num_layers=6, order=(1, 2))
    Elder(steps=2, distil=0.0, absorb=None, fade_over=0.0).prepare_(decoder, windows, plan)
    assert calls == []


@pytest.mark.parametrize("selection", ["greedy", "joint"])
def test_shortlist_of_all_layers_chooses_as_the_loss_itself(
    decoder: Decoder, windows: TokenBatches, selection: Any
) -> None:
    elder = Elder(**FEW, selection=selection, shortlist=6, gate_sequences=None)
    assert elder.plan(decoder, windows, drop=3).order == Sleb(sequences=None).plan(decoder, windows, drop=3).order


@pytest.mark.parametrize("selection", ["greedy", "joint"])
def test_plan_tells_the_losses_that_decided_and_the_steps_of_its_weights(
    decoder: Decoder, windows: TokenBatches, selection: Any
) -> None:
    elder = Elder(**{**FEW, "selection": selection, "joint_steps": 30, "shortlist": 2, "gate_sequences": None})
    plan = elder.plan(decoder, windows, drop=2)
    about = plan.provenance
    assert about["weight_steps"] == ([3, 5] if selection == "greedy" else [*range(4, 29, 3), 30])
    assert len(about["weights_by_round"]) == len(about["weight_steps"])
    gone: list[int] = []
    for layer, losses in zip(plan.order, about["shortlist_losses"], strict=True):
        assert min(losses, key=losses.get) == str(layer)
        with evaluating(decoder.model), torch.no_grad(), decoder.bypass([*gone, layer]):
            assert losses[str(layer)] == pytest.approx(loss_of(decoder, windows).item(), rel=1e-5)
        gone.append(layer)
    assert (
        Elder(**{**FEW, "selection": selection, "shortlist": 1})
        .plan(decoder, windows, drop=2)
        .provenance["shortlist_losses"]
        == []
    )


def test_joint_weights_lie_on_the_budget_and_the_lowest_go(decoder: Decoder, windows: TokenBatches) -> None:
    plan = Elder(**{**FEW, **JOINT, "joint_steps": 12, "shortlist": 1}).plan(decoder, windows, drop=2)
    assert plan.scores is not None
    assert sum(plan.scores) == pytest.approx(4, abs=1e-4)
    assert all(0 <= weight <= 1 for weight in plan.scores)
    assert max(plan.scores[layer] for layer in plan.order) <= min(plan.scores[layer] for layer in plan.kept) + 1e-6


@pytest.mark.parametrize("how", [GREEDY, JOINT], ids=["greedy", "joint"])
def test_non_finite_loss_stops_in_one_line_and_changes_nothing(
    decoder: Decoder, windows: TokenBatches, snapshot: Any, how: dict[str, Any]
) -> None:
    with torch.no_grad():
        decoder.layers[4].mlp.down_proj.weight[0, 0] = math.inf
    before = snapshot(decoder.model)
    with pytest.raises(
        TrainingDivergedError, match=r"the loss became (nan|inf) .*; nothing was changed: try"
    ) as caught:
        Elder(**{**FEW, **how}).plan(decoder, windows, drop=2)
    assert "\n" not in str(caught.value)
    assert snapshot(decoder.model) == before


# ---- the budget --------------------------------------------------------------------------------------------------------

VALUES = st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(values=VALUES, share=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_on_budget_is_feasible_and_no_feasible_point_is_nearer(values: list[float], share: float, seed: int) -> None:
    point, budget = torch.tensor(values), share * len(values)
    found = on_budget(point, budget)
    assert bool(((found >= 0) & (found <= 1)).all())
    assert found.sum().item() == pytest.approx(budget, abs=1e-3)
    # Other feasible points: mixtures of a random one that is feasible, found by scaling towards 0 or 1.
    other = torch.rand(len(values), generator=torch.Generator().manual_seed(seed))
    total = other.sum().item()
    if total > budget:
        other = other * (budget / total)
    elif total < len(values):
        other = 1 - (1 - other) * ((len(values) - budget) / (len(values) - total))
    assert (found - point).norm().item() <= (other - point).norm().item() + 1e-3


@settings(max_examples=40, deadline=None)
@given(values=VALUES, share=st.floats(0, 1))
def test_on_budget_keeps_the_order_and_leaves_feasible_points_alone(values: list[float], share: float) -> None:
    point = torch.tensor(values)
    found = on_budget(point, share * len(values))
    assert bool((found[point.argsort()].diff() >= -1e-6).all())
    again = on_budget(found, found.sum().item())
    assert torch.allclose(again, found, atol=1e-4)


# ---- settings ----------------------------------------------------------------------------------------------------------


def test_published_settings_are_those_of_the_paper() -> None:
    published = ElderPublished()
    stated = {
        "gate": "output", "selection": "greedy", "lambda_1": 5e-3, "lambda_2": 1e-3, "lambda_2_ramp": 0.0, "norm": "l2",
        "learning_rate": 2e-5, "warmup": 0.03, "weight_decay": 0.0, "train": "full", "fade_over": None, "distil": 0.0,
        "absorb": None, "prepare": True, "shortlist": 1,
    }  # fmt: skip
    assert {name: getattr(published, name) for name in stated} == stated
    assert published.final_gate() == 1.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lambda_1": -1.0}, "lambda_1 must be 0 or more, not -1"),
        ({"lambda_1": math.nan}, "lambda_1 must be 0 or more, not nan"),
        ({"absorb_alpha": -0.5}, "absorb_alpha must be 0 or more, not -0.5"),
        ({"first_steps": 0}, "first_steps must be above 0, not 0"),
        ({"gate_sequences": 0}, "gate_sequences must be above 0, not 0"),
        ({"distil": 1.5}, "distil is a share, not 1.5"),
        ({"steps": -2}, "steps must be 0 or more, not -2"),
        ({"absorb": "map", "fade_over": 0.5}, "set fade_over to 0"),
        ({"selection": "joint", "gate": "output"}, "set gate to residual"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or more, not -0.1"),
        ({"trainer": {"nope": 1}}, "trainer has no option 'nope'"),
    ],
)
def test_setting_that_makes_no_sense_is_refused_with_its_value(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Elder(**wrong)


@pytest.mark.parametrize("name", ["elder", "elder-published"])
def test_every_setting_has_a_description(name: str) -> None:
    from docstring_parser import parse_from_object

    described = {
        parameter.arg_name
        for kind in METHODS[name].__mro__
        if kind.__module__.startswith("secateur")
        for parameter in parse_from_object(kind).params
        if parameter.description
    }
    assert {field.name for field in dataclasses.fields(METHODS[name])} <= described


# ---- stage 2 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {"absorb": "projection", "fade_over": 0.0},
        {"absorb": "map", "fade_over": 0.0, "distil": 1.0},
        {"absorb": None, "fade_over": 1.0, "steps": 4},
        {"absorb": None, "fade_over": 0.5, "steps": 4, "lambda_2": 0.01},
    ],
    ids=["absorb", "absorb-map", "faded", "half-faded"],
)
def test_faded_layers_are_gone_before_the_cut(decoder: Decoder, windows: TokenBatches, how: dict[str, Any]) -> None:
    plan = PruningPlan(num_layers=6, order=(2, 3))
    setting = Elder(**{**FEW, **how})
    report = setting.prepare_(decoder, windows, plan)
    assert setting.final_gate() == report["training"]["final_gate"] == 0.0
    gate = torch.full((6,), setting.final_gate())
    with evaluating(decoder.model), torch.no_grad():
        with decoder.gate(gate, layers=plan.dropped):
            before = decoder.logits(windows.input_ids)
        with decoder.bypass(plan.dropped):
            after = decoder.logits(windows.input_ids)
    assert torch.equal(before, after)


def test_without_second_stage_nothing_is_changed(decoder: Decoder, windows: TokenBatches, snapshot: Any) -> None:
    before = snapshot(decoder.model)
    assert Elder(prepare=False).prepare_(decoder, windows, PruningPlan(num_layers=6, order=(2,))) == {}
    assert snapshot(decoder.model) == before


@pytest.mark.parametrize("train", ["full", "lora"])
def test_same_seed_twice_prepares_the_same_weights(tiny_model: Any, windows: TokenBatches, train: Any) -> None:
    twin = copy.deepcopy(tiny_model)
    plan = PruningPlan(num_layers=6, order=(1, 4))
    for model, noise in ((tiny_model, 1), (twin, 2)):
        torch.manual_seed(noise)
        Elder(**FEW, train=train, lora_rank=2).prepare_(Decoder(model), windows, plan, run=Run(seed=3))
    for one, other in zip(tiny_model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.fixture(autouse=True)
def _small_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the joint choice as long as the windows here, so that all of their text is seen."""
    monkeypatch.setattr(gates_module, "ROW_TOKENS", 24)
