"""The heaviest step of a stage: what its peak memory depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Step", "Trains"]

Trains = Literal["nothing", "gates", "lora", "partial", "full"]
"""What gets a gradient: nothing (forward passes), a weight a layer, adapters, the last layers and the head, all weights."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A forward pass, or a training step."""

    trains: Trains = "nothing"
    """What gets a gradient."""

    sequences: int | None = None
    """Rows of a forward pass (the micro batch); those of a calibration batch if None."""

    tokens: int | None = None
    """Tokens of a row; those of a calibration window if None."""

    without: int = 0
    """Layers that do not run."""

    teacher: bool = False
    """Whether a frozen copy of the dense model runs beside it."""

    checkpointing: bool = False
    """Whether activations are computed again in the backward pass instead of kept."""

    optimizer: bool = True
    """Whether what is trained is updated; without it gradients are only read."""

    moments: float = 2.0
    """What the optimiser keeps on the device, in copies of what is trained: AdamW two."""

    lora_rank: int = 8
    """Rank of the adapters."""

    partial_layers: int = 3
    """Layers that are trained with `partial`."""

    trained_copies: float = 0.0
    """What is kept besides, in copies of what is trained: the last good weights, for one."""

    copies: float = 0.0
    """What is kept besides, in copies of the model."""
