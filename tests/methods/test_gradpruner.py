"""GradPruner: what is scored, what goes, and what is merged, each held to the published words by hand."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.errors import RequestError
from secateur.methods import Run
from secateur.methods.gradpruner import GradPruner
from secateur.plan import PruningPlan
from secateur.progress import Silent
from secateur.surgery.absorb import absorb_
from secateur.surgery.files import cut_checkpoint
from secateur.surgery.live import remove_layers_
from secateur.surgery.merge import merge_layers_
from secateur.training.igia import IGIACallback
from secateur.training.rows import rows_of_windows
from secateur.training.scoring import score_layers

WEIGHTS = [f"self_attn.{name}_proj.weight" for name in "qkvo"] + [
    f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")
]


def quick(**settings: Any) -> GradPruner:
    """Few steps, at a rate at which all layers move at once."""
    return GradPruner(**{"scoring_steps": 4, "scoring_rate": 1e-2, "scoring_rank": 2, **settings})


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


# ---- the choice ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reduction", "gradients"), [("squares", "lora"), ("norm", "lora"), ("norm", "full")])
def test_plan_drops_the_layers_with_the_lowest_scores(
    decoder: Decoder, windows: TokenBatches, reduction: Any, gradients: Any
) -> None:
    method = quick(reduction=reduction, gradients=gradients)
    plan = method.plan(decoder, windows, drop=3)
    seen = score_layers(decoder, rows_of_windows(windows), settings=method)
    assert plan.scores is not None
    assert list(plan.scores) == list(seen.accumulated().scores(reduction))
    assert list(plan.order) == sorted(range(6), key=lambda layer: plan.scores[layer])[:3]
    assert len(set(plan.scores)) == 6
    # the record: how each step saw it, and how far its halves agree
    by_step = np.array(plan.provenance["scores_by_step"])
    assert by_step.shape == (plan.provenance["steps"], 6) == (4, 6)
    assert by_step.mean(axis=0).tolist() == pytest.approx(list(plan.scores), rel=1e-9)
    stability = plan.provenance["stability"]
    assert -1 <= stability <= 1 if by_step[:2].any() else stability is None  # LoRA with a warm-up begins with two zeros


def test_number_of_steps_is_a_share_of_the_fine_tuning(decoder: Decoder, windows: TokenBatches) -> None:
    rows = rows_of_windows(windows)
    for settings, total, expected in (({"scoring_steps": 0.25}, 20, 5), ({"scoring_steps": None}, 20, 10)):
        plan = quick(**settings).plan_on_task(decoder, rows, windows, drop=1, total_steps=total)
        assert plan.provenance["steps"] == expected


def test_rows_decide_and_not_the_windows(decoder: Decoder, windows: TokenBatches) -> None:
    rows = rows_of_windows(windows)
    learnt = [{**row, "labels": [-100] * 20 + row["labels"][20:]} for row in rows]
    scores = [quick().plan_on_task(decoder, some, windows, drop=1).scores for some in (rows, learnt)]
    assert list(scores[0]) != list(scores[1])


class Noting(Silent):
    """Somebody who remembers what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_ranking_that_is_not_stable_is_said_once(
    decoder: Decoder, windows: TokenBatches, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(IGIACallback, "warnings", lambda _: ["Kendall's tau is low"])
    progress = Noting()
    quick().plan(decoder, windows, drop=1, run=Run(progress=progress))
    assert progress.notes == ["Kendall's tau is low"]
    assert "Kendall's tau" not in caplog.text  # standard error would have it twice


# ---- the merge -----------------------------------------------------------------------------------------------------------


def slowly(model: Any, plan: PruningPlan, keep: float, share: bool) -> None:
    """Section 3.2, entry by entry in float32: the top of each pruned weight by IGIA is added where the signs agree."""
    layers = model.model.layers
    originals = copy.deepcopy(layers)
    for layer, into in sorted(plan.merges.items()):
        for name in WEIGHTS:
            pruned, kept = (originals[number].get_parameter(name).detach().numpy().flat for number in (layer, into))
            information, beside = (plan.evidence.matrix(number, name).numpy().flat for number in (layer, into))
            target = layers[into].get_parameter(name).detach().numpy().reshape(-1)  # shares memory
            least = sorted(information, reverse=True)[int(keep * len(target) + 0.5) - 1]
            for entry in range(len(target)):
                if information[entry] < least or np.sign(pruned[entry]) != np.sign(kept[entry]):
                    continue
                part = information[entry] / (information[entry] + beside[entry]) if share else np.float32(1)
                target[entry] += pruned[entry] * part


@pytest.mark.parametrize(("merge", "keep"), [("sign", 0.2), ("sign-igia", 0.5)])
def test_merged_weights_equal_the_published_merge_entry_by_entry(
    decoder: Decoder, windows: TokenBatches, merge: Any, keep: float
) -> None:
    method = quick(merge=merge, keep=keep, merged_layers=2)
    plan = method.plan(decoder, windows, drop=3)
    expected = copy.deepcopy(decoder.model)
    slowly(expected, plan, keep, merge == "sign-igia")
    before = weights_of(decoder.model)
    report = method.prepare_(decoder, windows, plan)
    for name, weight in expected.named_parameters():
        assert torch.equal(weight, decoder.model.get_parameter(name)), name
    changed = {name for name, weight in decoder.model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {f"model.layers.{into}.{name}" for into in plan.merges.values() for name in WEIGHTS}
    assert {row["layer"]: row["into"] for row in report["merge"]} == plan.merges
    entries = sum(before[f"model.layers.0.{name}"].numel() for name in WEIGHTS)
    assert all(row["entries"] == entries and 0 < row["added"] < keep * entries for row in report["merge"])


@pytest.mark.parametrize(("merged_layers", "count"), [(1, 1), (9, 4), (None, 4)])
def test_merged_are_the_pruned_layers_with_the_highest_scores(
    decoder: Decoder, windows: TokenBatches, merged_layers: int | None, count: int
) -> None:
    plan = quick(merged_layers=merged_layers, scoring_steps=3).plan(decoder, windows, drop=4)
    assert plan.scores is not None
    highest = sorted(plan.dropped, key=lambda layer: plan.scores[layer], reverse=True)
    assert set(plan.merges) == set(highest[:count])
    for layer, into in plan.merges.items():
        before = [other for other in plan.kept if other < layer]
        assert into == (before[-1] if before else plan.kept[0])


def test_plan_from_a_file_is_merged_like_the_plan_itself(
    decoder: Decoder, windows: TokenBatches, tmp_path: Path
) -> None:
    """Its evidence is not written as it is; it is accumulated again, and comes out the same bit for bit."""
    method, run = quick(), Run(seed=4)
    twin = Decoder(copy.deepcopy(decoder.model))
    plan = method.plan(decoder, windows, drop=3, run=run)
    plan.save(tmp_path / "plan.json")
    loaded = PruningPlan.load(tmp_path / "plan.json")
    assert loaded.evidence is None
    assert loaded.merges == plan.merges
    torch.manual_seed(99)
    reports = [method.prepare_(decoder, windows, plan, run=run), method.prepare_(twin, windows, loaded, run=run)]
    assert reports[0] == reports[1]
    for one, other in zip(decoder.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("merge", "gradients"), [("sign", "full"), ("sign-igia", "lora")])
def test_plan_from_a_file_applied_by_cut_equals_the_merge_in_memory_byte_for_byte(
    decoder: Decoder, windows: TokenBatches, tmp_path: Path, merge: Any, gradients: Any
) -> None:
    method = quick(merge=merge, gradients=gradients)
    decoder.model.save_pretrained(tmp_path / "dense")
    plan = method.plan(decoder, windows, drop=3)
    plan.save(tmp_path / "plan.json")
    report = cut_checkpoint(tmp_path / "dense", tmp_path / "out", PruningPlan.load(tmp_path / "plan.json"))
    method.prepare_(decoder, windows, plan)
    remove_layers_(decoder.model, plan.dropped)
    decoder.model.save_pretrained(tmp_path / "live")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "live"))
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert report.num_folded == len(set(plan.merges.values())) * len(WEIGHTS)


