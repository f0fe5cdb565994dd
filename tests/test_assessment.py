"""Models side by side: each figure is that of the function it comes from, and what says nothing is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from secateur import assessment
from secateur.assessment import evaluate
from secateur.data import evaluation_windows
from secateur.errors import RequestError
from secateur.evaluation.harness import harness_scores
from secateur.evaluation.perplexity import perplexity
from secateur.progress import Silent

TASKS = """
task: {name}
custom_dataset: !function rows.splits
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{n}}}} and {{{{n}}}} are"
doc_to_target: label
doc_to_choice: [many, few, "{name}"]
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
ROWS = """
from datasets import Dataset, DatasetDict
def splits(**_):
    return DatasetDict({"test": Dataset.from_list([{"n": n, "label": n % 3} for n in range(9)])})
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"Sentence {n} says that {n} times {n} is {n * n}.\n\n" for n in range(60)))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tasks")
    (place / "rows.py").write_text(ROWS)
    for name in ("none", "some"):
        (place / f"{name}.yaml").write_text(TASKS.format(name=name))
    return place


@pytest.mark.parametrize("stride", [None, 20])
def test_perplexity_is_that_of_each_model_on_the_same_windows(
    tiny_checkpoint: Path, tiny_tokenizer: Any, text: str, stride: int | None
) -> None:
    rows = evaluate([tiny_checkpoint] * 2, data=text, sequence_length=32, num_sequences=6, stride=stride)
    windows = evaluation_windows(text, tiny_tokenizer, sequence_length=32, num_sequences=6, stride=stride)
    expected = perplexity(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), windows)
    for row in rows:
        assert row["perplexity"] == pytest.approx(expected.perplexity, rel=1e-6)
        assert row["nll_stderr"] == pytest.approx(expected.stderr, rel=1e-6)
        assert (row["window"], row["stride"]) == (32, stride or 32)
        assert row["predicted_tokens"] == (6 * 31 if stride is None else 31 + 5 * 20)
        assert "tasks" not in row


@pytest.mark.parametrize(
    ("calibrated_on", "seen"),
    [("text.txt", True), ("alias.txt", True), ("other.txt", False), ("wikitext2", False), (None, False)],
)
def test_a_model_measured_on_the_text_it_was_calibrated_on_is_said_to_be_flattered(
    calibrated_on: str | None, seen: bool, tiny_checkpoint: Path, text: str, tmp_path: Path
) -> None:
    (tmp_path / "alias.txt").symlink_to(text)
    (tmp_path / "other.txt").write_text(Path(text).read_text())
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    spec = {"text.txt": text, "wikitext2": "wikitext2", None: None}.get(
        calibrated_on, str(tmp_path / str(calibrated_on))
    )
    if spec is not None:
        (model / "secateur").mkdir()
        (model / "secateur" / "plan.json").write_text("{}")
        (model / "secateur" / "record.json").write_text(json.dumps({"data": {"spec": spec}}))
    said: list[str] = []

    class Noted(Silent):
        def note(self, message: str) -> None:
            said.append(message)

    evaluate([tiny_checkpoint, model], data=text, sequence_length=32, num_sequences=2, progress=Noted())
    beginning = f"{model} was calibrated on {text}: its perplexity here flatters it"
    assert [line.startswith(beginning) for line in said] == [True] * seen


@pytest.mark.parametrize(("windows", "said"), [(64, ["2 thousand tokens to read, about 2 min"]), (32, [])])
def test_how_long_a_text_takes_is_said_ahead_where_there_is_much_of_it(
    windows: int, said: list[str], tiny_checkpoint: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.assessment.tokens_per_second", lambda *_: 16.0)
    notes: list[str] = []

    class Noted(Silent):
        def note(self, message: str) -> None:
            notes.append(message)

    evaluate([tiny_checkpoint], data=text, sequence_length=32, num_sequences=windows, batch_size=4, progress=Noted())
    assert notes == [f"{tiny_checkpoint}: {line}" for line in said]


def test_tasks_are_those_of_the_harness_with_their_mean(
    tiny_checkpoint: Path, tiny_tokenizer: Any, folder: Path, text: str
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'secateur[eval]'")
    (row,) = evaluate([tiny_checkpoint], tasks=["none", "some"], include_path=folder, data=text, sequence_length=32)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    scores = harness_scores(model, tiny_tokenizer, ["none", "some"], include_path=folder)
    assert row["tasks"] == [score.describe() for score in scores]
    assert row["perplexity"] > 1
    first, second = scores
    assert row["task_mean"] == {
        "value": pytest.approx((first.value + second.value) / 2),
        "stderr": pytest.approx(math.sqrt(first.stderr**2 + second.stderr**2) / 2),
        "num_tasks": 2,
    }


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "nothing to measure; give --data for perplexity, --tasks, or both"),
        ({"data": "TEXT", "limit": 3}, "--limit says nothing without --tasks; give that too, or leave it out"),
        ({"data": "TEXT", "num_fewshot": 0}, "--num-fewshot says nothing without --tasks"),
        ({"data": "TEXT", "include_path": "."}, "--include-path says nothing without --tasks"),
        ({"data": "TEXT", "task_batch_size": 4}, "--task-batch-size says nothing without --tasks"),
        (
            {"tasks": ["none"], "sequence_length": 64},
            "--sequence-length says nothing without --data; give that too, or",
        ),
        ({"tasks": ["none"], "num_sequences": 3}, "--num-sequences says nothing without --data"),
        ({"tasks": ["none"], "batch_size": 3}, "--batch-size says nothing without --data"),
        ({"tasks": ["none"], "stride": 3}, "--stride says nothing without --data"),
        ({"tasks": ["none"], "task_batch_size": 0}, "the batch size of tasks is 0; choose 1 or more"),
        ({"tasks": ["none"], "include_path": "nowhere"}, "nowhere is no folder"),
        ({"data": "TEXT", "stride": 0}, "the stride is 0; choose 1..256"),
        (
            {"data": "TEXT", "sequence_length": 513},
            "fewer than 513 tokens of a window (sequence_length); choose 512 or",
        ),
        ({"data": "TEXT", "stride": 257}, "the stride is 257; choose 1..256"),
    ],
)
def test_what_is_wrong_or_says_nothing_is_refused_before_a_model_is_loaded(
    tiny_checkpoint: Path, text: str, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], says: str
) -> None:
    monkeypatch.setattr(assessment, "load_model", None)
    with pytest.raises(RequestError) as error:
        evaluate([tiny_checkpoint], **{key: text if value == "TEXT" else value for key, value in options.items()})
    assert says in str(error.value)
