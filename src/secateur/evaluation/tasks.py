"""How good a model is at a task: accuracy over options, perplexity of completions, likeness of what it writes.

Accuracies are those of lm-evaluation-harness 0.4: `acc` by log-likelihood, `acc_norm` by log-likelihood a character (see
`prompts` for its way with tokens).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from secateur.errors import DataError, RequestError
from secateur.evaluation.intervals import TaskResult, Z, at_least_one, influence, standard_error, wilson
from secateur.evaluation.likelihood import log_likelihoods
from secateur.evaluation.similarity import generation_scores
from secateur.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from secateur.data.examples import Examples

__all__ = ["BATCH_SIZE", "Metric", "check_metric", "choice_accuracy", "completion_perplexity", "suitable", "task_score"]

Metric = Literal["auto", "accuracy", "perplexity", "generation"]

BATCH_SIZE = 16
"""Sequences a batch, where nothing else is asked for."""


def check_metric(metric: Metric, examples: Examples) -> None:
    """Make sure, before a model is loaded, that examples can be scored so.

    Raises:
        RequestError: if there is no such metric, or it asks for what these examples do not have.
    """
    if metric not in get_args(Metric):
        raise RequestError(f"unknown metric '{metric}'; choose one of {', '.join(get_args(Metric))}")
    if metric == "accuracy" and examples.kind != "choice":
        raise RequestError(
            f"{examples.spec} has nothing to choose among, so there is no accuracy; choose the metric perplexity or generation"
        )
    if metric == "generation" and examples.kind == "text":
        raise RequestError(f"{examples.spec} is plain text, without prompts to answer; choose the metric perplexity")


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
        RequestError: as `check_metric` says, or the metric's own function.
    """
    check_metric(metric, examples)
    metric = suitable(metric, examples)
    common: dict[str, Any] = {"max_length": max_length, "precision": precision, "progress": progress}
    if batch_size is not None:
        common["batch_size"] = batch_size
    if metric == "generation":
        return generation_scores(model, tokenizer, examples, max_new_tokens=max_new_tokens, **common)
    score = choice_accuracy if metric == "accuracy" else completion_perplexity
    return score(model, tokenizer, examples, **common)


def suitable(metric: Metric, examples: Examples) -> Metric:
    """The metric that is measured: `auto` is accuracy where there are options to choose from, else perplexity."""
    if metric != "auto":
        return metric
    return "accuracy" if examples.kind == "choice" else "perplexity"


def choice_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    *,
    batch_size: int = BATCH_SIZE,
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
    for number, example in enumerate(at_least_one(examples), start=1):
        if len(example.options) < 2:
            raise DataError(f"item {number} has one option; give two or more to choose from, or ask for perplexity")
    scored = iter(
        log_likelihoods(
            model, tokenizer, [option for example in examples for option in example.options], batch_size=batch_size,
            max_length=max_length, precision=precision, progress=progress, description="scoring options",
        )
    )  # fmt: skip
    outcomes, outcomes_norm, num_cut = [], [], 0
    for example in examples:
        options = list(islice(scored, len(example.options)))
        # lm-eval counts the choice's characters, without the one space that it puts before it.
        characters = [len(completion.removeprefix(" ")) or 1 for _, completion in example.options]
        outcomes.append(_is_right([option.nats for option in options], example.label))
        norm = [option.nats / count for option, count in zip(options, characters, strict=True)]
        outcomes_norm.append(_is_right(norm, example.label))
        num_cut += any(option.cut for option in options)
    count = len(outcomes)
    accuracy, accuracy_norm = sum(outcomes) / count, sum(outcomes_norm) / count
    low_norm, high_norm = wilson(accuracy_norm, count)
    return TaskResult(
        metric="accuracy",
        value=accuracy,
        interval=wilson(accuracy, count),
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
    batch_size: int = BATCH_SIZE,
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
        model, tokenizer, [(example.prompt, example.completion) for example in at_least_one(examples)],
        batch_size=batch_size, max_length=max_length, precision=precision, progress=progress,
        description="scoring completions",
    )  # fmt: skip
    outcomes = tuple(-item.nats / item.num_tokens for item in scored)
    weights = tuple(item.num_tokens for item in scored)
    nll = -sum(item.nats for item in scored) / sum(weights)
    stderr = standard_error(influence(outcomes, weights))
    return TaskResult(
        metric="perplexity",
        value=_exp(nll),
        interval=(_exp(nll - Z * stderr), _exp(nll + Z * stderr)),
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


def _is_right(scores: Sequence[float], label: int) -> float:
    """1 if the option `label` has the largest score, the first of equals; 0 if not, or if a score is NaN."""
    if any(map(math.isnan, scores)):
        return 0.0
    return float(scores.index(max(scores)) == label)


def _exp(value: float) -> float:
    return torch.tensor(value, dtype=torch.float64).exp().item()  # infinite where math.exp would fail
