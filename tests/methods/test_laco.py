"""Layer collapse against copies of the model that are really folded and cut, and the fold by hand in float64."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.errors import RequestError, RunError, UnsupportedModelError
from secateur.methods.base import Run
from secateur.methods.laco import Laco
from secateur.plan import PruningPlan
from secateur.surgery.live import remove_layers_
from tiny_families import build, token_ids

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def output_of(model: Any, windows: TokenBatches) -> torch.Tensor:
    """The last hidden state that transformers itself gives, a row a window."""
    with torch.no_grad():
        return model.model(input_ids=windows.input_ids, use_cache=False).last_hidden_state.flatten(1).double()


def similarity(one: Any, other: Any, windows: TokenBatches) -> float:
    return functional.cosine_similarity(output_of(one, windows), output_of(other, windows)).mean().item()


def folded(model: Any, position: int, count: int) -> Any:
    """A copy whose layer at `position` has taken in the `count` layers behind it, which are gone."""
    model = copy.deepcopy(model)
    layers = model.model.layers
    for name, weight in layers[position].named_parameters():
        if any(matrix in name for matrix in MATRICES):
            kept = weight.detach().double()
            total = kept + sum(
                layers[position + k].get_parameter(name).detach().double() - kept for k in range(1, count + 1)
            )
            with torch.no_grad():
                weight.copy_(total)
    remove_layers_(model, range(position + 1, position + count + 1))
    return model


def by_hand(
    dense: Any, windows: TokenBatches, drop: int, *, C: int, low: int, interval: int, T: float, step: float
) -> list[tuple[int, list[int], float]]:
    """The algorithm on models that are really cut: (into, layers, similarity) of each accepted fold, in dense numbers."""
    current, alive, found = dense, list(range(6)), []
    while len(alive) > 6 - drop:
        accepted = False
        at = max(low, len(alive) - C)
        while at >= low and len(alive) > 6 - drop:
            count = min(C - 1, len(alive) - 1 - at, len(alive) - (6 - drop))
            trial = folded(current, at, count)
            s = similarity(dense, trial, windows)
            if s > T:
                found.append((alive[at], alive[at + 1 : at + 1 + count], s))
                current, accepted = trial, True
                del alive[at + 1 : at + 1 + count]
                at = min(at - interval, len(alive) - C)
            else:
                at -= 1
        if not accepted:
            T = round(T - step, 9)
    return found


@pytest.mark.parametrize("drop", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("C", "interval", "threshold"),
    [(2, 1, 0.65), (3, 1, 0.9), (4, 2, 0.2), (3, 2, -1.0), (3, 1, -1.0), (2, 2, -1.0)],
    ids=str,
)
def test_folds_equal_the_algorithm_on_models_that_are_really_cut(
    decoder: Decoder, windows: TokenBatches, drop: int, C: int, interval: int, threshold: float
) -> None:
    setting = Laco(layers_per_merge=C, interval=interval, threshold=threshold, sequences=None)
    plan = setting.plan(decoder, windows, drop=drop)
    expected = by_hand(decoder.model, windows, drop, C=C, low=1, interval=interval, T=threshold, step=0.05)
    found = [(fold["into"], fold["layers"], fold["similarity"]) for fold in plan.provenance["folds"]]
    assert [fold[:2] for fold in found] == [fold[:2] for fold in expected]
    assert [fold[2] for fold in found] == pytest.approx([fold[2] for fold in expected], abs=1e-5)
    assert list(plan.order) == [layer for fold in expected for layer in fold[1]]


@pytest.mark.parametrize("drop", [1, 3, 5])
@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=str)
def test_prepared_and_cut_model_is_as_similar_as_the_plan_says(
    decoder: Decoder, windows: TokenBatches, drop: int, precision: Any
) -> None:
    run = Run(precision=precision)
    dense = copy.deepcopy(decoder.model)
    setting = Laco(layers_per_merge=2, interval=1, sequences=None)
    plan = setting.plan(decoder, windows, drop=drop, run=run)
    report = setting.prepare_(decoder, windows, plan, run=run)
    assert report["folds"] == plan.provenance["folds"]
    remove_layers_(decoder.model, plan.dropped)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is not None):
        measured = similarity(dense, decoder.model, windows)
    assert plan.provenance["folds"][-1]["similarity"] == pytest.approx(
        measured, abs=1e-5 if precision is None else 0.01
    )


def test_fold_equals_the_formula_in_float64_and_leaves_norms_alone(decoder: Decoder, windows: TokenBatches) -> None:
    with torch.no_grad():
        for layer, module in enumerate(decoder.layers):
            module.input_layernorm.weight.mul_(1 + layer)
            module.post_attention_layernorm.weight.mul_(2 + layer)
    dense = copy.deepcopy(decoder.model)
    plan = PruningPlan(num_layers=6, order=(3, 4), merges={3: 2, 4: 2})
    report = Laco().prepare_(decoder, windows, plan)
    expected = folded(dense, 2, 2)
    for name, weight in decoder.layers[2].named_parameters():
        assert torch.allclose(weight, expected.model.layers[2].get_parameter(name), atol=1e-6), name
        assert torch.equal(weight, dense.model.layers[2].get_parameter(name)) == ("layernorm" in name)
    for layer in (0, 1, 3, 4, 5):
        for name, weight in decoder.layers[layer].named_parameters():
            assert torch.equal(weight, dense.model.layers[layer].get_parameter(name))
    assert report["folds"] == [{"into": 2, "layers": [3, 4], "similarity": None, "threshold": None}]


def test_plan_without_merges_folds_each_layer_into_the_nearest_kept_one(
    decoder: Decoder, windows: TokenBatches
) -> None:
    report = Laco().prepare_(decoder, windows, PruningPlan(num_layers=6, order=(4, 0, 3)))
    assert [(fold["into"], fold["layers"]) for fold in report["folds"]] == [(1, [0]), (2, [3, 4])]


def test_layer_folded_twice_is_merged_into_the_last_that_took_it(decoder: Decoder, windows: TokenBatches) -> None:
    plan = Laco(layers_per_merge=2, interval=1, threshold=-1.0).plan(decoder, windows, drop=4)
    folds = [(fold["into"], fold["layers"]) for fold in plan.provenance["folds"]]
    assert folds == [(4, [5]), (3, [4]), (2, [3]), (1, [2])]  # every trial is accepted: from the top down
    assert plan.merges == {5: 1, 4: 1, 3: 1, 2: 1}
    assert set(plan.merges) == set(plan.dropped)
    assert set(plan.merges.values()) <= set(plan.kept)


def test_planning_gives_back_the_very_same_tensors(decoder: Decoder, windows: TokenBatches) -> None:
    places = {name: weight.data_ptr() for name, weight in decoder.model.named_parameters()}
    Laco().plan(decoder, windows, drop=4)
    assert {name: weight.data_ptr() for name, weight in decoder.model.named_parameters()} == places


def test_threshold_falls_step_by_step_until_enough_layers_went(decoder: Decoder, windows: TokenBatches) -> None:
    plan = Laco(threshold=1.0, threshold_step=0.25, sequences=None).plan(decoder, windows, drop=3)
    for fold in plan.provenance["folds"]:
        assert fold["threshold"] in (1.0, 0.75, 0.5, 0.25, 0.0, -0.25, -0.5, -0.75, -1.0)
        assert fold["threshold"] < fold["similarity"]
    first = plan.provenance["folds"][0]
    assert first["similarity"] <= first["threshold"] + 0.25  # a step earlier it was not accepted


def test_scores_are_the_distance_of_the_best_trial_and_none_for_layers_never_folded(
    decoder: Decoder, windows: TokenBatches
) -> None:
    plan = Laco(layers_per_merge=2, lowest=2, highest=5, threshold=1.0, threshold_step=3.0, sequences=None).plan(
        decoder, windows, drop=1
    )
    expected = {at + 1: 1 - similarity(decoder.model, folded(decoder.model, at, 1), windows) for at in (3, 2)}
    assert plan.scores is not None
    assert [math.isnan(score) for score in plan.scores] == [layer not in (3, 4) for layer in range(6)]
    assert {layer: plan.scores[layer] for layer in (3, 4)} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("drop", [1, 3, 5])
@pytest.mark.parametrize("C", [2, 3, 4, 9])
def test_forward_passes_are_at_most_those_stated(
    decoder: Decoder, windows: TokenBatches, monkeypatch: pytest.MonkeyPatch, drop: int, C: int
) -> None:
    calls = [0.0]

    def count(*_: Any) -> None:
        calls[0] += 1 / 6

    for layer in decoder.layers:
        layer.mlp.register_forward_pre_hook(count)  # a bypassed layer never gets there
    setting = Laco(layers_per_merge=C, threshold=0.999, threshold_step=0.001, interval=1, sequences=3)
    setting.plan(decoder, windows, drop=drop)
    tokens = calls[0] / 2 * 3 * 24  # two batches of the three windows
    assert 0 < tokens <= setting.cost(6, drop, windows).choose_tokens + 1e-6


def test_layers_of_different_shapes_are_never_folded_together() -> None:
    model = build("deepseek_v3")  # the first two layers are dense, the others mixtures of experts
    windows = TokenBatches(token_ids(), 2, "test")
    plan = Laco(layers_per_merge=2, lowest=0, interval=1).plan(Decoder(model), windows, drop=4)
    assert sorted(plan.kept) == [0, 2]
    with pytest.raises(RunError, match="only 4 of 5 layers can be folded"):
        Laco(layers_per_merge=2, lowest=0).plan(Decoder(model), windows, drop=5)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with pytest.raises(UnsupportedModelError, match="cannot fold layers 2 into layer 1"):
        Laco().prepare_(Decoder(model), windows, PruningPlan(num_layers=6, order=(2, 4)))
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_outputs_that_are_not_finite_are_an_error_and_change_nothing(
    decoder: Decoder, windows: TokenBatches, snapshot: Any
) -> None:
    with torch.no_grad():
        decoder.model.model.norm.weight[0] = math.nan
    before = snapshot(decoder.model)
    with pytest.raises(RunError, match="only 0 of 2 layers can be folded") as caught:
        Laco().plan(decoder, windows, drop=2)
    assert "\n" not in str(caught.value)
    assert snapshot(decoder.model) == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers_per_merge": 1}, "layers_per_merge must be 2 or more, not 1"),
        ({"lowest": -1}, "lowest must be 0 or more, not -1"),
        ({"interval": 0}, "interval must be 1 or more, not 0"),
        ({"sequences": 0}, "sequences must be 1 or more, not 0"),
        ({"threshold": 1.5}, "threshold is a cosine, not 1.5"),
        ({"threshold_step": 0.0}, "threshold_step must be above 0, not 0"),
    ],
)
def test_setting_that_makes_no_sense_is_refused_with_its_value(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Laco(**wrong)
