"""Tasks through lm-evaluation-harness: the same figures as our own, by hand where ours has none, and nothing left changed."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import math
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

from listening import Listener
from secateur.data.examples import load_examples
from secateur.errors import DataError, RequestError
from secateur.evaluation import harness
from secateur.evaluation.harness import HarnessScore, HarnessTasks, harness_scores, mean_score
from secateur.evaluation.tasks import choice_accuracy

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'secateur[eval]'")

WORDS = ("a cat", "the dog in the yard", "rain", "nothing at all", "two", "a red house on a hill")

CHOICE = """
task: sums
custom_dataset: !function rows.splits
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: label
doc_to_choice: choices
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
GAPS = """
include: sums.yaml
task: gaps
dataset_kwargs: {gaps: true}
doc_to_text: label
doc_to_target: "{{end}}"
doc_to_choice: starts
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
ROLLING = """
include: sums.yaml
task: rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
doc_to_choice: null
metric_list: [{metric: word_perplexity}]
"""
WRITING = """
include: sums.yaml
task: writing
output_type: generate_until
doc_to_choice: null
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["?"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
LETTERS = """
include: sums.yaml
task: letters
doc_to_choice: [A, B, C]
"""
GROUP = "group: both\ntask: [sums, gaps]\n"
ROWS = """
import json, pathlib
from datasets import Dataset, DatasetDict
HERE = pathlib.Path(__file__).parent
def splits(*, gaps=False, **_):
    read = lambda name: Dataset.from_list([json.loads(line) for line in (HERE / name).read_text().splitlines()])
    kind = "gaps-" if gaps else ""
    return DatasetDict({name: read(f"{kind}{name}.jsonl") for name in ("train", "test")})
"""


def sums(count: int, seed: int) -> list[dict]:
    draw = random.Random(seed)  # noqa: S311  (test data)
    return [
        {"question": f"What is {n} times {draw.choice(WORDS)}?", "choices": draw.sample(WORDS, 3), "label": n % 3}
        for n in range(count)
    ]


def gaps(count: int, seed: int) -> list[dict]:
    draw = random.Random(seed)  # noqa: S311  (test data)
    rows = []
    for n in range(count):
        first, second = draw.sample(WORDS, 2)
        end = f"is seen {n} times."
        row = {"sentence": f"Now _ {end}", "option1": first, "option2": second, "answer": str(n % 2 + 1)}
        rows.append({**row, "starts": [f"Now {first}", f"Now {second}"], "end": end, "label": n % 2})
    return rows


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files, and their rows."""
    place = tmp_path_factory.mktemp("tasks")
    files = {
        "sums": CHOICE, "gaps": GAPS, "letters": LETTERS, "rolling": ROLLING, "writing": WRITING, "both": GROUP,
    }  # fmt: skip
    for name, text in files.items():
        (place / f"{name}.yaml").write_text(text)
    (place / "rows.py").write_text(ROWS)
    for name, make in (("", sums), ("gaps-", gaps)):
        for split, count, seed in (("train", 6, 1), ("test", 24, 2)):
            lines = [json.dumps(row) + "\n" for row in make(count, seed)]
            (place / f"{name}{split}.jsonl").write_text("".join(lines))
    return place


# ---- figures ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize(("name", "file"), [("sums", "test.jsonl"), ("gaps", "gaps-test.jsonl")])
def test_accuracies_are_those_of_our_own_choice_accuracy(
    folder, tmp_path, tiny_model, tiny_tokenizer, name, file, batch_size
):
    columns = ("sentence", "option1", "option2", "answer") if name == "gaps" else ("question", "choices", "label")
    rows = rows_of(folder / file)
    own_file = tmp_path / "rows.jsonl"
    own_file.write_text("".join(json.dumps({column: row[column] for column in columns}) + "\n" for row in rows))
    own = choice_accuracy(tiny_model, tiny_tokenizer, load_examples(str(own_file)))
    (score,) = harness_scores(tiny_model, tiny_tokenizer, [name], include_path=folder, batch_size=batch_size)
    assert score.metrics["acc"]["value"] == own.value
    assert 0 < own.value < 1
    assert score.num_items == own.num_items == 24
    if name == "sums":
        assert score.metrics["acc_norm"]["value"] == own.further["accuracy_norm"] != own.value
        assert (score.metric, score.value) == ("acc_norm", own.further["accuracy_norm"])
    else:
        assert (score.metric, score.value) == ("acc", own.value)
    assert score.stderr == pytest.approx(math.sqrt(score.value * (1 - score.value) / 23))
    assert score.greater_is_better


def test_the_limit_takes_the_first_items_and_the_group_both_tasks(folder, tiny_model, tiny_tokenizer):
    rows = rows_of(folder / "test.jsonl")[:5]
    scores = harness_scores(tiny_model, tiny_tokenizer, ["both", "sums"], include_path=folder, limit=5)
    assert [(score.task, score.num_items) for score in scores] == [("sums", 5), ("gaps", 5)]
    right = 0
    for row in rows:
        nats = [by_hand(tiny_model, tiny_tokenizer, f"Question: {row['question']}\nAnswer:", f" {choice}")
                for choice in row["choices"]]  # fmt: skip
        right += nats.index(max(nats)) == row["label"]
    assert scores[0].metrics["acc"]["value"] == pytest.approx(right / 5)


def by_hand(model, tokenizer, prompt: str, completion: str) -> float:
    """Σ ln p of the completion in float64."""
    model = copy.deepcopy(model).double()
    start = len(tokenizer(prompt)["input_ids"])
    ids = tokenizer(prompt + completion)["input_ids"]
    with torch.no_grad():
        predictions = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(predictions[place - 1, ids[place]].item() for place in range(start, len(ids)))


def test_rolling_and_written_answers_are_scored_and_counted(folder, tiny_model, tiny_tokenizer):
    listener = Listener()
    tasks = HarnessTasks.load(["rolling", "writing", "sums"], include_path=folder, limit=4)
    rolling, writing, _ = tasks.score(tiny_model, tiny_tokenizer, batch_size=2, progress=listener)
    questions = [row["question"] for row in rows_of(folder / "test.jsonl")][:4]
    nats = sum(by_hand_after(tiny_model, tiny_tokenizer, question) for question in questions)
    words = sum(len(question.split()) for question in questions)
    assert rolling.metric == "word_perplexity"
    assert rolling.value == pytest.approx(math.exp(-nats / words), rel=1e-5)
    assert not rolling.greater_is_better
    assert (writing.metric, writing.value) == ("exact_match", 0.0)
    tokens = sum(len(tiny_tokenizer(question)["input_ids"]) for question in questions)
    assert sorted(step for step in listener.steps if step[1] in (4, tokens)) == [
        ["answering tasks (requests)", 4, 4], ["answering tasks (tokens)", tokens, tokens],
    ]  # fmt: skip
    assert all(total == counted for _, total, counted in listener.steps)
    assert mean_score([rolling, writing]) is None


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("name", ["sums", "gaps", "letters"])
def test_the_tokens_foretold_are_those_that_the_passes_read(
    folder, tiny_model, tiny_tokenizer, monkeypatch, name, batch_size
):
    from lm_eval.models.huggingface import HFLM

    read: list[int] = []
    call = HFLM._model_call
    monkeypatch.setattr(
        HFLM, "_model_call", lambda self, ids, *rest: read.append(ids.numel()) or call(self, ids, *rest)
    )
    monkeypatch.setattr(HFLM, "max_length", 30)  # some do not fit
    listener = Listener()
    HarnessTasks.load([name], include_path=folder, limit=9).score(
        tiny_model, tiny_tokenizer, batch_size=batch_size, progress=listener
    )
    tokens = sum(read)
    assert listener.steps == [["answering tasks (tokens)", tokens, tokens]]
    assert listener.notes == [f"{9 * (2 if name == 'gaps' else 3)} requests, {tokens:,} tokens to read"]
    if name == "letters":
        assert len(read) == -(-9 // batch_size)  # the three answers of each in one row


def by_hand_after(model, tokenizer, text: str) -> float:
    """Σ ln p of a text after the model's EOS, as the tokenizer has neither BOS nor EOS."""
    ids = tokenizer(text)["input_ids"]
    first = model.config.eos_token_id
    model = copy.deepcopy(model).double()
    with torch.no_grad():
        predictions = model(torch.tensor([[first, *ids]])).logits[0].log_softmax(-1)
    return sum(predictions[place, token].item() for place, token in enumerate(ids))


def test_the_mean_counts_each_task_once_and_adds_variances():
    score = HarnessScore(
        task="a", metric="acc", value=0.5, stderr=0.03, num_items=9, num_fewshot=0, greater_is_better=True, metrics={}
    )
    other = replace(score, task="b", metric="exact_match,strict", value=0.7, stderr=0.04, num_items=900)
    assert mean_score([score, other]) == pytest.approx((0.6, 0.025))  # √(0.03² + 0.04²)/2
    assert mean_score([score]) is None
    assert mean_score([score, replace(other, metric="word_perplexity")]) is None
    assert math.isnan(mean_score([score, replace(other, stderr=math.nan)])[1])


def test_bfloat16_weights_are_scored_in_float32(folder, tiny_model, tiny_tokenizer, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    seen = []
    monkeypatch.setattr(HFLM, "_select_cont_toks", lambda self, logits, contlen, inplen: (
        seen.append(logits.dtype) or logits[inplen - contlen : inplen]))  # fmt: skip
    harness_scores(tiny_model.bfloat16(), tiny_tokenizer, ["sums"], include_path=folder, limit=2)
    assert set(seen) == {torch.float32}


# ---- prompts ---------------------------------------------------------------------------------------------------------------


def test_every_model_gets_the_same_examples_in_its_prompts_and_another_seed_gives_others(
    folder, tiny_model, tiny_tokenizer, monkeypatch
):
    asked: list[list[str]] = []
    made = harness.answering

    def recording(*arguments, **settings):
        answering = made(*arguments, **settings)
        asked.append([])
        loglikelihood = answering.loglikelihood
        answering.loglikelihood = lambda requests: (
            asked[-1].extend(request.args[0] for request in requests) or loglikelihood(requests)
        )
        return answering

    monkeypatch.setattr(harness, "answering", recording)
    tasks = HarnessTasks.load(["sums"], include_path=folder, limit=3, num_fewshot=2, seed=5)
    first, second = (tasks.score(tiny_model, tiny_tokenizer) for _ in range(2))
    assert first == second
    assert asked[0] == asked[1]
    assert first[0].num_fewshot == 2
    train = rows_of(folder / "train.jsonl")
    examples = {f"Question: {row['question']}\nAnswer: {row['choices'][row['label']]}" for row in train}
    for prompt in asked[0]:
        *shown, question = prompt.split("\n\n")
        assert len(shown) == 2
        assert set(shown) <= examples
        assert question.startswith("Question: ")
    harness_scores(tiny_model, tiny_tokenizer, ["sums"], include_path=folder, limit=3, num_fewshot=2, seed=6)
    assert asked[2] != asked[0]


# ---- what is given back ----------------------------------------------------------------------------------------------------


def test_model_tokenizer_generators_and_logging_are_as_before_and_nothing_is_printed(
    folder, tiny_model, tiny_tokenizer, capfd
):
    tiny_model.train()
    tiny_model.model.layers[1].eval()
    tokenizer = copy.deepcopy(tiny_tokenizer)
    logging.getLogger("lm_eval").setLevel(logging.INFO)

    def state():
        return (
            [part.training for part in tiny_model.modules()],
            tokenizer.pad_token,
            torch.get_rng_state().tolist(),
            random.getstate(),
            numpy.random.get_state()[1].tolist(),
            torch.is_grad_enabled(),
            logging.getLogger("lm_eval").level,
            (sys.stdout, sys.stderr),
        )

    before = state()
    harness_scores(tiny_model, tokenizer, ["both", "rolling", "writing"], include_path=folder, limit=2)
    assert state() == before
    assert capfd.readouterr() == ("", "")
    logging.getLogger("lm_eval").setLevel(logging.NOTSET)


# ---- wrong requests --------------------------------------------------------------------------------------------------------


@pytest.fixture
def _own_tasks_only(folder, monkeypatch):
    """The harness's own fifteen thousand files take many seconds to read."""
    import lm_eval.tasks

    real = lm_eval.tasks.TaskManager
    monkeypatch.setattr(
        lm_eval.tasks, "TaskManager", lambda include_path=None, include_defaults=True: real(
            include_path=include_path or folder, include_defaults=False))  # fmt: skip


@pytest.mark.usefixtures("_own_tasks_only")
@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        ([], {}, "no task is named; give one or more"),
        (["sumz"], {}, "unknown task 'sumz'; did you mean 'sums'?"),
        (["sums", "qqqqqq"], {}, "unknown task 'qqqqqq'; `lm-eval ls tasks` lists them"),
        (["sums"], {"limit": 0}, "the limit is 0 items a task; choose 1 or more"),
        (["sums"], {"num_fewshot": -1}, "is -1; choose 0 or more"),
        (["sums"], {"include_path": "nowhere"}, "nowhere is no folder; give a folder of lm-eval task files"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(folder, names, options, says):
    with pytest.raises(RequestError) as error:
        HarnessTasks.load(names, **{"include_path": folder, **options})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_folder_and_a_missing_library_are_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(RequestError, match=r"holds no task files \(\*.yaml\); give a folder"):
        HarnessTasks.load(["sums"], include_path=tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    with pytest.raises(RequestError, match=r"which is not installed: pip install 'secateur\[eval\]'"):
        HarnessTasks.load(["sums"], include_path=folder)


def test_a_batch_of_none_is_refused(folder, tiny_model, tiny_tokenizer):
    with pytest.raises(RequestError, match="the batch size is 0; choose 1 or more"):
        harness_scores(tiny_model, tiny_tokenizer, ["sums"], include_path=folder, batch_size=0)


def test_a_model_and_a_tokenizer_without_any_end_of_text_are_refused(folder, tiny_model, tiny_tokenizer):
    tiny_model.config.eos_token_id = None
    with pytest.raises(RequestError, match="neither tokenizer nor model has an EOS token; give the tokenizer one"):
        harness_scores(tiny_model, tiny_tokenizer, ["sums"], include_path=folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("dataset_kwargs: {gaps: 1}\ntest_split: nowhere", "nowhere"),
        ('doc_to_text: "{{question"', "unexpected end of template"),
        ("custom_dataset: null\ndataset_path: json\ndataset_kwargs: {data_files: no.jsonl}", "no.jsonl"),
    ],
)
def test_a_task_that_does_not_fit_its_data_is_refused_before_a_model_is_needed(folder, change, reason):
    (folder / "broken.yaml").write_text(f"include: sums.yaml\ntask: broken\n{change}\n")
    with pytest.raises(DataError, match="cannot load the task 'broken'; go online for its data") as error:
        HarnessTasks.load(["broken"], include_path=folder)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_more_examples_than_there_are_are_refused(folder):
    with pytest.raises(DataError, match=r"cannot load the task 'sums'.*[Ss]ample larger"):
        HarnessTasks.load(["sums"], include_path=folder, num_fewshot=99)


def test_a_task_that_runs_code_is_refused(folder):
    (folder / "unsafe.yaml").write_text("include: sums.yaml\ntask: unsafe\nunsafe_code: true\n")
    with pytest.raises(RequestError, match="the task 'unsafe' runs code or shows pictures"):
        HarnessTasks.load(["unsafe"], include_path=folder)


def test_a_task_that_says_no_examples_keeps_none(folder):
    (folder / "zero.yaml").write_text("include: sums.yaml\ntask: zero\nnum_fewshot: 0\n")
    tasks = HarnessTasks.load(["zero", "sums"], include_path=folder, num_fewshot=2)
    assert [task.get_config("num_fewshot") for task in tasks.tasks.values()] == [0, 2]


@pytest.mark.parametrize(("name", "reads_all"), [("both", False), ("further", True), ("sums", False), ("piqa", True)])
def test_the_harness_is_read_whole_only_where_the_folder_is_not_enough(folder, tmp_path, monkeypatch, name, reads_all):
    import lm_eval.tasks

    for file in folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "further.yaml").write_text("group: further\ntask: [sums, piqa]\n")
    read = []
    real = lm_eval.tasks.TaskManager
    monkeypatch.setattr(
        lm_eval.tasks, "TaskManager", lambda include_path=None, include_defaults=True: read.append(
            include_defaults) or real(include_path=include_path, include_defaults=False))  # fmt: skip
    listener = Listener()
    harness._task_manager([name], tmp_path, listener)
    assert read == ([False, True] if reads_all else [False])
    assert [note.partition(",")[0] for note in listener.notes] == (
        ["reading the task files of lm-evaluation-harness"] if reads_all else []
    )