def test_of_layers_given_by_hand_those_with_the_highest_scores_are_merged_whatever_their_order(
    decoder: Decoder, windows: TokenBatches
) -> None:
    method = quick(merged_layers=1, scoring_steps=3)
    scores = method.plan(decoder, windows, drop=1).scores
    given = sorted((1, 2, 4), key=lambda layer: scores[layer], reverse=True)  # the highest first
    report = method.prepare_(decoder, windows, PruningPlan(num_layers=6, order=tuple(given), method="given"))
    assert [row["layer"] for row in report["merge"]] == [given[0]]


def test_without_a_merge_nothing_is_changed_and_no_factors_are_kept(decoder: Decoder, windows: TokenBatches) -> None:
    for method in (quick(merge="none"), quick(merged_layers=0)):
        before = weights_of(decoder.model)
        plan = method.plan(decoder, windows, drop=3)
        assert plan.merges == {}
        with pytest.raises(RequestError, match="keep_factors"):
            plan.evidence.matrix(0, WEIGHTS[0])
        assert method.prepare_(decoder, windows, plan) == {}
        assert all(torch.equal(weight, before[name]) for name, weight in decoder.model.named_parameters())
        assert method.final_gate() == 1
    assert quick().final_gate() == quick(merge="none", absorb="map").final_gate() == 0


