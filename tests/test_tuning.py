"""`tune` end to end on the tiny checkpoint: against its parts put together by hand, and against itself interrupted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from interrupts import stop
from secateur import resumption, stages, task_workbench, tuning, tuning_request
from secateur.data.task import TaskSettings, windows_of
from secateur.decoder import Decoder
from secateur.errors import DataError, OutputError, PlanError, ProofError, RequestError
from secateur.evaluation import similarity
from secateur.evaluation.intervals import paired_difference
from secateur.evaluation.tasks import task_score
from secateur.methods import Run
from secateur.methods.elder import Elder
from secateur.methods.gradpruner import GradPruner
from secateur.methods.shortgpt import ShortGPT
from secateur.plan import PruningPlan
from secateur.progress import Silent
from secateur.request import Pruned, Target
from secateur.resumption import work_directory
from secateur.surgery.live import remove_layers_
from secateur.training import checkpoints, supervised
from secateur.training.igia import IGIACallback
from secateur.training.lora import gradient_checkpointing_quietly
from secateur.training.rows import rows_of
from secateur.training.supervised import FineTuning, fine_tune_
from secateur.tuning import tune

QUICK: dict[str, Any] = {"scoring_steps": 0.4, "scoring_rank": 2, "scoring_rate": 1e-2}
METHOD = GradPruner(**QUICK)
SCORED = 4  # steps, of the eight of a fine-tuning
FEW: dict[str, Any] = {"epochs": 2, "batch_size": 8, "micro_batch": 4, "learning_rate": 3e-3, "lora_rank": 2}
SEED = 5


def settings(train: Any, **more: Any) -> FineTuning:
    return FineTuning(train=train, **FEW | more)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Thirty sums, classified by whether they are even."""
    path = tmp_path_factory.mktemp("task") / "sums.jsonl"
    rows = [{"text": f"{a} and {b}", "label_text": ("even", "odd")[(a + b) % 2]} for a in range(10) for b in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(checkpoint: Path, data: str, out: Path, **options: Any) -> Pruned:
    train = options.pop("train", "full")
    options = {
        "task": TaskSettings(data=data), "target": Target(drop=2), "method": METHOD, "tuning": settings(train),
        "precision": "fp32", "speed": False, "seed": SEED, "command": ["secateur", "tune"], **options,
    }  # fmt: skip
    return tune(checkpoint, out=out, **options)


class ByHand:
    """The parts of `tune`, one after the other, without files between them."""

    def __init__(
        self, checkpoint: Path, data: str, tuned: FineTuning, work: Path, plan: PruningPlan | None = None
    ) -> None:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.task = TaskSettings(data=data).load(tokenizer, SEED)
        self.rows = rows_of(self.task.train, self.model, tokenizer, max_length=tuned.max_length)
        self.windows = windows_of(self.task.train, tokenizer, sequence_length=256, num_sequences=128)
        decoder, about = Decoder(self.model), Run(seed=SEED)
        steps = tuned.num_steps(len(self.rows))
        on_task: dict[str, Any] = {"run": about, "total_steps": steps}
        if plan is None:
            self.plan = METHOD.plan_on_task(decoder, self.rows, self.windows, drop=2, **on_task)
        else:
            self.plan = METHOD.completed(plan, decoder, self.windows, rows=self.rows, **on_task)
        METHOD.prepare_(decoder, self.windows, self.plan, run=about)
        remove_layers_(self.model, self.plan.dropped)
        self.start = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
        self.tuned, self.report = fine_tune_(
            Decoder(self.model), self.rows, settings=tuned, work=work, seed=SEED,
            validate=lambda model: {"score": task_score(model, tokenizer, self.task.validation).value},
        )  # fmt: skip


def probe() -> torch.Tensor:
    return torch.randint(3, 120, (2, 20), generator=torch.Generator().manual_seed(0))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=probe(), use_cache=False).logits
    return found


