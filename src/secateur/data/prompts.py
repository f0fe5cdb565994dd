"""Prompts and completions as tokens, and as padded batches.

As in lm-evaluation-harness 0.4, so that figures can be held against published ones: prompt and completion are tokenized
together, and the completion has the tokens after as many as the prompt alone has; white space at the end of a prompt
belongs to the completion; an empty prompt is the BOS (or else EOS) token; what does not fit is cut from the left of the
prompt. Special tokens are the tokenizer's default: those before a text come once, those after it not at all.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from secateur.context import context_of
from secateur.errors import DataError, RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Encoded", "context_length", "encode_pairs", "encode_prompts", "padded"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A prompt and its completion as tokens."""

    context: tuple[int, ...]
    """The prompt, one token or more."""

    completion: tuple[int, ...] = ()
    """What is scored after it; empty where the model is to write."""

    cut: bool
    """Whether the prompt lost its beginning to fit."""


def encode_pairs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], *, limit: int
) -> list[Encoded]:
    """Tokens of each (prompt, completion), of which the model can read `limit`; the last one it need not read.

    Raises:
        DataError: if a completion has no tokens or more than `limit`, or a prompt is empty and nothing can stand for it.
    """
    prompts = [prompt.rstrip() for prompt, _ in pairs]
    wholes = [prompt + completion for prompt, completion in pairs]
    tokens = _tokenized(tokenizer, [*prompts, *wholes])
    encoded = []
    for prompt, whole, (_, given) in zip(prompts, wholes, pairs, strict=True):
        context, _ = tokens[prompt]
        ids, before = tokens[whole]
        completion = ids[len(context) or before :]
        if not completion:
            raise DataError(f"the completion {_short(given)} has no token of its own; begin it with a space or a word")
        room = limit + 1 - len(completion)
        if room < 1:
            raise DataError(
                f"the completion {_short(given)} has {len(completion)} tokens, more than the {limit} that can be read; "
                "shorten it, or raise max_length as far as the model's context goes"
            )
        context = context or ids[:before] or (_first_token(model, tokenizer),)
        encoded.append(Encoded(context=context[-room:], completion=completion, cut=len(context) > room))
    _say_cut(encoded, limit)
    return encoded


def encode_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, limit: int
) -> list[Encoded]:
    """Tokens of each prompt, at most `limit`, for the model to continue; white space at their end stays.

    Raises:
        DataError: if a prompt is empty and nothing can stand for it.
    """
    tokens = _tokenized(tokenizer, prompts)
    contexts = [tokens[prompt][0] or (_first_token(model, tokenizer),) for prompt in prompts]
    encoded = [Encoded(context=context[-limit:], cut=len(context) > limit) for context in contexts]
    _say_cut(encoded, limit)
    return encoded


def context_length(model: PreTrainedModel, max_length: int | None = None) -> int:
    """Tokens that the model can read at once, or `max_length` if that is fewer.

    Raises:
        RequestError: if `max_length` is below one.
    """
    if max_length is not None and max_length < 1:
        raise RequestError(f"max_length is {max_length}; choose 1 or more")
    return min((length for length in (max_length, context_of(model.config)) if length), default=sys.maxsize)


def padded(sequences: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, (batch, tokens) int64 each; any token pads, since none is shown it."""
    width = max(map(len, sequences))
    input_ids, mask = torch.zeros(2, len(sequences), width, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        place = slice(width - len(sequence), width) if left else slice(len(sequence))
        input_ids[row, place] = torch.tensor(sequence)
        mask[row, place] = 1
    return input_ids, mask


def _tokenized(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> dict[str, tuple[tuple[int, ...], int]]:
    """Tokens of each text, and how many of them the tokenizer put before it; what it puts after is left out."""
    unique = list(dict.fromkeys(texts))
    if not unique:  # a tokenizer fails on nothing
        return {}
    encoding = tokenizer(
        unique,
        truncation=False,
        padding=False,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,  # what is longer than the context is cut later
    )
    tokens: dict[str, tuple[tuple[int, ...], int]] = {}
    for text, ids, added in zip(unique, encoding["input_ids"], encoding["special_tokens_mask"], strict=True):
        if 0 not in added:  # no text, so that before and after cannot be told apart
            tokens[text] = ((), 0)
            continue
        before, after = added.index(0), added[::-1].index(0)
        # A chat template may have written what stands before; twice would be another text.
        start = before if ids[:before] == ids[before : 2 * before] else 0
        tokens[text] = (tuple(ids[start : len(ids) - after]), before)
    return tokens


def _first_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands before a text that has nothing before it."""
    for source in (tokenizer, model.config.get_text_config()):
        for name in ("bos_token_id", "eos_token_id"):
            token = getattr(source, name, None)
            if token is not None:
                return int(token[0] if isinstance(token, list) else token)
    raise DataError("a prompt is empty, and there is no BOS or EOS token to stand for it; give it some text")


def _say_cut(encoded: Sequence[Encoded], limit: int) -> None:
    num_cut = sum(item.cut for item in encoded)
    if num_cut:
        logger.warning("%d of %d prompts lose their beginning to fit %d tokens", num_cut, len(encoded), limit)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
