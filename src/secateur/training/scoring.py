"""Scoring: the first steps of a fine-tuning, run for what their gradients tell about each layer, and undone."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from secateur.errors import RequestError
from secateur.settings import check_above_zero, check_at_least, check_choices, check_shares
from secateur.training.settings import FineTuning

if TYPE_CHECKING:
    import torch
    from torch import nn

    from secateur.decoder import Decoder
    from secateur.progress import Progress
    from secateur.training.igia import IGIACallback
    from secateur.training.rows import Rows

__all__ = ["Scoring", "score_layers"]


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """The first steps of a fine-tuning, in which the layers are scored; the defaults are GradPruner's published ones."""

    scoring_steps: int | float | None = None
    """Optimiser steps (int) or share of the fine-tuning's steps (float); 1 % of them, but at least 10, if null."""

    gradients: Literal["lora", "full"] = "lora"
    """Read LoRA's gradients, or those of all weights (no LoRA; needs memory for a gradient and a square a weight)."""

    scoring_rank: int = 8
    """Rank of the adapters."""

    scoring_alpha: int = 32
    """Scale of the adapters, over their rank."""

    scoring_rate: float = 1e-4
    """Peak learning rate of AdamW in these steps."""

    scoring_warmup: float = 0.03
    """Share of the fine-tuning's steps over which that rate rises."""

    scoring_weight_decay: float = 0.1
    """Weight decay in these steps."""

    scoring_batch: int = 4
    """Examples per optimiser step."""

    def __post_init__(self) -> None:
        steps, least = self.scoring_steps, self._least_steps
        if steps is not None and not (0 < steps < 1 if isinstance(steps, float) else steps >= least):
            raise RequestError(
                f"scoring_steps is a count of {least} or more, or a share between 0 and 1, not {steps:g}"
            )
        check_choices(self, "gradients")
        check_above_zero(self, "scoring_rank", "scoring_alpha", "scoring_rate", "scoring_batch")
        check_shares(self, "scoring_warmup")
        check_at_least(self, 0, "scoring_weight_decay")

    def num_scoring_steps(self, total_steps: int) -> int:
        """Steps to score, of a fine-tuning of `total_steps`."""
        steps = self.scoring_steps
        if steps is None:
            return max(10, math.ceil(0.01 * total_steps))
        return max(self._least_steps, math.ceil(steps * total_steps)) if isinstance(steps, float) else steps

    @property
    def _least_steps(self) -> int:
        """Steps until a gradient is not 0: LoRA's B is 0 at the first, and still is at the second if the rate begins at 0."""
        return 3 if self.gradients == "lora" and self.scoring_warmup else 2


def score_layers(
    decoder: Decoder,
    rows: Rows,
    *,
    settings: Scoring,
    total_steps: int | None = None,
    keep_factors: bool = True,
    precision: torch.dtype | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> IGIACallback:
    """Run the first steps of a fine-tuning and read its gradients; the model is as it was afterwards.

    Args:
        decoder: the dense model.
        rows: the training examples.
        settings: see `Scoring`.
        total_steps: of the fine-tuning whose first steps these are; the scoring's own if None.
        keep_factors: keep what a merge needs.
        precision: autocast dtype.
        seed: of the order of the examples and the adapters.
        progress: told of each step.

    Returns:
        The callback that watched; what it accumulated has the adapters, too.

    Raises:
        TrainingDivergedError: if the loss stops being finite; the model is as it was.
    """
    from secateur.training.igia import IGIACallback
    from secateur.training.lora import adapters_of
    from secateur.training.supervised import fine_tune_

    total = total_steps or math.ceil(len(rows) / settings.scoring_batch)
    steps = settings.num_scoring_steps(total)
    callback = IGIACallback(steps, gradients=settings.gradients, stop=True, keep_factors=keep_factors)
    callback.warns = False
    tuning = FineTuning(
        train=settings.gradients,
        learning_rate=settings.scoring_rate,
        max_steps=max(total, steps),
        batch_size=settings.scoring_batch,
        warmup=settings.scoring_warmup,
        weight_decay=settings.scoring_weight_decay,
        lora_rank=settings.scoring_rank,
        lora_alpha=settings.scoring_alpha,
    )
    with _borrowed(decoder.model, weights=settings.gradients == "full"), tempfile.TemporaryDirectory() as scratch:
        trained, _ = fine_tune_(
            decoder, rows, settings=tuning, work=Path(scratch), callbacks=[callback], precision=precision, seed=seed,
            progress=progress, description="scoring the layers", shown_steps=steps, save=False,
        )  # fmt: skip
        if settings.gradients == "lora":
            callback.accumulated().adapters = adapters_of(trained)
            trained.unload()
    return callback


@contextmanager
def _borrowed(model: nn.Module, *, weights: bool) -> Iterator[None]:
    """The model for a training that is only looked at: modes, gradients and what is trainable come back, weights if asked."""
    import numpy as np
    import torch

    modes = {module: module.training for module in model.modules()}
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    values = [parameter.detach().to("cpu", copy=True) for parameter in model.parameters()] if weights else []
    for parameter in model.parameters():
        parameter.grad = None
    states = random.getstate(), np.random.get_state()  # the Trainer seeds these too
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            with torch.no_grad():
                for (parameter, _, _), value in zip(before, values, strict=False):
                    parameter.copy_(value)
            for parameter, trainable, gradient in before:
                parameter.requires_grad_(trainable)
                parameter.grad = gradient
            for module, training in modes.items():
                module.training = training
