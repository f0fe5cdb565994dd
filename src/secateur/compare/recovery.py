"""Recovery of a pruned model on as many tokens as every other gets: the one place where a comparison trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.errors import RequestError
from secateur.progress import Progress
from secateur.training.precision import round_back_, to_float32_
from secateur.training.removal import RemovalTraining, train_towards_removal_

__all__ = ["Recovery", "recover_"]

_DISTIL = 0.5


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How a pruned model is trained afterwards."""

    kind: Literal["none", "lora", "partial", "full", "distill"] = "none"
    """What is trained: nothing, merged adapters, the head and the last layers, or all (distill: from the dense model)."""

    tokens: int = 32_768
    """Tokens to train on, at least; whole steps."""

    learning_rate: float = 2e-4
    """Peak learning rate of AdamW; linear decay."""

    sequences_per_step: int = 2
    """Calibration windows per optimiser step."""

    def __post_init__(self) -> None:
        for name in ("tokens", "learning_rate", "sequences_per_step"):
            if not getattr(self, name) > 0:
                raise RequestError(f"{name} must be above 0, not {getattr(self, name):g}")


def recover_(
    decoder: Decoder,
    data: TokenBatches,
    *,
    settings: Recovery,
    teacher: Any = None,
    precision: torch.dtype | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train the pruned model in place; the value holds `tokens` and `losses`."""
    per_step = settings.sequences_per_step * data.sequence_length
    train = settings.kind if settings.kind in ("lora", "partial") else "full"
    training = RemovalTraining(
        train=train,
        distil=_DISTIL if settings.kind == "distill" else 0.0,
        steps=math.ceil(settings.tokens / per_step),
        sequences_per_step=settings.sequences_per_step,
        learning_rate=settings.learning_rate,
    )
    stored = to_float32_(decoder.model) if train != "lora" else []
    try:
        return train_towards_removal_(
            decoder, (), data, settings=training, teacher=teacher if settings.kind == "distill" else None,
            precision=precision, seed=seed, progress=progress,
        )  # fmt: skip
    finally:
        round_back_(stored)
