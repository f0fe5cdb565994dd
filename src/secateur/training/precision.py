"""16-bit weights, trained in float32: a step of a fine-tuning is smaller than the gap between two bfloat16 numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["Stored", "in_float32", "of_model", "round_back_", "to_float32_"]

_HALF = (torch.bfloat16, torch.float16)

Stored = list[tuple[nn.Parameter, torch.dtype]]
"""Parameters, and the dtypes they had."""


@contextmanager
def in_float32(model: nn.Module, *, wanted: bool = True) -> Iterator[None]:
    """The 16-bit parameters in float32 meanwhile, if wanted; rounded at the end, also on an error."""
    stored = to_float32_(model) if wanted else []
    try:
        yield
    finally:
        round_back_(stored)


def to_float32_(model: nn.Module) -> Stored:
    """Make the 16-bit parameters float32, in place; the value is for `round_back_`.

    Buffers stay as they are: rotary frequencies are float32 in a 16-bit model, and rounding would change them. Parameters are
    known by identity, so layers may be cut meanwhile, and tied parameters stay tied.
    """
    stored = [(weight, weight.dtype) for weight in model.parameters() if weight.dtype in _HALF]
    for weight, _ in stored:
        weight.data = weight.data.float()
    return stored


def of_model(model: nn.Module, stored: Stored) -> Stored:
    """Those that the model still has: the others, of layers that were cut off, need not be held."""
    has = {id(weight) for weight in model.parameters()}
    return [(weight, dtype) for weight, dtype in stored if id(weight) in has]


def round_back_(stored: Stored) -> None:
    """Round the parameters to the dtypes they had."""
    for weight, dtype in stored:
        weight.data = weight.data.to(dtype)
