"""The task files in benchmarks/tasks ask what the harness's own ask, letter by letter, and score alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'secateur[eval]'")

import lm_eval
from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from secateur.errors import DataError
from secateur.evaluation.harness import HarnessTasks

TASKS = Path(__file__).parent.parent / "benchmarks" / "tasks"

# name → the harness's file, where it is evaluated there and here, and rows of both: (official, local)
PIQA = [
    ({"goal": "How do I 'boil' an \"egg\"?", "sol1": "In water ", "sol2": "in  the sun", "label": 0},
     {"question": "How do I 'boil' an \"egg\"?", "choices": ["In water ", "in  the sun"], "label": 0}),
    ({"goal": "dresser {{x}}", "sol1": "[a, b]", "sol2": "3", "label": 1},
     {"question": "dresser {{x}}", "choices": ["[a, b]", "3"], "label": 1}),
    ({"goal": "Ein Ei über Öl", "sol1": "kochen", "sol2": "braten.", "label": 1},
     {"question": "Ein Ei über Öl", "choices": ["kochen", "braten."], "label": 1}),
]  # fmt: skip
ARC = [
    ({"question": "Which is a gas?", "choices": {"text": ["air", "iron", "ice", "oil"], "label": list("ABCD")}, "answerKey": "A"},
     {"question": "Which is a gas?", "choices": ["air", "iron", "ice", "oil"], "label": 0}),
    ({"question": "How many?\nCount.", "choices": {"text": ["1", "2", "3"], "label": ["1", "2", "3"]}, "answerKey": "3"},
     {"question": "How many?\nCount.", "choices": ["1", "2", "3"], "label": 2}),
    ({"question": "What's up?", "choices": {"text": ["it's", "a", "b", "c", "d"], "label": list("ABCDE")}, "answerKey": "D"},
     {"question": "What's up?", "choices": ["it's", "a", "b", "c", "d"], "label": 3}),
]  # fmt: skip
HELLASWAG = [
    ({"activity_label": "Care", "ctx_a": "[header] How to paint [title] Cover all. [step] Protect it.", "ctx_b": "make sure",
      "endings": ["Of it.", "that  so.", "to go [title] on [not] so.", " by. "], "label": "3"},
     {"question": "Care: How to paint. Cover all. Protect it. Make sure", "label": 3,
      "choices": ["Of it.", "that so.", "to go. on [not] so.", "by."]}),
    ({"activity_label": "Roof", "ctx_a": "A man is on a roof.", "ctx_b": "he", "endings": ["sits.", "stands.", "runs.", "is."],
      "label": "1"},
     {"question": "Roof: A man is on a roof. He", "choices": ["sits.", "stands.", "runs.", "is."], "label": 1}),
    ({"activity_label": "Mail", "ctx_a": "A letter.", "ctx_b": "", "endings": ["One.", "Two.", "Three.", "Four."], "label": "0"},
     {"question": "Mail: A letter.", "choices": ["One.", "Two.", "Three.", "Four."], "label": 0}),
]  # fmt: skip
WINOGRANDE = [
    ({"sentence": "Ann beat Bea, so _ won.", "option1": "Ann", "option2": "Bea", "answer": "1"},
     {"sentence": "Ann beat Bea, so _ won.", "option1": "Ann", "option2": "Bea", "choices": ["Ann", "Bea"], "label": 0}),
    ({"sentence": "The cup and the _'s lid.", "option1": "pot", "option2": "pan", "answer": "2"},
     {"sentence": "The cup and the _'s lid.", "option1": "pot", "option2": "pan", "choices": ["pot", "pan"], "label": 1}),
    ({"sentence": "_ is 12", "option1": "This", "option2": "That", "answer": "2"},
     {"sentence": "_ is 12", "option1": "This", "option2": "That", "choices": ["This", "That"], "label": 1}),
]  # fmt: skip
PUBMEDQA = [
    ({"QUESTION": f"Does it help {n}?", "CONTEXTS": ["It did.", "p < 0.05"][: n + 1], "final_decision": answer},
     {"question": f"Does it help {n}?", "context": "\n".join(["It did.", "p < 0.05"][: n + 1]),
      "choices": ["yes", "no", "maybe"], "label": n})
    for n, answer in enumerate(("yes", "no", "maybe"))
]  # fmt: skip
MEDMCQA = [
    ({"question": f"Which nerve {n}?", "opa": "ulnar", "opb": " radial", "opc": "", "opd": "none", "cop": n},
     {"question": f"Which nerve {n}?", "choices": ["ulnar", " radial", "", "none"], "label": n})
    for n in range(4)
]  # fmt: skip
CASES: dict[str, tuple[str, str, str, list[Any]]] = {
    "piqa": ("piqa/piqa.yaml", "validation", "validation", PIQA),
    "arc_easy": ("arc/arc_easy.yaml", "test", "test", ARC),
    "arc_challenge": ("arc/arc_challenge.yaml", "test", "test", ARC),
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation", "test", HELLASWAG),
    "winogrande": ("winogrande/default.yaml", "validation", "validation", WINOGRANDE),
    "pubmedqa": ("pubmedqa/pubmedqa.yaml", "test", "test", PUBMEDQA),
    "medmcqa": ("medmcqa/medmcqa.yaml", "validation", "test", MEDMCQA),
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with the local rows of every task; those of training differ from those of evaluation."""
    for name, (_, _, _, rows) in CASES.items():
        (tmp_path / name).mkdir()
        for split in ("train", "validation", "test"):
            local = [row for _, row in (rows[::-1] if split == "train" else rows)]
            (tmp_path / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in local))
    monkeypatch.setenv("SECATEUR_DATA", str(tmp_path))
    return tmp_path