def dtypes(path: Path) -> set[str]:
    with safe_open(path / "model.safetensors", "pt") as file:
        return {str(file.get_tensor(name).dtype) for name in file.keys()}  # noqa: SIM118  no mapping


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, data: str) -> dict[str, Pruned]:
    """One run of each way to train, shared: do not write into them."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return {train: run(tiny_checkpoint, data, folder / train, train=train) for train in ("full", "lora")}


@pytest.fixture(autouse=True)
def _nothing_in_the_working_directory(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(folder)
    yield
    assert not list(folder.iterdir())


# ---- what is written -------------------------------------------------------------------------------------------------------


def test_full_run_equals_its_parts_put_together_by_hand(
    undisturbed: dict[str, Pruned], tiny_checkpoint: Path, data: str, tmp_path: Path
) -> None:
    result = undisturbed["full"]
    parts = ByHand(tiny_checkpoint, data, settings("full"), tmp_path)
    assert result.plan == parts.plan
    written = AutoModelForCausalLM.from_pretrained(result.path)
    for name, weight in parts.model.named_parameters():
        assert torch.equal(weight, written.get_parameter(name)), name
        assert not torch.equal(weight, parts.start[name]), name
    for field in ("steps", "examples", "validation", "best_step"):
        assert result.record["training"][field] == parts.report[field]


def test_the_samples_are_what_both_models_write_after_the_first_test_prompts(
    undisturbed: dict[str, Pruned], tiny_checkpoint: Path, data: str
) -> None:
    for result in undisturbed.values():
        samples, tokenizer = result.record["generations"], AutoTokenizer.from_pretrained(tiny_checkpoint)
        test = TaskSettings(data=data).load(tokenizer, SEED).test
        assert samples["prompts"] == [example.prompt for example in test][:3]
        adapter = result.path / "adapter"
        models = {
            "dense": AutoModelForCausalLM.from_pretrained(tiny_checkpoint),
            "pruned": AutoModelForCausalLM.from_pretrained(adapter if adapter.exists() else result.path),
        }
        for name, model in models.items():
            ids = [tokenizer(prompt, return_tensors="pt").input_ids for prompt in samples["prompts"]]
            kept = {"do_sample": False, "max_new_tokens": 40, "pad_token_id": 0}
            outputs = [model.generate(each, **kept)[0, each.shape[1] :] for each in ids]
            assert samples[name] == [tokenizer.decode(output, skip_special_tokens=True) for output in outputs]


def test_record_and_plan_say_what_was_done(undisturbed: dict[str, Pruned], tiny_checkpoint: Path, data: str) -> None:
    result = undisturbed["full"]
    out, record = result.path, json.loads((result.path / "secateur" / "record.json").read_text())
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "generation_config.json"):
        assert (out / name).is_file(), name
    assert PruningPlan.load(out / "secateur" / "plan.json") == result.plan
    assert tuple(record["dropped"]) == result.plan.dropped
    assert record["scores"] == list(result.plan.scores or ())
    assert record["method"] == {"name": "gradpruner", "options": METHOD.options()}
    assert {row["layer"]: row["into"] for row in record["preparation"]["merge"]} == result.plan.merges
    assert record["training"]["settings"] == {**FEW, **vars(settings("full"))}
    assert (record["adapter"], record["seed"], record["model"]["id"]) == (False, SEED, str(tiny_checkpoint))
    assert {name: part["examples"] for name, part in record["data"].items()} == {
        "train": 25,
        "validation": 2,
        "test": 3,
    }
    assert record["timings"].keys() == {
        "load", "measure dense", "choose and cut", "fine-tune", "prove", "measure pruned",
    }  # fmt: skip
    # what was measured is what lies on the disk, and the items are the same
    dense, small = (AutoModelForCausalLM.from_pretrained(path) for path in (tiny_checkpoint, out))
    tokenizer = AutoTokenizer.from_pretrained(out)
    test = TaskSettings(data=data).load(tokenizer, SEED).test
    scores = {name: task_score(model, tokenizer, test) for name, model in (("dense", dense), ("pruned", small))}
    for name, model in (("dense", dense), ("pruned", small)):
        assert record["metrics"][name]["task"] == json.loads(json.dumps(scores[name].describe()))
        assert record["metrics"][name]["num_parameters"] == sum(weight.numel() for weight in model.parameters())
        assert record["metrics"][name]["num_layers"] == model.config.num_hidden_layers
    difference = paired_difference(scores["pruned"], scores["dense"])
    assert record["comparison"] == {"dense": dict(zip(("difference", "low", "high"), difference, strict=True))}
    assert small.config.use_cache == dense.config.use_cache
    assert len(small.model.layers) == 4


def test_nothing_but_the_checkpoint_is_left(undisturbed: dict[str, Pruned]) -> None:
    folder = undisturbed["full"].path.parent
    assert sorted(path.name for path in folder.iterdir()) == ["full", "lora"]


def test_saved_adapter_loads_onto_the_saved_base_and_gives_the_trained_models_logits(
    undisturbed: dict[str, Pruned], tiny_checkpoint: Path, data: str, tmp_path: Path
) -> None:
    result = undisturbed["lora"]
    parts = ByHand(tiny_checkpoint, data, settings("lora"), tmp_path)
    expected = logits(parts.tuned)
    base = AutoModelForCausalLM.from_pretrained(result.path)
    for name, weight in base.named_parameters():  # the pruned model as it was before its fine-tuning
        assert torch.equal(weight, parts.start[name]), name
    plain = logits(base)
    with gradient_checkpointing_quietly():
        adapted = PeftModel.from_pretrained(base, result.path / "adapter")
    assert torch.allclose(logits(adapted), expected, atol=1e-5)
    assert (plain - expected).abs().max() > 1e-2
    with gradient_checkpointing_quietly():  # by itself it finds its base
        found = AutoPeftModelForCausalLM.from_pretrained(result.path / "adapter")
    assert torch.allclose(logits(found), expected, atol=1e-5)
    assert result.record["adapter"]
    count = sum(weight.numel() for weight in adapted.parameters())
    assert result.record["metrics"]["pruned"]["num_parameters"] == count


def test_merged_adapters_are_one_plain_checkpoint_with_the_same_logits(
    undisturbed: dict[str, Pruned], tiny_checkpoint: Path, data: str, tmp_path: Path
) -> None:
    with gradient_checkpointing_quietly():
        adapted = AutoPeftModelForCausalLM.from_pretrained(undisturbed["lora"].path / "adapter")
    result = run(tiny_checkpoint, data, tmp_path / "out", train="lora", merge_adapters=True, speed=True)
    assert not (result.path / "adapter").exists()
    assert not result.record["adapter"]
    merged = AutoModelForCausalLM.from_pretrained(result.path)
    assert torch.allclose(logits(merged), logits(adapted), atol=1e-4)
    assert result.record["metrics"]["pruned"]["num_parameters"] == merged.num_parameters()
    for name in ("dense", "pruned"):
        assert result.record["metrics"][name]["prefill_tokens_per_second"] > 0


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, data: str) -> tuple[Path, Pruned]:
    """A checkpoint that is stored in bfloat16, and an undisturbed run on it."""
    folder = tmp_path_factory.mktemp("half")
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    model.to(torch.bfloat16).save_pretrained(folder / "source")
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(folder / "source")
    return folder / "source", run(folder / "source", data, folder / "out")


def test_bfloat16_checkpoint_is_trained_in_float32_and_written_in_bfloat16(
    half: tuple[Path, Pruned], data: str, tmp_path: Path
) -> None:
    source, result = half
    assert dtypes(source) == dtypes(result.path) == {"torch.bfloat16"}
    assert json.loads((result.path / "config.json").read_text())["dtype"] == "bfloat16"
    parts = ByHand(source, data, settings("full"), tmp_path)  # in float32, rounded once at the end
    written = AutoModelForCausalLM.from_pretrained(result.path)
    for name, weight in parts.model.named_parameters():
        assert torch.equal(weight.to(torch.bfloat16), written.get_parameter(name)), name


def test_weights_that_a_method_trains_are_float32_meanwhile_beside_adapters_too(
    half: tuple[Path, Pruned], data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, original = [], Elder.prepare_

    def prepare_(self: Elder, decoder: Decoder, *args: Any, **options: Any) -> dict[str, Any]:
        seen.append({weight.dtype for weight in decoder.model.parameters()})
        return original(self, decoder, *args, **options)

    monkeypatch.setattr(Elder, "prepare_", prepare_)
    method = Elder(joint_steps=2, steps=2, gate_sequences=2)
    result = run(half[0], data, tmp_path / "out", train="lora", method=method)
    assert seen == [{torch.float32}]
    assert dtypes(result.path) == {"torch.bfloat16"}


def test_lora_leaves_a_bfloat16_checkpoint_in_bfloat16(half: tuple[Path, Pruned], data: str, tmp_path: Path) -> None:
    result = run(half[0], data, tmp_path / "out", tuning=settings("lora", max_steps=1))
    assert dtypes(result.path) == {"torch.bfloat16"}


def test_given_layers_are_those_that_go(tiny_checkpoint: Path, data: str, tmp_path: Path) -> None:
    method = GradPruner(merge="none")
    tuned = settings("lora", max_steps=1)
    result = run(tiny_checkpoint, data, tmp_path / "out", tuning=tuned, target=Target(layers=(4, 1)), method=method)
    assert (result.plan.dropped, result.plan.method, result.record["scores"]) == ((1, 4), "given", None)
    assert result.record["preparation"] == {}
    dense, small = (AutoModelForCausalLM.from_pretrained(path) for path in (tiny_checkpoint, result.path))
    for new, old in enumerate((0, 2, 3, 5)):
        for name, weight in small.model.layers[new].named_parameters():
            assert torch.equal(weight, dense.model.layers[old].get_parameter(name))


def test_given_layers_are_merged_by_the_scores_of_the_method_on_the_task(
    tiny_checkpoint: Path, data: str, tmp_path: Path
) -> None:
    tuned = settings("full", max_steps=1)
    result = run(tiny_checkpoint, data, tmp_path / "out", target=Target(layers=(4, 1)), tuning=tuned)
    plan = PruningPlan(num_layers=6, order=(4, 1), method="given")
    parts = ByHand(tiny_checkpoint, data, tuned, tmp_path / "work", plan)
    written = AutoModelForCausalLM.from_pretrained(result.path)
    assert all(torch.equal(weight, written.get_parameter(name)) for name, weight in parts.model.named_parameters())


def test_other_methods_choose_on_windows_of_the_training_text(
    tiny_checkpoint: Path, data: str, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    options = {"method": "shortgpt", "target": Target(drop=0.33), "tuning": settings("full", max_steps=1)}
    result = run(tiny_checkpoint, data, tmp_path / "out", **options)
    train = TaskSettings(data=data).load(tiny_tokenizer, SEED).train
    windows = windows_of(train, tiny_tokenizer, sequence_length=256, num_sequences=128)
    expected = ShortGPT().plan(Decoder(AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval()), windows, drop=2)
    assert result.plan.order == expected.order
    assert list(result.plan.scores or ()) == pytest.approx(list(expected.scores or ()), rel=1e-6)
    assert result.record["method"]["name"] == "shortgpt"


@pytest.fixture(scope="module")
def with_dense(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, data: str) -> Pruned:
    """A run in which the dense model is fine-tuned, too."""
    return run(tiny_checkpoint, data, tmp_path_factory.mktemp("dense") / "out", tune_dense=True)


def test_dense_model_is_fine_tuned_alike_for_comparison(
    with_dense: Pruned, tiny_checkpoint: Path, data: str, tmp_path: Path
) -> None:
    record = with_dense.record
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval()
    task = TaskSettings(data=data).load(tokenizer, SEED)
    rows = rows_of(task.train, model, tokenizer, max_length=1024)
    tuned, report = fine_tune_(
        Decoder(model), rows, settings=settings("full"), work=tmp_path / "work", seed=SEED,
        validate=lambda model: {"score": task_score(model, tokenizer, task.validation).value},
    )  # fmt: skip
    found = record["metrics"]["dense_tuned"]
    assert found["num_layers"] == 6
    assert found["task"] == json.loads(json.dumps(task_score(tuned, tokenizer, task.test).describe()))
    assert found["training"]["best_step"] == report["best_step"]
    assert [entry["loss"] for entry in found["training"]["losses"]] == [entry["loss"] for entry in report["losses"]]
    assert record["comparison"].keys() == {"dense", "dense_tuned"}
    pruned, dense = (record["metrics"][name]["task"]["value"] for name in ("pruned", "dense_tuned"))
    assert record["comparison"]["dense_tuned"]["difference"] == pytest.approx(pruned - dense)


def test_completions_are_judged_by_the_lowest_perplexity(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a in range(8) for b in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tuned = settings("full", epochs=3, learning_rate=3e-2)  # too fast: it gets worse again
    record = run(tiny_checkpoint, str(path), tmp_path / "out", tuning=tuned).record
    task, validation = record["metrics"]["pruned"]["task"], record["training"]["validation"]
    assert (task["metric"], task["greater_is_better"]) == ("perplexity", False)
    assert record["training"]["best_step"] == min(validation, key=lambda entry: entry["score"])["step"]


# ---- interrupted -----------------------------------------------------------------------------------------------------------


EARLY = {
    "load": (tuning_request, "load_model"),
    "measure dense": (task_workbench, "task_score"),
    "choose": (GradPruner, "plan_on_task"),
    "prepare": (GradPruner, "prepare_"),
    "save the start": (resumption, "save_weights"),
}


@pytest.mark.parametrize("phase", EARLY)
def test_interrupt_before_the_cut_is_done_leaves_nothing(
    tiny_checkpoint: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    stop(monkeypatch, *EARLY[phase])
    with pytest.raises(KeyboardInterrupt) as caught:
        run(tiny_checkpoint, data, tmp_path / "new" / "out")
    assert not caught.value.args
    assert not list(tmp_path.iterdir())


def interrupted(checkpoint: Path, data: str, out: Path, **options: Any) -> None:
    """What is there after an interrupt: the work directory alone; and the message says how to go on."""
    with pytest.raises(KeyboardInterrupt, match=r"is kept in .*out\.work; run the same command with --resume"):
        run(checkpoint, data, out, **options)
    assert [path.name for path in out.parent.iterdir()] == ["out.work"]
    assert work_directory(out) == out.parent / "out.work"
    assert not list(work_directory(out).glob(".*"))  # no half of anything


def resumed(checkpoint: Path, data: str, out: Path, expected: Pruned, **options: Any) -> None:
    """The run that goes on must end as the undisturbed did, byte for byte."""
    result = run(checkpoint, data, out, resume=True, **options)
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(expected.path) for path in expected.path.rglob("*") if path.is_file())
    for file in files:
        if file.suffix == ".safetensors" or file.name in ("plan.json", "config.json", "tokenizer.json"):
            assert (out / file).read_bytes() == (expected.path / file).read_bytes(), file
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    for field in ("scores", "dropped", "preparation", "comparison", "data"):
        assert result.record[field] == expected.record[field], field
    for field in ("steps", "validation", "best_step"):
        assert result.record["training"][field] == expected.record["training"][field], field
    assert result.record["metrics"]["pruned"]["task"] == expected.record["metrics"]["pruned"]["task"]


@pytest.mark.parametrize(
    ("train", "owner", "name", "call", "after"),
    [
        ("full", task_workbench, "fine_tune_", 1, False),  # nothing trained yet
        ("full", supervised.Advance, "on_step_end", SCORED + 3, True),  # within the first epoch
        ("lora", supervised.Advance, "on_step_end", SCORED + 6, True),  # within the second
        ("lora", stages, "prove_checkpoint", 1, True),
        ("full", tuning, "write_about", 1, True),  # written, measured, but not in its place
    ],
    ids=["before", "first epoch", "second epoch", "prove", "record"],
)
def test_resumed_run_ends_with_the_bytes_of_the_undisturbed(
    undisturbed: dict[str, Pruned],
    tiny_checkpoint: Path,
    data: str,
    tmp_path: Path,
    train: str,
    owner: Any,
    name: str,
    call: int,
    after: bool,
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop(monkeypatch, owner, name, call=call, after=after)
        interrupted(tiny_checkpoint, data, out, train=train)
    with pytest.MonkeyPatch.context() as monkeypatch:  # what was chosen is not chosen again

        def choose(*_: Any, **__: Any) -> None:
            raise AssertionError("chosen again")

        monkeypatch.setattr(GradPruner, "plan_on_task", choose)
        resumed(tiny_checkpoint, data, out, undisturbed[train], train=train)


def test_there_is_a_whole_checkpoint_from_the_first_on_and_at_most_the_last_and_the_best(
    tiny_checkpoint: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between two checkpoints: the older goes once the newer is whole."""
    original, before, after = checkpoints._mark, [], []

    def mark(folder: Path, *rest: Any) -> None:
        before.append(checkpoints.last_checkpoint(folder.parent))
        original(folder, *rest)
        after.append({path.name for path in folder.parent.glob("checkpoint-*")})
        last = checkpoints.last_checkpoint(folder.parent)
        assert last is not None
        assert last[0] == folder
        best = last[1].best_model_checkpoint
        assert after[-1] == {folder.name, *([Path(best).name] if best else [])}

    monkeypatch.setattr(checkpoints, "_mark", mark)
    run(tiny_checkpoint, data, tmp_path / "out", train="full", checkpoint_minutes=0.0)
    assert before[0] is None
    assert None not in before[1:]
    assert {len(names) for names in after} == {1, 2}, "the best was the last all along"


