"""Rows: examples and windows as the tokens that a fine-tuning reads, with the loss on what is to be learnt.

A prompt that is too long is cut from its beginning, never the completion, which trl's trainer would cut.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from secateur.data import TokenBatches
from secateur.data.prompts import context_length, encode_pairs
from secateur.training.completion import IGNORED

if TYPE_CHECKING:
    from secateur.data.examples import Examples

__all__ = ["Rows", "collate", "rows_of", "rows_of_windows"]

Rows = Sequence[dict[str, list[int]]]
"""Tokenised examples: `input_ids` and `labels` (-100 where no loss is)."""


def rows_of(examples: Examples, model: Any, tokenizer: Any, *, max_length: int) -> Rows:
    """Tokenise examples as they are scored, with the end-of-text token after the completion; the loss is on these two.

    None is longer than `max_length` or the model's context.

    Raises:
        DataError: if a completion alone is longer than that. A plain text that is too long is cut at its end.
    """
    end = tokenizer.eos_token_id
    length = context_length(model, max_length)
    encoded = encode_pairs(
        model, tokenizer, [(example.prompt, example.completion) for example in examples],
        limit=length - 2 if examples.kind != "text" else sys.maxsize,  # of a pair, and without the end-of-text token
    )  # fmt: skip
    rows = []
    for item in encoded:
        learnt = list(item.completion)
        if end is not None and end not in learnt:  # a chat template ends its turns itself
            learnt.append(end)
        ids = [*item.context, *learnt][:length]
        rows.append({"input_ids": ids, "labels": [IGNORED] * len(item.context) + ids[len(item.context) :]})
    return rows


def rows_of_windows(batches: TokenBatches) -> Rows:
    """Windows of plain text as rows: every token is learnt."""
    return [{"input_ids": window, "labels": window} for window in batches.input_ids.tolist()]


def collate(rows: Rows) -> dict[str, Tensor]:
    """Right-padded tensors (batch, tokens)."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, value: int) -> Tensor:
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": padded("input_ids", 0),
        "labels": padded("labels", IGNORED),
        "attention_mask": torch.tensor(mask),
    }
