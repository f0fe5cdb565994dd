"""How good a model is at a task: accuracy over options, perplexity of completions, scores of what it writes.

Accuracies are those of lm-evaluation-harness 0.4: `acc` by log-likelihood, `acc_norm` by log-likelihood a character (see
`prompts` for its way with tokens). Of generation GradPruner (arXiv 2601.19503) reports the mean of ROUGE-L and BERTScore F1.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from secateur.data.prompts import context_length, encode_prompts, padded
from secateur.decoder import unwrapped
from secateur.errors import DataError, RequestError
from secateur.evaluation.generation import greedy_settings, settings_lent
from secateur.evaluation.inference import inference, input_device
from secateur.evaluation.likelihood import autocast, log_likelihoods
from secateur.loading import quiet_transformers
from secateur.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from secateur.data.examples import Examples

__all__ = [
    "Metric",
    "TaskResult",
    "choice_accuracy",
    "completion_perplexity",
    "generation_scores",
    "paired_difference",
    "task_score",
]

logger = logging.getLogger(__name__)

Metric = Literal["auto", "accuracy", "perplexity", "generation"]

_SILENT = Silent()
_Z = 1.959963984540054  # of the normal distribution's middle 95 %
_BATCH_SIZE = 16
_GENERATION_BATCH_SIZE = 4


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One figure of a model on a task, how sure it is, and each item's share in it."""

    metric: str
    """`accuracy`, `perplexity`, `rouge_l`, or `rouge_l_bertscore` for the mean of the two."""

    value: float
    """The figure: the weighted mean of `outcomes`, or exp of it for perplexity."""

    interval: tuple[float, float]
    """Its 95 % interval over items; NaN where one item says nothing about others."""

    num_items: int
    """Items scored."""

    greater_is_better: bool
    """Whether the better of two models has the larger value."""

    further: dict[str, float | None]
    """What else was measured; None for what could not be."""

    outcomes: tuple[float, ...] = field(repr=False)
    """One number an item, in their order: 1 right and 0 wrong, nats a token, or the score."""

    weights: tuple[int, ...] = field(repr=False)
    """What each item counts for: the tokens of its completion for perplexity, else 1."""

    def describe(self) -> dict[str, Any]:
        """What a record says about this result: everything but the items."""
        return {
            "metric": self.metric,
            "value": self.value,
            "interval": list(self.interval),
            "num_items": self.num_items,
            "greater_is_better": self.greater_is_better,
            **self.further,
        }


def task_score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    metric: Metric = "auto",
    *,
    batch_size: int | None = None,
    max_length: int | None = None,
    max_new_tokens: int = 128,
    precision: torch.dtype | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """The figure that suits the task.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        examples: the items.
        metric: `accuracy`, `perplexity` of the right completion or `generation`; `auto` is accuracy where there are
            options to choose from, else perplexity.
        batch_size: sequences a batch; None means the metric's own default.
        max_length: tokens a sequence has at most; None means the model's context.
        max_new_tokens: the most tokens a continuation has, for `generation`.
        precision: autocast dtype; the weights' own if None.
        progress: told of each sequence.

    Raises:
        RequestError: if there is no such metric, or as the metric's own function says.
    """
    if metric == "auto":
        metric = "accuracy" if examples.kind == "choice" else "perplexity"
    if metric == "generation":
        return generation_scores(
            model,
            tokenizer,
            examples,
            max_new_tokens=max_new_tokens,
            batch_size=_GENERATION_BATCH_SIZE if batch_size is None else batch_size,
            max_length=max_length,
            precision=precision,
            progress=progress,
        )
    if metric not in ("accuracy", "perplexity"):
        raise RequestError(f"unknown metric '{metric}'; choose one of auto, accuracy, perplexity, generation")
    score = choice_accuracy if metric == "accuracy" else completion_perplexity
    return score(
        model,
        tokenizer,
        examples,
        batch_size=_BATCH_SIZE if batch_size is None else batch_size,
        max_length=max_length,
        precision=precision,
        progress=progress,
    )