def test_run_that_is_interrupted_twice_ends_alike(
    undisturbed: dict[str, Pruned], tiny_checkpoint: Path, data: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for call, resume in ((SCORED + 6, False), (2, True)):
        with pytest.MonkeyPatch.context() as monkeypatch:
            stop(monkeypatch, supervised.Advance, "on_step_end", call=call)
            interrupted(tiny_checkpoint, data, out, train="full", resume=resume)
    resumed(tiny_checkpoint, data, out, undisturbed["full"], train="full")


def test_bfloat16_run_is_resumed_in_float32(half: tuple[Path, Pruned], data: str, tmp_path: Path) -> None:
    source, whole = half
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop(monkeypatch, supervised.Advance, "on_step_end", call=SCORED + 6)
        interrupted(source, data, tmp_path / "out")
    resumed(source, data, tmp_path / "out", whole)


def test_interrupted_dense_fine_tuning_is_resumed(
    with_dense: Pruned, tiny_checkpoint: Path, data: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop(monkeypatch, supervised.Advance, "on_step_end", call=6)
        interrupted(tiny_checkpoint, data, out, tune_dense=True)
    assert not (work_directory(out) / "start").exists()
    resumed(tiny_checkpoint, data, out, with_dense, tune_dense=True)
    found, expected = (
        json.loads((path / "secateur" / "record.json").read_text())["metrics"]["dense_tuned"]
        for path in (out, with_dense.path)
    )
    assert found["task"] == expected["task"]
    assert found["training"]["validation"] == expected["training"]["validation"]


def test_checkpoint_in_its_place_stays_until_the_new_one_is_proven(
    tiny_checkpoint: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("old")
    with pytest.raises(OutputError, match="is not empty"):
        run(tiny_checkpoint, data, out)
    stop(monkeypatch, stages, "prove_checkpoint")
    with pytest.raises(KeyboardInterrupt):
        run(tiny_checkpoint, data, out, overwrite=True)
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("config.json", "old")]
    run(tiny_checkpoint, data, out, overwrite=True, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "model.safetensors").is_file()


def test_run_goes_on_only_when_asked_to_and_only_as_it_began(tiny_checkpoint: Path, data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        RequestError, match=r"nothing to resume: .*out\.work holds no unfinished run; leave --resume out"
    ):
        run(tiny_checkpoint, data, out, resume=True)
    assert not list(tmp_path.iterdir())
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop(monkeypatch, task_workbench, "fine_tune_", after=False)
        interrupted(tiny_checkpoint, data, out)
    there = sorted(work_directory(out).rglob("*"))
    with pytest.raises(
        RequestError, match=r"out\.work holds an unfinished run; add --resume to go on with it, or remove"
    ):
        run(tiny_checkpoint, data, out)
    for other, named in (
        ({"tuning": settings("full", epochs=3)}, "tuning"),
        ({"train": "lora"}, "tuning"),
        ({"target": Target(drop=3)}, "target"),
        ({"method": GradPruner()}, "method"),
        ({"method": "shortgpt"}, "method"),
        ({"task": TaskSettings(data=data, num_test=3)}, "task"),
        ({"metric": "perplexity"}, "metric"),
        ({"seed": 6}, "seed"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"precision": "bf16"}, "precision"),
    ):
        with pytest.raises(
            RequestError, match=rf"the unfinished run in .*out\.work had another {named} \(.*\); give the same"
        ):
            run(tiny_checkpoint, data, out, resume=True, **other)
    assert sorted(work_directory(out).rglob("*")) == there


def test_directory_of_somebody_else_in_the_place_of_the_work_is_refused_and_left_alone(
    tiny_checkpoint: Path, data: str, tmp_path: Path
) -> None:
    mine = tmp_path / "out.work" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(OutputError, match=r"out\.work is needed while the run lasts, and holds something else; choose"):
        run(tiny_checkpoint, data, tmp_path / "out")
    assert mine.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out.work"]


def test_answers_are_no_longer_than_asked_for(
    tiny_checkpoint: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[str] = []

    class Scorer:
        def score(self, _reference: str, answer: str) -> dict[str, Any]:
            answers.append(answer)
            return {"rougeL": SimpleNamespace(fmeasure=1.0 / len(answers))}

    monkeypatch.setattr(similarity, "_rouge_scorer", Scorer)
    monkeypatch.setattr(similarity, "_bert_scores", lambda *_: None)
    tuned = settings("lora", max_steps=1)
    result = run(tiny_checkpoint, data, tmp_path / "out", metric="generation", max_new_tokens=3, tuning=tuned)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    assert max(len(tokenizer.encode(answer, add_special_tokens=False)) for answer in answers) == 3
    assert result.record["metrics"]["pruned"]["task"]["metric"] == "rouge_l"


@pytest.fixture(scope="module")
def going_on() -> dict[str, Any]:
    method = GradPruner(**QUICK, scoring_alpha=32, merge="none")
    return {"method": method, "continue_adapters": True, "train": "lora"}


def test_fine_tuning_goes_on_from_the_scorings_adapters_of_the_layers_that_stay(
    tiny_checkpoint: Path, data: str, tmp_path: Path, going_on: dict[str, Any]
) -> None:
    tuned = settings("lora", learning_rate=1e-30)  # it stays where it begins
    options = going_on | {"tuning": tuned, "task": TaskSettings(data=data)}
    result = run(tiny_checkpoint, data, tmp_path / "out", **options)
    # by hand: the scoring is the beginning of a fine-tuning of the dense model, in its order and from its adapters
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    rows = rows_of(TaskSettings(data=data).load(tokenizer, SEED).train, model, tokenizer, max_length=tuned.max_length)
    scoring = FineTuning(
        train="lora",
        lora_rank=2,
        learning_rate=1e-2,
        weight_decay=0.1,
        batch_size=4,
        max_steps=tuned.num_steps(len(rows)),
    )
    stopping = IGIACallback(SCORED, stop=True)
    dense, _ = fine_tune_(
        Decoder(model), rows, settings=scoring, work=tmp_path / "hand", callbacks=[stopping], seed=SEED, save=False
    )
    expected = {name: weight for name, weight in dense.named_parameters() if "lora_" in name}
    written = load_file(result.path / "adapter" / "adapter_model.safetensors")
    kept = [layer for layer in range(6) if layer not in result.plan.dropped]
    assert len(written) == len(expected) * len(kept) // 6
    for name, weight in written.items():
        new = int(name.split(".")[4])
        old = name.replace(f".layers.{new}.", f".layers.{kept[new]}.").replace(".weight", ".default.weight")
        torch.testing.assert_close(weight, expected[old].detach(), rtol=1e-5, atol=1e-8)
        assert "lora_A" in name or weight.any()  # B is 0 where a training begins from nothing


def test_run_that_goes_on_from_the_scorings_adapters_is_resumed_to_the_same_bytes(
    tiny_checkpoint: Path, data: str, tmp_path: Path, going_on: dict[str, Any]
) -> None:
    whole = run(tiny_checkpoint, data, tmp_path / "whole", **going_on)
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop(monkeypatch, task_workbench.TaskWorkbench, "fine_tune_", after=False)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_checkpoint, data, tmp_path / "out", **going_on)
    file = work_directory(tmp_path / "out") / "adapters.safetensors"
    kept, content = load_file(file), file.read_bytes()
    assert kept
    assert all(".lora_" in name for name in kept)
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RequestError, match=r"adapters\.safetensors is damaged"):
        run(tiny_checkpoint, data, tmp_path / "out", resume=True, **going_on)
    file.write_bytes(content)
    result = run(tiny_checkpoint, data, tmp_path / "out", resume=True, **going_on)
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (result.path / file).read_bytes() == (whole.path / file).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "out"}


