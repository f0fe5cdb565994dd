import copy
import json
import logging
import math
import statistics
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from peft import LoraConfig, get_peft_model

from secateur.data.examples import Example, Examples
from secateur.errors import DataError, RequestError
from secateur.evaluation import tasks
from secateur.evaluation.likelihood import LogLikelihood
from secateur.evaluation.tasks import (
    TaskResult,
    choice_accuracy,
    completion_perplexity,
    generation_scores,
    paired_difference,
    task_score,
)


def example(options, label=0):
    return Example(options=tuple(options), label=label)


def task(items, kind="choice"):
    return Examples(items=tuple(items), kind=kind, spec="made up")


CHOICES = task(
    tuple(
        example(tuple((f"{first} and {second}? The answer is", f" {word}") for word in (first, second, "none")), label)
        for label, (first, second) in enumerate([("ham", "spam"), ("a cat", "a hat"), ("up", "down")])
    )
)
COMPLETIONS = task(
    tuple(
        example(((prompt, completion),))
        for prompt, completion in [("One", " two"), ("Red", " is a colour"), ("x", "y")]
    ),
    "completion",
)


def by_hand(model, tokenizer, prompt, completion):
    """Σ ln p of the completion in float64, without padding."""
    model = copy.deepcopy(model).double().eval()
    start = len(tokenizer(prompt)["input_ids"])
    ids = torch.tensor([tokenizer(prompt + completion)["input_ids"]])
    with torch.no_grad():
        predictions = model(ids).logits[0].log_softmax(-1)
    return sum(predictions[place - 1, ids[0, place]].item() for place in range(start, ids.shape[1]))