def own_task(file: str, rows: list[Any]) -> Any:
    """The harness's own task file, on these rows instead of those on the hub."""
    config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / file)
    config.pop("tag", None)
    official = [row for row, _ in rows]
    splits = {"train": official[::-1], "validation": official, "test": official}
    built = DatasetDict({name: Dataset.from_list(part) for name, part in splits.items()})
    return ConfigurableTask(config={**config, "dataset_path": None, "custom_dataset": lambda **_: built})


def requests_of(task: Any, num_fewshot: int) -> list[tuple[str, str]]:
    task.set_config(key="num_fewshot", value=num_fewshot)
    task.set_fewshot_seed(seed=7)
    task.build_all_requests(rank=0, world_size=1)
    return [request.args for request in sorted(task.instances, key=lambda request: (request.doc_id, request.idx))]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("num_fewshot", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_requests_and_scores_are_those_of_the_harness_on_the_same_rows(name: str, num_fewshot: int) -> None:
    file, _, split, rows = CASES[name]
    (local,) = HarnessTasks.load([f"local_{name}"], include_path=TASKS).tasks.values()
    own = own_task(file, rows)
    requests = requests_of(local, num_fewshot)
    assert requests == requests_of(own, num_fewshot)
    assert len(requests) == sum(len(row["choices"]) for _, row in rows)
    assert local.higher_is_better() == own.higher_is_better()
    assert (local.config.test_split or local.config.validation_split) == split
    for here, there in zip(local.eval_docs, own.eval_docs, strict=True):
        for best in range(
            len(here["choices"])
        ):  # whichever choice the model finds most likely, the verdict is the same
            answers = [(-1.0 - (place != best), False) for place in range(len(here["choices"]))]
            verdict = local.process_results(here, answers)
            assert verdict == own.process_results(there, answers)
            if name != "winogrande":  # there acc_norm has no place, and acc is of equal endings
                assert verdict["acc"] == (best == here["label"])


@pytest.mark.usefixtures("data")
def test_the_group_is_the_five_tasks_of_the_published_mean() -> None:
    tasks = HarnessTasks.load(["local_zero_shot"], include_path=TASKS).tasks
    five = ["piqa", "winogrande", "hellaswag", "arc_easy", "arc_challenge"]
    assert list(tasks) == [f"local_{name}" for name in five]


def test_a_missing_data_folder_or_file_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "piqa" / "validation.jsonl").unlink()
    with pytest.raises(DataError, match=r"there is no .*piqa/validation\.jsonl; SECATEUR_DATA is the folder"):
        HarnessTasks.load(["local_piqa"], include_path=TASKS)
    monkeypatch.delenv("SECATEUR_DATA")
    with pytest.raises(DataError, match=r"set SECATEUR_DATA to the folder that holds piqa/validation\.jsonl"):
        HarnessTasks.load(["local_piqa"], include_path=TASKS)
