import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from made_up_tasks import COMPLETIONS, example, state, task
from peft import LoraConfig, get_peft_model

from secateur.errors import DataError, RequestError
from secateur.evaluation import tasks
from secateur.evaluation.intervals import wilson
from secateur.evaluation.likelihood import LogLikelihood
from secateur.evaluation.similarity import generation_scores
from secateur.evaluation.tasks import choice_accuracy, completion_perplexity, task_score

CHOICES = task(
    tuple(
        example(tuple((f"{first} and {second}? The answer is", f" {word}") for word in (first, second, "none")), label)
        for label, (first, second) in enumerate([("ham", "spam"), ("a cat", "a hat"), ("up", "down")])
    )
)


def by_hand(model, tokenizer, prompt, completion):
    """Σ ln p of the completion in float64, without padding."""
    model = copy.deepcopy(model).double().eval()
    start = len(tokenizer(prompt)["input_ids"])
    ids = torch.tensor([tokenizer(prompt + completion)["input_ids"]])
    with torch.no_grad():
        predictions = model(ids).logits[0].log_softmax(-1)
    return sum(predictions[place - 1, ids[0, place]].item() for place in range(start, ids.shape[1]))


def scored_as(monkeypatch, *nats):
    """The log-likelihoods that the model is said to give, in the order of all options."""
    found = [LogLikelihood(nats=value, num_tokens=1, cut=False) for value in nats]
    monkeypatch.setattr(tasks, "log_likelihoods", lambda *args, **kwargs: found)


# ---- accuracy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_accuracy_is_that_of_log_likelihoods_by_hand(tiny_model, tiny_tokenizer, batch_size):
    right, right_norm = [], []
    for item in CHOICES:
        sums = [by_hand(tiny_model, tiny_tokenizer, *option) for option in item.options]
        lengths = [len(completion) - 1 for _, completion in item.options]
        right.append(sums.index(max(sums)) == item.label)
        norm = [part / length for part, length in zip(sums, lengths, strict=True)]
        right_norm.append(norm.index(max(norm)) == item.label)
    score = choice_accuracy(tiny_model, tiny_tokenizer, CHOICES, batch_size=batch_size)
    assert score.outcomes == tuple(map(float, right))
    assert (score.metric, score.value, score.num_items) == ("accuracy", sum(right) / 3, 3)
    assert score.further["accuracy_norm"] == sum(right_norm) / 3
    assert score.further["chance"] == pytest.approx(1 / 3)
    assert score.greater_is_better


def test_the_first_of_equals_wins_and_nan_never(monkeypatch):
    options = (("p", " a"), ("p", " b"))
    scored_as(monkeypatch, -1.0, -1.0, -1.0, -1.0, math.nan, -1.0, -1.0, math.nan, -math.inf, -math.inf)
    items = task(tuple(example(options, label) for label in (0, 1, 1, 0, 0)))
    assert choice_accuracy(None, None, items).outcomes == (1.0, 0.0, 0.0, 0.0, 1.0)


def test_the_normalised_accuracy_is_by_characters_without_the_space_before(monkeypatch):
    scored_as(monkeypatch, -3.0, -7.0, -3.0, -7.0)
    spaced = example((("p", " abc"), ("p", " abcdefgh")), 1)  # −3/3 < −7/8
    close = example((("p ", "abc"), ("p ", "abcdef")), 1)  # −3/3 > −7/6
    score = choice_accuracy(None, None, task((spaced, close)))
    assert (score.value, score.further["accuracy_norm"]) == (0.0, 0.5)
    assert (score.further["accuracy_norm_low"], score.further["accuracy_norm_high"]) == wilson(0.5, 2)


# ---- perplexity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_perplexity_is_that_of_all_tokens_by_hand(tiny_model, tiny_tokenizer, batch_size):
    nats = [-by_hand(tiny_model, tiny_tokenizer, item.prompt, item.completion) for item in COMPLETIONS]
    tokens = [4, 12, 1]
    score = completion_perplexity(tiny_model, tiny_tokenizer, COMPLETIONS, batch_size=batch_size)
    assert score.value == pytest.approx(math.exp(sum(nats) / 17), rel=1e-5)
    assert score.outcomes == pytest.approx([part / count for part, count in zip(nats, tokens, strict=True)], rel=1e-5)
    assert (score.weights, score.further["num_tokens"]) == (tuple(tokens), 17)
    assert score.interval[0] < score.value < score.interval[1]
    assert not score.greater_is_better