def greedy(model, tokenizer, prompt, count):
    """Without a cache, without `generate`, without a batch."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        for _ in range(count):
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    return ids[start:]


def state(model):
    return (
        [part.training for part in model.modules()],
        model.generation_config.to_dict(),
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    )


def result(outcomes, *, metric="accuracy", weights=None):
    weights = tuple(weights or [1] * len(outcomes))
    mean = sum(w * x for w, x in zip(weights, outcomes, strict=True)) / sum(weights)
    return TaskResult(
        metric=metric,
        value=math.exp(mean) if metric == "perplexity" else mean,
        interval=(math.nan, math.nan),
        num_items=len(outcomes),
        greater_is_better=metric != "perplexity",
        further={},
        outcomes=tuple(outcomes),
        weights=weights,
    )


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
    assert (score.further["accuracy_norm_low"], score.further["accuracy_norm_high"]) == tasks._wilson(0.5, 2)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_wilson_interval_is_as_published(right, count, low, high):
    """Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3."""
    assert tasks._wilson(right / count, count) == pytest.approx((low, high), abs=5e-5)
    assert tasks._wilson(1 - right / count, count) == pytest.approx((1 - high, 1 - low), abs=5e-5)


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


def test_equal_weights_give_the_standard_error_of_a_mean():
    values = [1.0, 2.5, 4.0, 0.5]
    assert tasks._stderr(tasks._influence(values, [3] * 4)) == pytest.approx(statistics.stdev(values) / 2)


def test_unequal_weights_give_the_standard_error_that_resampling_items_finds():
    draw = torch.Generator().manual_seed(0)
    weights = torch.randint(1, 20, (400,), generator=draw)
    values = torch.randn(400, generator=draw).double() + 5 / weights
    picks = torch.randint(400, (4000, 400), generator=draw)
    means = (weights * values)[picks].sum(1) / weights[picks].sum(1)
    error = tasks._stderr(tasks._influence(values.tolist(), weights.tolist()))
    assert error == pytest.approx(means.std().item(), rel=0.05)


def test_one_item_has_no_interval_and_a_broken_model_no_crash(tiny_model, tiny_tokenizer):
    one = task(COMPLETIONS.items[:1], "completion")
    assert all(map(math.isnan, completion_perplexity(tiny_model, tiny_tokenizer, one).interval))
    torch.nn.init.constant_(tiny_model.model.norm.weight, 1e6)
    assert completion_perplexity(tiny_model, tiny_tokenizer, COMPLETIONS).value == math.inf
    torch.nn.init.constant_(tiny_model.model.norm.weight, math.nan)
    assert math.isnan(completion_perplexity(tiny_model, tiny_tokenizer, COMPLETIONS).value)
    assert choice_accuracy(tiny_model, tiny_tokenizer, CHOICES).value == 0


# ---- two models -------------------------------------------------------------------------------------------------------


def test_the_paired_difference_is_the_mean_of_the_items_differences():
    a, b = [1.0, 1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 1.0]
    differences = [x - y for x, y in zip(a, b, strict=True)]
    margin = 1.959964 * statistics.stdev(differences) / math.sqrt(5)
    assert paired_difference(result(a), result(b)) == pytest.approx((0.2, 0.2 - margin, 0.2 + margin), rel=1e-6)
    assert paired_difference(result(a), result(a)) == (0, 0, 0)


def test_the_difference_of_perplexities_is_as_sure_as_resampling_items_finds():
    draw = torch.Generator().manual_seed(0)
    weights = torch.randint(1, 20, (400,), generator=draw)
    hard = torch.rand(400, generator=draw).double() * 3
    a, b = (hard + torch.rand(400, generator=draw).double() * noise for noise in (0.5, 0.2))
    picks = torch.randint(400, (4000, 400), generator=draw)
    resampled = [((weights * x)[picks].sum(1) / weights[picks].sum(1)).exp() for x in (a, b)]
    spread = (resampled[0] - resampled[1]).std().item()
    results = [result(x.tolist(), metric="perplexity", weights=weights.tolist()) for x in (a, b)]
    difference, low, high = paired_difference(*results)
    assert difference == results[0].value - results[1].value
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.05)
    assert difference - low == pytest.approx(high - difference)


def test_results_that_do_not_pair_are_refused():
    with pytest.raises(RequestError, match="cannot compare accuracy with rouge_l"):
        paired_difference(result([1.0]), result([1.0], metric="rouge_l"))
    with pytest.raises(RequestError, match=r"other items \(1 and 2\)"):
        paired_difference(result([1.0]), result([1.0, 0.0]))


# ---- generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 50])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rouge_is_of_greedy_continuations_whatever_the_batches_and_the_padding_side(
    tiny_model, tiny_tokenizer, monkeypatch, batch_size, side
):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.padding_side = side
    tiny_model.generation_config.eos_token_id = None
    texts = []
    monkeypatch.setattr(tasks, "_bert_scores", lambda written, wanted: texts.extend(written))
    expected = [tokenizer.decode(greedy(tiny_model, tokenizer, item.prompt, 7)) for item in COMPLETIONS]
    tiny_model.train()
    tiny_model.generation_config.do_sample = True
    before = state(tiny_model)
    score = generation_scores(tiny_model, tokenizer, COMPLETIONS, max_new_tokens=7, batch_size=batch_size)
    assert texts == expected
    assert state(tiny_model) == before
    assert (score.metric, score.num_items, score.greater_is_better) == ("rouge_l", 3, True)


def test_the_end_of_a_text_ends_it_for_that_prompt_alone(tiny_model, tiny_tokenizer, monkeypatch):
    written = [greedy(tiny_model, tiny_tokenizer, item.prompt, 7) for item in COMPLETIONS]
    end = written[0][3]
    expected = [tiny_tokenizer.decode(ids[: ids.index(end)] if end in ids else ids) for ids in written]
    assert len({len(text) for text in expected}) > 1
    texts = []
    monkeypatch.setattr(tasks, "_bert_scores", lambda written, wanted: texts.extend(written))
    tiny_model.generation_config.eos_token_id = [end]
    generation_scores(tiny_model, tiny_tokenizer, COMPLETIONS, max_new_tokens=7)
    assert texts == expected


@pytest.mark.parametrize(
    ("text", "f1"),
    [
        ("police kill the gunman", 3 / 4),
        ("the gunman kill police", 2 / 4),
        ("Police killed the gunman, at last.", 2 * (4 / 6) * 1 / (4 / 6 + 1)),
        ("", 0.0),
    ],
)
def test_rouge_l_is_as_published(monkeypatch, tiny_tokenizer, text, f1):
    """The first two: Lin 2004, "ROUGE", section 3.1; the third has 4 of its 6 words, and all 4 wanted, in order."""
    monkeypatch.setattr(tasks, "_continuations", lambda *args, **kwargs: ([text, text], 0))
    monkeypatch.setattr(tasks, "_bert_scores", lambda *_: None)
    item = example((("Then", " police killed the gunman"),))
    score = generation_scores(None, tiny_tokenizer, task((item, item), "completion"))
    assert score.value == score.further["rouge_l"] == pytest.approx(f1)
    assert score.further["bertscore"] is None
    assert score.interval == pytest.approx((f1, f1))


def test_the_special_token_that_ends_an_answer_is_not_a_word_of_it(monkeypatch, tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    monkeypatch.setattr(tasks, "_continuations", lambda *args, **kwargs: (["an answer"], 0))
    monkeypatch.setattr(tasks, "_bert_scores", lambda *_: None)
    assert generation_scores(None, tokenizer, task((example((("p", "an answer<|im_end|>\n"),)),))).value == 1


def test_with_bertscore_the_value_is_the_mean_of_the_two(monkeypatch, tiny_tokenizer):
    class BERTScorer:
        def __init__(self, lang):
            assert lang == "en"

        def score(self, texts, references):
            torch.rand(3)  # a model that is being loaded draws
            assert (texts, references) == (["police kill the gunman", ""], [" police killed the gunman"] * 2)
            return torch.zeros(2), torch.zeros(2), torch.tensor([0.95, 0.5])

    library = ModuleType("bert_score")
    library.BERTScorer = BERTScorer
    monkeypatch.setitem(sys.modules, "bert_score", library)
    monkeypatch.setattr(tasks, "_continuations", lambda *args, **kwargs: (["police kill the gunman", ""], 0))
    item = example((("Then", " police killed the gunman"),))
    before = torch.get_rng_state().tolist()
    score = generation_scores(None, tiny_tokenizer, task((item, item), "completion"))
    assert torch.get_rng_state().tolist() == before
    assert score.metric == "rouge_l_bertscore"
    assert score.outcomes == pytest.approx((0.85, 0.25))
    assert score.value == pytest.approx(0.55)
    assert (score.further["rouge_l"], score.further["bertscore"]) == pytest.approx((0.375, 0.725))


def test_without_bertscore_one_line_says_why_and_only_once(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "bert_score", None)
    tasks._say_without_bert_score.cache_clear()
    caplog.set_level(logging.WARNING)
    assert tasks._bert_scores(["a"], ["b"]) is None
    assert tasks._bert_scores(["a"], ["b"]) is None
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("BERTScore is left out")
    assert "bert_score" in caplog.messages[0]


def test_without_rouge_score_the_remedy_is_said_before_anything_is_written(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(RequestError, match="pip install rouge-score"):
        generation_scores(None, None, COMPLETIONS)


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


def test_prompts_are_cut_to_leave_room_to_write(tiny_model, tiny_tokenizer, monkeypatch):
    tiny_model.generation_config.eos_token_id = None
    texts = []
    monkeypatch.setattr(tasks, "_bert_scores", lambda written, wanted: texts.extend(written))
    items = task((example((("abcdefgh", " x"),)),), "completion")
    score = generation_scores(tiny_model, tiny_tokenizer, items, max_new_tokens=4, max_length=7)
    assert texts == [tiny_tokenizer.decode(greedy(tiny_model, tiny_tokenizer, "fgh", 4))]
    assert score.further["num_cut"] == 1


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
    with pytest.raises(RequestError, match=r"cannot write 512 tokens in a context of 512; choose 1\.\.511"):
        generation_scores(tiny_model, tiny_tokenizer, COMPLETIONS, max_new_tokens=512)
    with pytest.raises(RequestError, match="choose 1 or more of each"):
        generation_scores(tiny_model, tiny_tokenizer, COMPLETIONS, max_new_tokens=0)