@pytest.mark.parametrize("merge", ["sign", "none"])
def test_absorb_comes_before_the_merge(decoder: Decoder, windows: TokenBatches, merge: Any) -> None:
    method = quick(absorb="projection", absorb_alpha=0.3, merge=merge)
    twin = Decoder(copy.deepcopy(decoder.model))
    plan = method.plan(decoder, windows, drop=2)
    report = method.prepare_(decoder, windows, plan)
    assert list(report) == (["absorb", "merge"] if merge == "sign" else ["absorb"])
    absorb_(twin, plan.dropped, windows, form="projection", alpha=0.3)
    if merge == "sign":
        merge_layers_(twin, plan.merges, plan.evidence, keep=0.2)
    for one, other in zip(decoder.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(one, other)


# ---- settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"merge": "signs"}, "merge is one of none, sign, sign-igia, not 'signs'"),
        ({"reduction": "sum"}, "reduction is one of squares, norm, not 'sum'"),
        ({"absorb": "yes"}, "absorb is one of map, projection, not 'yes'"),
        ({"gradients": "none"}, "gradients is one of lora, full, not 'none'"),
        ({"keep": 0.0}, "keep is the share of a weight's entries that is merged, not 0"),
        ({"keep": 1.2}, "not 1.2"),
        ({"keep": math.nan}, "not nan"),
        ({"merged_layers": -1}, "merged_layers must be 0 or more, not -1"),
        ({"absorb_alpha": -0.1}, r"absorb_alpha must be 0 or more, not -0\.1"),
        ({"absorb_alpha": math.nan}, "absorb_alpha must be 0 or more, not nan"),
        ({"scoring_steps": 2}, "scoring_steps is a count of 3 or more"),
        ({"scoring_rank": 0}, "scoring_rank must be above 0, not 0"),
    ],
)
def test_setting_that_makes_no_sense_is_refused_with_its_value(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        GradPruner(**wrong)


def test_defaults_are_the_published_ones() -> None:
    published = {
        "gradients": "lora", "scoring_rank": 8, "scoring_alpha": 32, "scoring_rate": 1e-4, "scoring_warmup": 0.03,
        "scoring_weight_decay": 0.1, "scoring_batch": 4, "reduction": "squares", "merge": "sign", "keep": 0.2,
        "merged_layers": 3, "absorb": None,
    }  # fmt: skip
    assert published.items() <= GradPruner().options().items()
    assert GradPruner().num_scoring_steps(4000) == 40


def test_cost_counts_the_tokens_that_are_run(decoder: Decoder, windows: TokenBatches) -> None:
    seen = [0]

    def count(_m: Any, _a: Any, kwargs: dict[str, Any]) -> None:
        seen[0] += kwargs["input_ids"].numel()

    method = quick(scoring_batch=5, scoring_steps=3)
    handle = decoder.model.register_forward_pre_hook(count, with_kwargs=True)
    method.plan(decoder, windows, drop=2)
    handle.remove()
    probes = 8 * (1 + 3)  # the accumulation looks for the layers; the loss is tried three times
    assert method.cost(6, 2, windows).choose_tokens == pytest.approx(2.3 * (seen[0] - probes))
