"""16-bit weights, trained in float32: a step of a fine-tuning is smaller than the gap between two bfloat16 numbers."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["round_back_", "to_float32_"]

_HALF = (torch.bfloat16, torch.float16)

Stored = list[tuple[nn.Parameter, torch.dtype]]


def to_float32_(model: nn.Module) -> Stored:
    """Make the 16-bit parameters float32, in place; the value is for `round_back_`.

    Buffers stay as they are: rotary frequencies are float32 in a 16-bit model, and rounding would change them. Parameters are
    known by identity, so layers may be cut meanwhile, and tied parameters stay tied.
    """
    stored = [(weight, weight.dtype) for weight in model.parameters() if weight.dtype in _HALF]
    for weight, _ in stored:
        weight.data = weight.data.float()
    return stored


def round_back_(stored: Stored) -> None:
    """Round the parameters to the dtypes they had."""
    for weight, dtype in stored:
        weight.data = weight.data.to(dtype)
