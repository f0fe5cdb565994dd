"""How near what a model writes comes to what it should have written: ROUGE-L and BERTScore.

GradPruner (arXiv 2601.19503) reports the mean of ROUGE-L and BERTScore F1.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from secateur.data.prompts import context_length, encode_prompts, padded
from secateur.decoder import unwrapped
from secateur.errors import RequestError
from secateur.evaluation.generation import greedy_settings, settings_lent
from secateur.evaluation.inference import inference, input_device
from secateur.evaluation.intervals import TaskResult, Z, at_least_one, influence, standard_error
from secateur.evaluation.likelihood import autocast
from secateur.loading import quiet_transformers
from secateur.processes import share_out
from secateur.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from secateur.data.examples import Examples

__all__ = ["continuations", "generation_scores"]

logger = logging.getLogger(__name__)


def generation_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    *,
    max_new_tokens: int = 128,
    batch_size: int = 4,
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
    texts, num_cut = continuations(
        model, tokenizer, [example.prompt for example in at_least_one(examples)], max_new_tokens=max_new_tokens,
        batch_size=batch_size, max_length=max_length, precision=precision, progress=progress or Silent(),
    )  # fmt: skip
    references = [_without_special(tokenizer, example.completion) for example in examples]
    scores = [float(rouge.score(*pair)["rougeL"].fmeasure) for pair in zip(references, texts, strict=True)]
    bert_scores = _bert_scores(texts, references)
    outcomes = scores if bert_scores is None else [sum(pair) / 2 for pair in zip(scores, bert_scores, strict=True)]
    count = len(outcomes)
    value = sum(outcomes) / count
    margin = Z * standard_error(influence(outcomes, (1,) * count))
    return TaskResult(
        metric="rouge_l" if bert_scores is None else "rouge_l_bertscore",
        value=value,
        interval=(value - margin, value + margin),
        greater_is_better=True,
        further={
            "rouge_l": sum(scores) / count,
            "bertscore": None if bert_scores is None else sum(bert_scores) / count,
            "num_cut": num_cut,
        },
        outcomes=tuple(outcomes),
        weights=(1,) * count,
    )


def continuations(
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
    """The greedy continuation of each prompt, in batches padded on the left, and how many prompts were cut.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompts: taken as they are.
        max_new_tokens: the most tokens a continuation has; the end of a text ends it.
        batch_size: prompts a batch.
        max_length: tokens of prompt and continuation at most; None means the model's context.
        precision: autocast dtype; the weights' own if None.
        progress: told of each prompt.

    Raises:
        RequestError: if the context has no room for a prompt.
    """
    if min(batch_size, max_new_tokens) < 1:
        raise RequestError(f"cannot write {max_new_tokens} tokens in batches of {batch_size}; choose 1 or more of each")
    limit = context_length(model, max_length)
    if limit <= max_new_tokens:
        raise RequestError(
            f"cannot write {max_new_tokens} tokens in a context of {limit}; raise max_length as far as the model's context "
            f"goes, or write 1..{limit - 1} tokens"
        )
    encoded = encode_prompts(model, tokenizer, prompts, limit=limit - max_new_tokens)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index].context), reverse=True)
    settings = greedy_settings(model, tokenizer, max_new_tokens)
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    texts = [""] * len(prompts)
    inner = unwrapped(model)  # a wrapper of peft would give it these settings, and not take them back

    def write(batch: list[int]) -> list[tuple[int, str]]:
        input_ids, mask = padded([encoded[index].context for index in batch], left=True)  # (batch, tokens)
        device = input_device(model)
        output = model.generate(
            input_ids=input_ids.to(device), attention_mask=mask.to(device), generation_config=settings
        )  # (batch, tokens and new tokens)
        rows = output[:, input_ids.shape[1] :].tolist()
        written = [row[: next((place for place, token in enumerate(row) if token in ends), len(row))] for row in rows]
        return [
            (index, str(tokenizer.decode(row, skip_special_tokens=True)))
            for index, row in zip(batch, written, strict=True)
        ]

    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    with (
        inference(model),
        autocast(model, precision),
        settings_lent(inner, settings),
        progress.track("writing continuations", len(prompts)) as advance,
    ):
        for pairs in share_out(write, batches, advance, size=len):
            for index, text in pairs:
                texts[index] = text
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
