"""`prune` end to end on the tiny checkpoint, and what is left where it is stopped on the way."""

from __future__ import annotations

import errno
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import secateur as sc
from secateur import pipeline, stages, text_workbench
from secateur.data import evaluation_windows
from secateur.errors import OutputError, PlanError, RequestError, TrainingDivergedError, WriteError
from secateur.evaluation.perplexity import perplexity
from secateur.loading import load_model, load_tokenizer
from secateur.methods import METHODS, Method
from secateur.methods.elder import Elder
from secateur.methods.gradpruner import GradPruner
from secateur.methods.laco import Laco
from secateur.methods.shortgpt import ShortGPT
from secateur.pipeline import Pruned, Target, TextSettings, prune, score
from secateur.plan import PruningPlan
from secateur.report.page import load_run, report_page
from secateur.surgery.files import cut_checkpoint

FEW = {"first_steps": 2, "round_steps": 1, "joint_steps": 3, "steps": 2, "gate_sequences": 3, "sequences": 3}


def quick(name: str, **settings: Any) -> Method:
    known = METHODS[name].__dataclass_fields__
    return METHODS[name](**{key: value for key, value in {**FEW, **settings}.items() if key in known})


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextSettings:
    """Four hundred different sentences, about 20 kB, and others to measure on."""
    folder = tmp_path_factory.mktemp("text")
    lines = [f"Sentence {n} says that {n} times {n} is {n * n}, and nothing else.\n\n" for n in range(500)]
    (folder / "train.txt").write_text("".join(lines[:400]))
    (folder / "test.txt").write_text("".join(lines[400:]))
    return TextSettings(
        data=str(folder / "train.txt"), eval_data=str(folder / "test.txt"),
        sequence_length=32, num_sequences=8, num_eval_sequences=6, batch_size=4,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _quick_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generations and speed have tests of their own."""
    monkeypatch.setattr(prune, "__kwdefaults__", {**prune.__kwdefaults__, "speed": False, "prompts": ()})


@pytest.fixture(params=METHODS)
def pruned(request: pytest.FixtureRequest, tiny_checkpoint: Path, text: TextSettings, tmp_path: Path) -> Pruned:
    return prune(
        tiny_checkpoint, method=quick(request.param), text=text, target=Target(drop=2), out=tmp_path / "out", seed=3
    )


# ---- the whole thing ---------------------------------------------------------------------------------------------------


def test_written_checkpoint_is_complete_and_its_record_agrees_with_it(
    pruned: Pruned, tiny_checkpoint: Path, text: TextSettings
) -> None:
    out = pruned.path
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "generation_config.json"):
        assert (out / name).is_file(), name
    record = json.loads((out / "secateur" / "record.json").read_text())
    plan = PruningPlan.load(out / "secateur" / "plan.json")
    assert (out / "secateur" / "report.html").read_text() == report_page([load_run(out)])

    # every field that the design lists
    assert record.keys() >= {
        "secateur_version", "command", "model", "method", "data", "dropped", "scores", "metrics", "timings",
        "peak_memory_bytes", "seed", "versions",
    }  # fmt: skip
    assert record["model"].keys() >= {"id", "revision", "config_sha256", "num_layers", "num_parameters"}
    assert record["method"].keys() >= {"name", "options"}
    assert record["data"].keys() >= {"spec", "sequences", "tokens", "fingerprint"}
    assert record["model"]["id"] == str(tiny_checkpoint)
    assert record["model"]["num_layers"] == 6
    assert record["secateur_version"] == sc.__version__
    assert record["data"]["tokens"] == 8 * 32
    assert record["seed"] == 3
    assert record["peak_memory_bytes"] > 1e6
    assert {"load", "choose", "cut and prove", "measure dense", "measure pruned"} <= record["timings"].keys()
    assert tuple(record["dropped"]) == plan.dropped == pruned.plan.dropped
    assert record["method"]["name"] == plan.method
    assert len(record["scores"]) == 6

    # what was measured is what lies on the disk
    dense, small = (AutoModelForCausalLM.from_pretrained(path) for path in (tiny_checkpoint, out))
    tokenizer = AutoTokenizer.from_pretrained(out)
    windows = evaluation_windows(str(text.eval_data), tokenizer, sequence_length=32, num_sequences=6)
    for name, model in (("dense", dense), ("pruned", small)):
        assert record["metrics"][name]["perplexity"] == pytest.approx(perplexity(model, windows).perplexity, rel=1e-5)
        assert record["metrics"][name]["num_parameters"] == sum(weight.numel() for weight in model.parameters())
    assert small.config.num_hidden_layers == len(small.model.layers) == 4
    assert small.config.use_cache == dense.config.use_cache

    prepared = record["preparation"] is not None
    assert prepared == METHODS[plan.method].prepares
    if not prepared:
        for new, old in enumerate(plan.kept):
            for name, weight in small.model.layers[new].named_parameters():
                assert torch.equal(weight, dense.model.layers[old].get_parameter(name))
    assert list(out.parent.iterdir()) == [out]


def test_perplexity_before_and_after_the_cut_agree_where_layers_had_faded(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path
) -> None:
    method = quick("elder", absorb=None, fade_over=1.0, steps=4)
    record = prune(tiny_checkpoint, method=method, text=text, target=Target(drop=2), out=tmp_path / "o").record
    before, after = record["preparation"]["perplexity_before_cut"], record["metrics"]["pruned"]["perplexity"]
    assert before == pytest.approx(after, rel=1e-5)


@pytest.mark.parametrize("name", ["elder", "random"])
def test_same_seed_twice_gives_the_same_bytes(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, name: str
) -> None:
    digests = []
    for run in range(2):
        torch.manual_seed(run)
        out = tmp_path / str(run)
        prune(tiny_checkpoint, method=quick(name), text=text, target=Target(drop=2), out=out, seed=7)
        digests.append(
            [hashlib.sha256((out / file).read_bytes()).hexdigest() for file in ("model.safetensors", "config.json")]
        )
    assert digests[0] == digests[1]


def test_given_layers_are_those_that_go(tiny_checkpoint: Path, text: TextSettings, tmp_path: Path) -> None:
    result = prune(tiny_checkpoint, method="shortgpt", text=text, target=Target(layers=(4, 1)), out=tmp_path / "o")
    assert result.plan.dropped == (1, 4)
    assert result.plan.method == "given"
    assert result.record["scores"] is None
    small = AutoModelForCausalLM.from_pretrained(result.path)
    dense = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    for new, old in enumerate((0, 2, 3, 5)):
        assert torch.equal(small.model.layers[new].mlp.up_proj.weight, dense.model.layers[old].mlp.up_proj.weight)


@pytest.mark.parametrize("name", ["laco", "gradpruner"])
@pytest.mark.parametrize("target", [Target(layers=(4, 1, 0)), Target(drop=3)], ids=["given", "chosen"])
def test_plan_in_the_written_checkpoint_applied_by_cut_gives_its_weights_byte_for_byte(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, name: str, target: Target
) -> None:
    method = Laco() if name == "laco" else GradPruner(scoring_steps=3)
    result = prune(
        tiny_checkpoint, method=method, text=text, target=target, out=tmp_path / "o", speed=False, prompts=()
    )
    plan = PruningPlan.load(result.path / "secateur" / "plan.json")
    report = cut_checkpoint(tiny_checkpoint, tmp_path / "cut", plan)
    assert report.num_folded > 0
    found, expected = (load_file(path / "model.safetensors") for path in (tmp_path / "cut", result.path))
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("share", [0.9, 0.6, 0.45])
def test_target_params_drops_the_fewest_layers_that_reach_it(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, share: float
) -> None:
    target = Target(target_params=share)
    record = prune(tiny_checkpoint, method="random", text=text, target=target, out=tmp_path / "o").record
    dense, small = record["metrics"]["dense"]["num_parameters"], record["metrics"]["pruned"]["num_parameters"]
    per_layer = (dense - small) / len(record["dropped"])
    assert small <= share * dense < small + per_layer


def test_target_params_out_of_reach_is_refused_with_what_is_left(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path
) -> None:
    target = Target(target_params=0.05)
    with pytest.raises(PlanError, match=r"cannot get down to 5 % of the parameters: .* choose more"):
        prune(tiny_checkpoint, method="random", text=text, target=target, out=tmp_path / "o")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "nothing says how much goes; give --drop"),
        ({"drop": 2, "layers": (1,)}, "--drop and --layers"),
        ({"drop": 2, "target_params": 0.5}, "--drop and --target-params"),
        ({"target_params": 1.5}, "150 %"),
        ({"target_params": math.nan}, "nan"),
    ],
)
def test_target_must_be_exactly_one(given: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=named):
        Target(**given)


# ---- stopped on the way --------------------------------------------------------------------------------------------------

STAGES = {
    "load": (text_workbench, "load_tokenizer"),
    "preflight": (pipeline, "preflight"),
    "measure": (stages, "perplexity"),
    "choose": (Elder, "plan"),
    "prepare": (Elder, "prepare_"),
    "cut": (stages, "remove_layers_"),
    "save": (stages, "save_checkpoint"),
    "prove": (stages, "prove_checkpoint"),
    "sizes": (text_workbench, "sizes"),
    "record": (pipeline, "run_record"),
    "card": (stages, "model_card"),
}


def stop_after(monkeypatch: pytest.MonkeyPatch, stage: str, error: BaseException) -> None:
    owner, name = STAGES[stage]
    original = getattr(owner, name)

    def run_and_fail(*args: Any, **rest: Any) -> Any:
        original(*args, **rest)
        raise error

    monkeypatch.setattr(owner, name, run_and_fail)


@pytest.mark.parametrize(
    ("stage", "there"), [(stage, False) for stage in STAGES] + [("choose", True), ("save", True), ("card", True)]
)
def test_interrupt_leaves_what_was_there_and_at_most_the_work_beside_it(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, there: bool
) -> None:
    out = tmp_path / "out"
    if there:
        out.mkdir()
        (out / "config.json").write_text("old")
    stop_after(monkeypatch, stage, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        prune(tiny_checkpoint, method=quick("elder"), text=text, target=Target(drop=2), out=out, overwrite=there)
    early = stage in ("load", "preflight", "measure")
    assert {path.name for path in tmp_path.iterdir()} == ({"out"} if there else set()) | (
        set() if early else {"out.work"}
    )
    assert not there or [(path.name, path.read_text()) for path in out.iterdir()] == [("config.json", "old")]


@pytest.mark.parametrize("stage", ["save", "record", "card"])
def test_full_disk_is_a_write_error_and_leaves_nothing_but_the_work(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    stop_after(monkeypatch, stage, OSError(errno.ENOSPC, "No space left on device"))
    full = r"the disk is full: cannot write .*out; it takes about \d.*B, and \d.*B is free; nothing is left there: make room"
    with pytest.raises(WriteError, match=full):
        prune(tiny_checkpoint, method="random", text=text, target=Target(drop=2), out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out.work"]


def test_full_disk_under_the_weights_is_a_write_error_and_leaves_nothing_but_the_work(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError
    from transformers import PreTrainedModel

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(WriteError, match=r"the disk is full: cannot write .*out; it takes about .*make room"):
        prune(tiny_checkpoint, method="random", text=text, target=Target(drop=2), out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out.work"]


def test_diverged_training_saves_the_last_good_model_beside_out(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path
) -> None:
    method = quick("elder", learning_rate=1e39, warmup=0.0, max_grad_norm=0.0, absorb=None, steps=3)
    with pytest.raises(TrainingDivergedError, match=r"saved, all layers in place, to .*out\.last-good"):
        prune(tiny_checkpoint, method=method, text=text, target=Target(drop=2), out=tmp_path / "out")
    kept = tmp_path / "out.last-good"
    assert list(tmp_path.iterdir()) == [kept]
    dense, good = (AutoModelForCausalLM.from_pretrained(path) for path in (tiny_checkpoint, kept))
    for one, other in zip(dense.parameters(), good.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert AutoTokenizer.from_pretrained(kept)("a")["input_ids"]


def test_existing_output_is_refused_before_anything_is_loaded(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text("x")
    stop_after(monkeypatch, "load", AssertionError("loaded"))
    with pytest.raises(OutputError, match="is not empty"):
        prune(tiny_checkpoint, method="random", text=text, target=Target(drop=2), out=tmp_path)
    with pytest.raises(OutputError, match="is not a checkpoint"):
        prune(tiny_checkpoint, method="random", text=text, target=Target(drop=2), out=tmp_path, overwrite=True)


def test_overwrite_replaces_a_checkpoint_wholly(tiny_checkpoint: Path, text: TextSettings, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("config.json", "stale.txt"):
        (out / name).write_text("{}")
    prune(tiny_checkpoint, method="random", text=text, target=Target(drop=2), out=out, overwrite=True)
    assert not (out / "stale.txt").exists()
    assert list(tmp_path.iterdir()) == [out]


# ---- score -------------------------------------------------------------------------------------------------------


def test_score_gives_the_plan_that_prune_carries_out(tiny_checkpoint: Path, text: TextSettings, tmp_path: Path) -> None:
    method = quick("elder", prepare=False)
    plan = score(tiny_checkpoint, method=method, text=text, drop=2, seed=5)
    result = prune(tiny_checkpoint, method=method, text=text, target=Target(drop=2), out=tmp_path / "o", seed=5)
    assert plan.order == result.plan.order
    assert plan.scores == result.plan.scores


@pytest.fixture(autouse=True)
def _nothing_in_the_working_directory(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(folder)
    yield
    assert not list(folder.iterdir())


def test_method_without_settings_can_be_named_or_given() -> None:
    assert METHODS["shortgpt"]() == ShortGPT()


def test_weights_stored_in_bfloat16_are_trained_in_float32_and_written_as_they_were(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path
) -> None:
    """At this rate a step is below half the gap of nearly every bfloat16 weight: trained in 16 bits few would move."""
    half = tmp_path / "half"
    model = load_model(tiny_checkpoint, dtype="bfloat16")
    frequencies = dict(model.named_buffers())["model.rotary_emb.inv_freq"].dtype
    model.save_pretrained(half)
    load_tokenizer(tiny_checkpoint).save_pretrained(half)
    method = quick("elder", absorb=None, learning_rate=1e-4, steps=20, warmup=0.0)
    result = prune(half, method=method, text=text, target=Target(layers=(2,)), out=tmp_path / "out")
    pruned = load_model(result.path)
    assert pruned.dtype is torch.bfloat16
    assert dict(pruned.named_buffers())["model.rotary_emb.inv_freq"].dtype is frequencies is torch.float32
    before = load_model(half).model.layers[0].mlp.up_proj.weight
    moved = (pruned.model.layers[0].mlp.up_proj.weight != before).float().mean().item()
    assert moved > 0.4