def test_one_item_has_no_interval_and_a_broken_model_no_crash(tiny_model, tiny_tokenizer):
    one = task(COMPLETIONS.items[:1], "completion")
    assert all(map(math.isnan, completion_perplexity(tiny_model, tiny_tokenizer, one).interval))
    torch.nn.init.constant_(tiny_model.model.norm.weight, 1e6)
    assert completion_perplexity(tiny_model, tiny_tokenizer, COMPLETIONS).value == math.inf
    torch.nn.init.constant_(tiny_model.model.norm.weight, math.nan)
    assert math.isnan(completion_perplexity(tiny_model, tiny_tokenizer, COMPLETIONS).value)
    assert choice_accuracy(tiny_model, tiny_tokenizer, CHOICES).value == 0


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # peft asks for it
def test_a_model_wrapped_by_peft_scores_as_itself_and_keeps_its_settings(tiny_model, tiny_tokenizer):
    tiny_model.generation_config.do_sample = True
    plain = [
        task_score(tiny_model, tiny_tokenizer, items, metric, max_new_tokens=5)
        for items, metric in ((CHOICES, "accuracy"), (COMPLETIONS, "perplexity"), (COMPLETIONS, "generation"))
    ]
    wrapped = get_peft_model(tiny_model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    before = state(tiny_model)
    for items, expected in zip((CHOICES, COMPLETIONS, COMPLETIONS), plain, strict=True):
        metric = "generation" if expected.metric == "rouge_l" else expected.metric
        assert task_score(wrapped, tiny_tokenizer, items, metric, max_new_tokens=5).value == pytest.approx(
            expected.value
        )
    assert state(tiny_model) == before
    assert wrapped.generation_config is tiny_model.generation_config


def test_training_goes_on_after_a_score(tiny_model, tiny_tokenizer):
    for metric in ("accuracy", "generation"):
        task_score(tiny_model, tiny_tokenizer, CHOICES, metric, max_new_tokens=2)
        ids = torch.arange(3, 9)[None]
        tiny_model(ids, labels=ids).loss.backward()


# ---- either -----------------------------------------------------------------------------------------------------------


def test_the_metric_suits_the_task(tiny_model, tiny_tokenizer):
    settings = {"batch_size": 2, "max_new_tokens": 3}
    assert task_score(tiny_model, tiny_tokenizer, CHOICES, **settings).metric == "accuracy"
    assert task_score(tiny_model, tiny_tokenizer, CHOICES, "perplexity").metric == "perplexity"
    assert task_score(tiny_model, tiny_tokenizer, COMPLETIONS).metric == "perplexity"
    assert task_score(tiny_model, tiny_tokenizer, replace(COMPLETIONS, kind="text")).metric == "perplexity"
    assert task_score(tiny_model, tiny_tokenizer, COMPLETIONS, "generation", **settings).metric.startswith("rouge_l")
    with pytest.raises(RequestError, match="unknown metric 'f1'; choose one of auto, accuracy"):
        task_score(tiny_model, tiny_tokenizer, COMPLETIONS, "f1")


@pytest.mark.parametrize(
    ("metric", "kind", "message"),
    [
        ("accuracy", "completion", "nothing to choose among, so there is no accuracy; choose the metric perplexity"),
        ("accuracy", "text", "nothing to choose among"),
        ("generation", "text", "plain text, without prompts to answer; choose the metric perplexity"),
    ],
)
def test_a_metric_that_the_examples_do_not_fit_is_refused_without_a_model(metric, kind, message):
    with pytest.raises(RequestError, match=message):
        task_score(None, None, replace(COMPLETIONS, kind=kind), metric)


def test_a_record_gets_everything_but_the_items(tiny_model, tiny_tokenizer):
    score = choice_accuracy(tiny_model, tiny_tokenizer, CHOICES)
    described = score.describe()
    assert json.loads(json.dumps(described)) == described
    assert list(described)[:5] == ["metric", "value", "interval", "num_items", "greater_is_better"]
    assert described["accuracy_norm"] == score.further["accuracy_norm"]
    assert not {"outcomes", "weights"} & set(described)
    assert "outcomes" not in repr(score)


@pytest.mark.parametrize("score", [choice_accuracy, completion_perplexity, generation_scores])
def test_no_items_are_refused(tiny_model, tiny_tokenizer, score):
    with pytest.raises(DataError, match="no items"):
        score(tiny_model, tiny_tokenizer, task([]))


def test_wrong_requests_are_refused(tiny_model, tiny_tokenizer):
    with pytest.raises(DataError, match="item 1 has one option"):
        choice_accuracy(tiny_model, tiny_tokenizer, COMPLETIONS)
    with pytest.raises(RequestError, match=r"cannot write 512 tokens in a context of 512; .*write 1\.\.511 tokens"):
        generation_scores(tiny_model, tiny_tokenizer, COMPLETIONS, max_new_tokens=512)
    with pytest.raises(RequestError, match="choose 1 or more of each"):
        generation_scores(tiny_model, tiny_tokenizer, COMPLETIONS, max_new_tokens=0)