# ---- what goes wrong -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"target": Target(drop=6)}, PlanError, r"cannot drop 6 of 6 layers; choose 1\.\.5"),
        ({"target": Target(layers=(9,))}, PlanError, r"the model has no layer 9; its layers are 0\.\.5"),
        ({"target": Target(target_params=0.01)}, PlanError, "cannot get down to 1 % of the parameters"),
        ({"method": "gradprune"}, RequestError, "unknown method 'gradprune'; did you mean 'gradpruner'"),
        ({"task": TaskSettings(data="nowhere.jsonl")}, DataError, "nowhere.jsonl"),
        ({"task": TaskSettings(data="EMPTY")}, DataError, "is empty"),
        ({"continue_adapters": True}, RequestError, "continue_adapters is for train lora after a scoring of gradpruner"),
        (
            {"continue_adapters": True, "tuning": settings("lora", lora_rank=3)}, RequestError,
            "the scoring's adapters have rank 2 and alpha 32, the fine-tuning's 3 and 32; choose the same",
        ),
        ({"merge_adapters": True}, RequestError, "full training has no adapters to merge"),
        ({"metric": "acuracy"}, RequestError, "unknown metric 'acuracy'; choose one of auto, accuracy"),
        ({"tuning": settings("full", trainer={"logging_strategy": "no-such"})}, RequestError, "trainer options: .*no-such"),
        ({"tuning": settings("full", max_length=3)}, DataError, "completion ' (even|odd)' has [45] tokens"),
    ],
)  # fmt: skip
def test_wrong_request_is_refused_and_leaves_nothing(
    tiny_checkpoint: Path, data: str, tmp_path: Path, wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    if "task" in wrong and wrong["task"].data == "EMPTY":
        empty = tmp_path / "task" / "empty.jsonl"
        empty.parent.mkdir()
        empty.touch()
        wrong = {"task": TaskSettings(data=str(empty))}
    with pytest.raises(error, match=message) as caught:
        run(tiny_checkpoint, data, tmp_path / "out", **wrong)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"task"}