def choice_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    *,
    batch_size: int = _BATCH_SIZE,
    max_length: int | None = None,
    precision: torch.dtype | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """The share of items whose right option is the one that the model finds most likely, with a Wilson interval.

    The option with the largest log-likelihood of its completion wins, the first of equals; an item with a NaN counts as
    wrong. `further` has `accuracy_norm`, for which log-likelihoods are divided by the characters of the completion,
    its interval, what guessing would give, and how many items had a prompt cut.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        examples: items with two options or more.
        batch_size: sequences a batch.
        max_length: tokens a sequence has at most; None means the model's context.
        precision: autocast dtype; the weights' own if None.
        progress: told of each sequence.

    Raises:
        DataError: if there is no item, an item has fewer than two options, or a completion has no tokens or too many.
    """
    for number, example in enumerate(_at_least_one(examples), start=1):
        if len(example.options) < 2:
            raise DataError(f"item {number} has one option; give two or more to choose from, or ask for perplexity")
    scored = iter(
        log_likelihoods(
            model,
            tokenizer,
            [option for example in examples for option in example.options],
            batch_size=batch_size,
            max_length=max_length,
            precision=precision,
            progress=progress,
            description="scoring options",
        )
    )
    outcomes, outcomes_norm, num_cut = [], [], 0
    for example in examples:
        options = list(islice(scored, len(example.options)))
        nats = [option.nats for option in options]
        # lm-eval counts the choice's characters, without the one space that it puts before it.
        characters = [len(completion.removeprefix(" ")) or 1 for _, completion in example.options]
        outcomes.append(_is_right(nats, example.label))
        outcomes_norm.append(
            _is_right([part / count for part, count in zip(nats, characters, strict=True)], example.label)
        )
        num_cut += any(option.cut for option in options)
    count = len(outcomes)
    accuracy, accuracy_norm = sum(outcomes) / count, sum(outcomes_norm) / count
    low_norm, high_norm = _wilson(accuracy_norm, count)
    return TaskResult(
        metric="accuracy",
        value=accuracy,
        interval=_wilson(accuracy, count),
        num_items=count,
        greater_is_better=True,
        further={
            "accuracy_norm": accuracy_norm,
            "accuracy_norm_low": low_norm,
            "accuracy_norm_high": high_norm,
            "chance": math.fsum(1 / len(example.options) for example in examples) / count,
            "num_cut": num_cut,
        },
        outcomes=tuple(outcomes),
        weights=(1,) * count,
    )


def completion_perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    *,
    batch_size: int = _BATCH_SIZE,
    max_length: int | None = None,
    precision: torch.dtype | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """Perplexity = exp(−1/N Σ ln p(completion | prompt)) of the right completions, with N the tokens of all of them.

    The interval is that of the mean nats a token, a ratio of two sums over items, taken through exp.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer; perplexities of different tokenizers do not compare.
        examples: the items.
        batch_size: sequences a batch.
        max_length: tokens a sequence has at most; None means the model's context.
        precision: autocast dtype; the weights' own if None.
        progress: told of each sequence.

    Raises:
        DataError: if there is no item, or a completion has no tokens or too many.
    """
    scored = log_likelihoods(
        model,
        tokenizer,
        [(example.prompt, example.completion) for example in _at_least_one(examples)],
        batch_size=batch_size,
        max_length=max_length,
        precision=precision,
        progress=progress,
        description="scoring completions",
    )
    outcomes = tuple(-item.nats / item.num_tokens for item in scored)
    weights = tuple(item.num_tokens for item in scored)
    nll = -sum(item.nats for item in scored) / sum(weights)
    stderr = _stderr(_influence(outcomes, weights))
    return TaskResult(
        metric="perplexity",
        value=_exp(nll),
        interval=(_exp(nll - _Z * stderr), _exp(nll + _Z * stderr)),
        num_items=len(scored),
        greater_is_better=False,
        further={
            "nll": nll,
            "stderr": stderr,
            "num_tokens": sum(weights),
            "num_cut": sum(item.cut for item in scored),
        },
        outcomes=outcomes,
        weights=weights,
    )


