"""The loss of completions, from the logits of the positions that predict them and no others.

A prompt is read, but nothing is learnt of it: its logits, as many numbers a token as the vocabulary has words, are neither
needed nor made. Of a small model's multiplications the head is a fifth, and of its memory in training often the most.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import Tensor, nn

from secateur.decoder import evaluating, unwrapped

__all__ = ["IGNORED", "LearntPositions"]

logger = logging.getLogger(__name__)

IGNORED = -100
"""The label of a token that is not learnt."""

_AGREES = 1e-3  # relative difference of two losses that are one: bfloat16 sums in another order


class LearntPositions:
    """Narrows a batch to the positions that are learnt, if the model's loss is the same then: tried once, on a few tokens."""

    def __init__(self, *, usable: bool = True) -> None:
        self._usable = None if usable else False

    def __call__(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch to give to the model: `input_ids`, `labels` and `attention_mask` (batch, tokens), or narrower labels."""
        if self._usable is None:  # before anything is known of the batch: processes that share a model try at one time
            self._usable = _finds_the_same_loss(model, inputs["input_ids"].device)
            logger.info("the logits of prompts are %s", "not computed" if self._usable else "computed by this model")
        return (_narrowed(inputs) if self._usable else None) or inputs


def _narrowed(inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The batch with the positions before a token that some row learns; None if that saves nothing."""
    next_tokens: Tensor = inputs["labels"][:, 1:]
    positions = (next_tokens != IGNORED).any(dim=0).nonzero()[:, 0]  # (kept,)
    if not 0 < len(positions) < next_tokens.shape[1]:
        return None
    kept = next_tokens[:, positions]  # (batch, kept)
    return {**inputs, "labels": kept, "shift_labels": kept, "logits_to_keep": positions}


def _finds_the_same_loss(model: nn.Module, device: torch.device) -> bool:
    """Whether the model knows what to keep, and its loss is the same for it.

    Tried with the least likely tokens as labels: the loss of other positions is far from theirs, also in an untrained model.
    """
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    if "logits_to_keep" not in inspect.signature(unwrapped(inner).forward).parameters:
        return False
    ids = torch.arange(1, 9, device=device)[None]  # (1, 8)
    with torch.no_grad(), evaluating(model):
        unlikely = model(input_ids=ids).logits.argmin(dim=-1).to(device)
        labels = torch.full_like(ids, IGNORED)
        for position in (2, 5):
            labels[:, position + 1] = unlikely[:, position]
        whole = {"input_ids": ids, "labels": labels}
        narrow = _narrowed(whole)
        assert narrow is not None  # noqa: S101
        expected = model(**whole).loss
        try:
            found = model(**narrow).loss
        except (TypeError, ValueError, RuntimeError, IndexError) as error:  # it takes a count, say, but no positions
            logger.info("the model cannot compute the logits of some positions: %s", error)
            return False
    return bool((expected - found).abs() <= _AGREES * expected.abs())