def test_adapter_that_was_not_written_as_it_was_trained_is_not_handed_over(
    tiny_checkpoint: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PeftModel.save_pretrained

    def spoil(self: Any, directory: Any, **rest: Any) -> None:
        original(self, directory, **rest)
        if Path(directory).name == "adapter":
            with torch.no_grad():
                for name, weight in self.named_parameters():
                    if "lora_B" in name:
                        weight.mul_(2)
            original(self, directory, **rest)
            with torch.no_grad():
                for name, weight in self.named_parameters():
                    if "lora_B" in name:
                        weight.div_(2)

    monkeypatch.setattr(PeftModel, "save_pretrained", spoil)
    with pytest.raises(ProofError, match="the written adapter's logits differ by"):
        run(tiny_checkpoint, data, tmp_path / "out", train="lora")
    assert not (tmp_path / "out").exists()


# ---- what is said -----------------------------------------------------------------------------------------------------------


class Noting(Silent):
    """Somebody who remembers what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_run_says_beforehand_what_it_will_use(tiny_checkpoint: Path, data: str, tmp_path: Path) -> None:
    progress = Noting()
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop(monkeypatch, task_workbench, "task_score", after=False)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_checkpoint, data, tmp_path / "out", progress=progress)
    assert progress.notes[0].startswith("25 training, 2 validation and 3 test examples of about ")
    assert "; 8 steps of fine-tuning on 8; about " in progress.notes[0]
    assert re.search(r"; about 0\.5 GB of memory; about .* tokens/s$", progress.notes[0])
    assert progress.notes[1] == "3 test items are few: differences between models below 67 points will not show"
