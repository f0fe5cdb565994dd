"""The heaviest step of a stage, and the examples it is on: what its peak memory and its time depend on."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

__all__ = ["ADAPTERS_ONLY", "FORWARD_AND_BACKWARD", "RowSize", "Step", "Trains"]

Trains = Literal["nothing", "gates", "lora", "partial", "full"]
"""What gets a gradient: nothing (forward passes), a weight a layer, adapters, the last layers and the head, all weights."""

FORWARD_AND_BACKWARD = 3.3
"""What a training step costs, in forward passes on the same tokens, where every weight is trained."""

ADAPTERS_ONLY = 2.3
"""The same where gradients only pass through."""

_SPREAD = 0.45
"""Standard deviation of the lengths of a task's examples over their mean: 0.2 to 0.7 in ten tasks that were looked at."""


@dataclass(frozen=True, kw_only=True)
class RowSize:
    """How long a task's examples are."""

    mean: float
    """Tokens of an example on average."""

    longest: int
    """Tokens of the longest."""

    learnt: int
    """Tokens of a completion at most."""

    def padded(self, rows: int) -> float:
        """Tokens of an example on average, with the padding to the longest of `rows` that run together.

        As if lengths were normally distributed, whose largest of n is near the quantile (n - 3/8) / (n + 1/4).
        """
        largest = NormalDist().inv_cdf((rows - 0.375) / (rows + 0.25))
        return min(self.mean * (1 + _SPREAD * largest), self.longest)

    def logits(self, rows: int) -> int:
        """Positions of `rows` that run together that some row learns: completions end where their rows do."""
        return min(rows * self.learnt, self.longest)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A forward pass, or a training step."""

    trains: Trains = "nothing"
    """What gets a gradient."""

    sequences: int | None = None
    """Rows of a forward pass (the micro batch); those of a calibration batch if None."""

    tokens: int | None = None
    """Tokens of a row; those of a calibration window if None."""

    logits: int | None = None
    """Positions of a row whose logits are made, where the model can leave the others out; all if None."""

    without: int = 0
    """Layers that do not run."""

    cut: bool = False
    """Whether these are gone, and not held beside."""

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