def generation_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    *,
    max_new_tokens: int = 128,
    batch_size: int = _GENERATION_BATCH_SIZE,
    max_length: int | None = None,
    precision: torch.dtype | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """How near the greedy continuations of the prompts come to the right completions.

    ROUGE-L F1 is that of `rouge-score`, without stemming: it sees lower-case ASCII letters and digits only. BERTScore F1
    is that of `bert-score` with its model for English, not rescaled; where the library or its model is missing it is
    None and the value is ROUGE-L alone, under a metric name that says so. Prompts are taken as they are.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        examples: the items.
        max_new_tokens: the most tokens a continuation has; the end of a text ends it.
        batch_size: prompts a batch.
        max_length: tokens of prompt and continuation at most; None means the model's context.
        precision: autocast dtype; the weights' own if None.
        progress: told of each prompt.

    Raises:
        DataError: if there is no item.
        RequestError: if `rouge-score` is not installed, or the context has no room for a prompt.
    """
    rouge = _rouge_scorer()
    texts, num_cut = _continuations(
        model,
        tokenizer,
        [example.prompt for example in _at_least_one(examples)],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        max_length=max_length,
        precision=precision,
        progress=progress or _SILENT,
    )
    references = [_without_special(tokenizer, example.completion) for example in examples]
    scores = [float(rouge.score(*pair)["rougeL"].fmeasure) for pair in zip(references, texts, strict=True)]
    bert_scores = _bert_scores(texts, references)
    outcomes = scores if bert_scores is None else [sum(pair) / 2 for pair in zip(scores, bert_scores, strict=True)]
    count = len(outcomes)
    value = sum(outcomes) / count
    margin = _Z * _stderr(_influence(outcomes, (1,) * count))
    return TaskResult(
        metric="rouge_l" if bert_scores is None else "rouge_l_bertscore",
        value=value,
        interval=(value - margin, value + margin),
        num_items=count,
        greater_is_better=True,
        further={
            "rouge_l": sum(scores) / count,
            "bertscore": None if bert_scores is None else sum(bert_scores) / count,
            "num_cut": num_cut,
        },
        outcomes=tuple(outcomes),
        weights=(1,) * count,
    )


def paired_difference(a: TaskResult, b: TaskResult) -> tuple[float, float, float]:
    """`a.value − b.value` of two models on the same items, and its 95 % interval (difference, low, high).

    Items that are hard for both do not widen it, as they do in each model's own interval. Normal approximation of the
    items' differences; for perplexity their effect on each value to first order (the delta method).

    Raises:
        RequestError: if the two are of other metrics or other items.
    """
    if a.metric != b.metric:
        raise RequestError(f"cannot compare {a.metric} with {b.metric}; score both models by one metric")
    if a.weights != b.weights:
        raise RequestError(
            f"the results are of other items ({a.num_items} and {b.num_items}) or another tokenizer; "
            "score both models on the same"
        )
    effects = [
        _influence(result.outcomes, result.weights) * (result.value if result.metric == "perplexity" else 1.0)
        for result in (a, b)
    ]
    difference = a.value - b.value
    margin = _Z * _stderr(effects[0] - effects[1])
    return difference, difference - margin, difference + margin


# ---- generation -------------------------------------------------------------------------------------------------------


