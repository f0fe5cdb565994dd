"""What every method promises, run over all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.errors import RequestError
from secateur.methods import METHODS, Method, Run, method_named
from secateur.plan import PruningPlan

FEW = {
    "first_steps": 2, "round_steps": 1, "joint_steps": 3, "steps": 2, "gate_sequences": 3, "sequences": 3, "tune": True,
}  # fmt: skip
NEVER_RUN = ("random", "tail", "magnitude")  # they choose without running the model


def quick(name: str, **settings: Any) -> Method:
    """The method with as few steps as its settings allow."""
    known = METHODS[name].__dataclass_fields__
    return METHODS[name](**{key: value for key, value in {**FEW, **settings}.items() if key in known})


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return quick(request.param)


@pytest.mark.parametrize("drop", [1, 2, 5])
def test_plan_names_that_many_distinct_layers_of_the_model(
    method: Method, decoder: Decoder, windows: TokenBatches, drop: int
) -> None:
    plan = method.plan(decoder, windows, drop=drop)
    assert len(plan.order) == len(set(plan.order)) == drop
    assert all(0 <= layer < 6 for layer in plan.order)
    assert plan.num_layers == 6
    assert plan.method == method.name
    assert plan.options == method.options()
    assert plan.scores is not None
    assert len(plan.scores) == 6


@pytest.mark.parametrize("name", [*METHODS, "replaceme by sleb"])
def test_a_nested_methods_plan_is_the_prefix_of_its_plan_for_more_layers(
    name: str, decoder: Decoder, windows: TokenBatches
) -> None:
    name, _, by = name.partition(" by ")
    method = quick(name, **({"layers_by": by} if by else {}))
    if not method.nested:
        pytest.skip("chooses anew for each number of layers")
    most = method.plan(decoder, windows, drop=5, run=Run(seed=5))
    for drop in range(1, 5):
        plan = method.plan(decoder, windows, drop=drop, run=Run(seed=5))
        assert plan.order == most.order[:drop] == most.prefix(drop).order


def test_which_methods_are_nested() -> None:
    nested = {name for name in METHODS if quick(name).nested}
    assert nested == {
        "elder-published", "gradpruner", "shortgpt", "sleb", "shortened-ppl", "shortened-taylor", "tail", "magnitude",
        "random",
    }  # fmt: skip
    assert METHODS["elder"](selection="greedy").nested
    assert not METHODS["elder-published"](selection="joint", gate="residual").nested
    assert not METHODS["replaceme"](layers_by="angular").nested
    assert METHODS["tail"](keep_last=1).nested
    assert not METHODS["tail"](keep_last=2).nested


def test_planning_leaves_weights_gradients_modes_and_hooks_as_they_were(
    method: Method, decoder: Decoder, windows: TokenBatches, snapshot: Any
) -> None:
    decoder.model.train()
    decoder.layers[1].eval()
    decoder.layers[2].requires_grad_(False)
    before = snapshot(decoder.model)
    method.plan(decoder, windows, drop=2)
    assert snapshot(decoder.model) == before


def test_planning_leaves_the_random_generator_as_it_was(
    method: Method, decoder: Decoder, windows: TokenBatches
) -> None:
    before = torch.random.get_rng_state()
    method.plan(decoder, windows, drop=2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_failed_planning_leaves_the_model_as_it_was(
    method: Method, decoder: Decoder, windows: TokenBatches, snapshot: Any
) -> None:
    if method.name in NEVER_RUN:
        pytest.skip("never runs the model")
    before = snapshot(decoder.model)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = decoder.layers[4].mlp.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        method.plan(decoder, windows, drop=2)
    handle.remove()
    assert snapshot(decoder.model) == before


def test_same_seed_gives_the_same_plan(method: Method, decoder: Decoder, windows: TokenBatches) -> None:
    first = method.plan(decoder, windows, drop=3, run=Run(seed=5))
    torch.manual_seed(99)
    assert method.plan(decoder, windows, drop=3, run=Run(seed=5)) == first


def test_saved_plan_equals_the_plan_loaded(
    method: Method, decoder: Decoder, windows: TokenBatches, tmp_path: Path
) -> None:
    plan = method.plan(decoder, windows, drop=2)
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("drop", [1, 5])
def test_cost_is_finite_and_never_negative(method: Method, windows: TokenBatches, drop: int) -> None:
    cost = method.cost(6, drop, windows)
    assert 0 <= cost.choose_tokens < 1e9
    assert 0 <= cost.prepare_tokens < 1e9
    assert cost.training_tokens >= 0
    assert cost.choosing is not None
    assert (cost.choose_tokens > 0) == (method.name not in NEVER_RUN)
    if not method.prepares:
        assert cost.training_tokens == cost.prepare_tokens == 0
        assert cost.preparing is None
    if cost.training_tokens > 0:  # what is prepared without training may cost no tokens at all
        assert cost.prepare_tokens > 0


def test_final_gate_is_a_share_and_1_where_nothing_is_prepared(method: Method) -> None:
    assert 0 <= method.final_gate() <= 1
    assert method.prepares or method.final_gate() == 1


def test_preparing_keeps_the_layers_the_trainability_and_only_finite_weights(
    method: Method, decoder: Decoder, windows: TokenBatches, snapshot: Any
) -> None:
    before = snapshot(decoder.model)
    report = method.prepare_(decoder, windows, PruningPlan(num_layers=6, order=(2, 4)))
    after = snapshot(decoder.model)
    assert decoder.num_layers == 6
    assert after.keys() == before.keys()
    assert all(bool(torch.isfinite(weight).all()) for weight in decoder.model.parameters())
    changed = [name for name in before if after[name][0] != before[name][0]]
    assert bool(changed) == method.prepares == bool(report)
    assert [after[name][1:2] for name in before] == [before[name][1:2] for name in before]  # requires_grad, hooks


def test_registry_key_is_the_name_of_the_method() -> None:
    assert {key: method.name for key, method in METHODS.items()} == {key: key for key in METHODS}


@pytest.mark.parametrize(("wrong", "nearest"), [("eldr", "elder"), ("short-gpt", "shortgpt"), ("SLEB", "sleb")])
def test_unknown_method_is_refused_with_the_nearest_or_all_names(wrong: str, nearest: str) -> None:
    with pytest.raises(RequestError, match=rf"unknown method '{wrong}'; .*\b{nearest}\b"):
        method_named(wrong)


def test_random_layers_follow_the_seed(decoder: Decoder, windows: TokenBatches) -> None:
    plans = {quick("random").plan(decoder, windows, drop=3, run=Run(seed=seed)).order for seed in range(20)}
    assert len(plans) > 10