def _continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    max_length: int | None,
    precision: torch.dtype | None,
    progress: Progress,
) -> tuple[list[str], int]:
    """The greedy continuation of each prompt, in batches padded on the left, and how many prompts were cut."""
    if min(batch_size, max_new_tokens) < 1:
        raise RequestError(f"cannot write {max_new_tokens} tokens in batches of {batch_size}; choose 1 or more of each")
    limit = context_length(model, max_length)
    if limit <= max_new_tokens:
        raise RequestError(f"cannot write {max_new_tokens} tokens in a context of {limit}; choose 1..{limit - 1}")
    encoded = encode_prompts(model, tokenizer, prompts, limit=limit - max_new_tokens)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index].context), reverse=True)
    settings = greedy_settings(model, tokenizer, max_new_tokens)
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    texts = [""] * len(prompts)
    inner = unwrapped(model)  # a wrapper of peft would give it these settings, and not take them back
    with (
        inference(model),
        autocast(model, precision),
        settings_lent(inner, settings),
        progress.track("writing continuations", len(prompts)) as advance,
    ):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            input_ids, mask = padded([encoded[index].context for index in batch], left=True)  # (batch, tokens)
            device = input_device(model)
            output = model.generate(
                input_ids=input_ids.to(device), attention_mask=mask.to(device), generation_config=settings
            )  # (batch, tokens and new tokens)
            for index, row in zip(batch, output[:, input_ids.shape[1] :].tolist(), strict=True):
                written = row[: next((place for place, token in enumerate(row) if token in ends), len(row))]
                texts[index] = str(tokenizer.decode(written, skip_special_tokens=True))
            advance(len(batch))
    return texts, sum(item.cut for item in encoded)


def _without_special(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text as it is decoded: a chat template ends a completion with a token that would count as a word."""
    for token in tokenizer.added_tokens_decoder.values():
        text = text.replace(token.content, "") if token.special else text
    return text


def _rouge_scorer() -> Any:
    try:
        module = import_module("rouge_score.rouge_scorer")
    except ImportError as error:
        raise RequestError("ROUGE-L needs a library that is not installed: pip install rouge-score") from error
    return module.RougeScorer(["rougeL"])


def _bert_scores(texts: list[str], references: list[str]) -> list[float] | None:
    """BERTScore F1 of each text; None, and a word about why, where it cannot be had."""
    try:
        with quiet_transformers(), torch.random.fork_rng():
            scorer = import_module("bert_score").BERTScorer(lang="en")
            scores: list[float] = scorer.score(texts, references)[2].tolist()
    except Exception as error:  # of any type: no library, no network for its model, no room for it
        logger.debug("BERTScore failed", exc_info=True)
        _say_without_bert_score(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return None
    return scores


@cache  # once a reason, however many models are scored
def _say_without_bert_score(reason: str) -> None:
    logger.warning("BERTScore is left out, and generation scored by ROUGE-L alone (%s)", reason)


# ---- figures ----------------------------------------------------------------------------------------------------------


def _at_least_one(examples: Examples) -> Examples:
    if not len(examples):
        raise DataError("there are no items to score; give one or more")
    return examples


def _is_right(scores: Sequence[float], label: int) -> float:
    """1 if the option `label` has the largest score, the first of equals; 0 if not, or if a score is NaN."""
    if any(map(math.isnan, scores)):
        return 0.0
    return float(scores.index(max(scores)) == label)


def _wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` (Wilson 1927), which also near 0 and 1 stays within them."""
    spread = _Z * _Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def _influence(outcomes: Sequence[float], weights: Sequence[int]) -> Tensor:
    """How far each item takes the mean Σwx/Σw from where it is: w·(x − mean)/Σw, (items,) float64."""
    values, shares = torch.tensor(outcomes, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)
    shares = shares / shares.sum()
    return shares * (values - (shares * values).sum())


def _stderr(influence: Tensor) -> float:
    """The ratio estimator's standard error; of equal weights that of a mean, s/√n. NaN for one item."""
    count = len(influence)
    return math.sqrt(count / (count - 1) * influence.square().sum().item()) if count > 1 else math.nan


def _exp(value: float) -> float:
    return torch.tensor(value, dtype=torch.float64).exp().item()  # infinite where math.exp would fail
