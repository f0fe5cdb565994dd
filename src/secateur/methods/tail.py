"""Tail: drop the last layers, then train what is left at the end (arXiv 2411.15558, "Reassessing Layer Pruning in LLMs").

The last K layers go, the deepest first ("reverse order" in the paper). `keep_last = 1` spares the final one: the simple strategy
of arXiv 2403.17887. No text is looked at.

    dropped = { L − keep_last − K, …, L − keep_last − 1 }

Then, with `tune`, the paper's partial fine-tuning: next-token cross-entropy, all weights frozen but the language-model head, the
final norm and the last three layers that stay. The cut comes first: the layers that go are bypassed from the first step on.
`tune` is off by default, so that the method is a yardstick of the choice alone.

A model whose head is tied to its embedding has one matrix for both: it is trained, at both ends, and stays tied.

Deviations: the calibration windows, not instructions (published: Alpaca, 2 epochs, batches of 64), one pass over them and linear
decay, as in every other method here; the published rate, 1e-5, is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from secateur.methods.base import Cost, Method, Run
from secateur.plan import LayerScores, PruningPlan
from secateur.settings import check_at_least
from secateur.training.settings import RemovalTraining

if TYPE_CHECKING:
    from secateur.data import TokenBatches
    from secateur.decoder import Decoder

__all__ = ["Tail"]

_HEAD = 0.2
"""Share of the model's weights in its head and final norm, at most: that of a small model with a large vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Tail(Method):
    """The last layers."""

    name: ClassVar[str] = "tail"
    paper: ClassVar[str] = "arXiv 2411.15558"
    nested: ClassVar[bool] = True
    only_runs: ClassVar[bool] = True

    keep_last: int = 0
    """Layers at the very end that stay: none as published, 1 spares the final one; fewer where drop leaves fewer."""

    tune: bool = False
    """Whether to train the head, the final norm and the last layers that stay."""

    partial_layers: int = 3
    """How many of the last layers that stay are trained."""

    learning_rate: float = 1e-5
    """Peak learning rate of AdamW; linear decay."""

    warmup: float = 0.03
    """Share of the steps over which the learning rate rises."""

    sequences_per_step: int = 2
    """Calibration windows per optimiser step."""

    micro_batch: int | None = None
    """Windows per forward pass; all of a step's if null. Must divide sequences_per_step."""

    steps: int | None = None
    """Optimiser steps; one pass over the calibration windows if null, no training at all if 0."""

    trainer: dict[str, Any] = field(default_factory=dict)
    """Further fields of transformers.TrainingArguments (activation_checkpointing, report_to, optim, save_steps, …)."""

    def __post_init__(self) -> None:
        check_at_least(self, 0, "keep_last")
        self._training()
        if self.keep_last > 1:  # those spared have to go as well where drop leaves no others
            object.__setattr__(self, "nested", False)
        object.__setattr__(self, "prepares", self.tune)  # of the class, a choice alone; with `tune` there is more to do

    def plan(self, decoder: Decoder, data: TokenBatches, *, drop: int, run: Run | None = None) -> PruningPlan:  # noqa: ARG002
        """Score each layer by how many go before it, the deepest first, and drop the lowest."""
        end = decoder.num_layers - min(self.keep_last, decoder.num_layers - drop)
        turn = [end - 1 - layer if layer < end else layer for layer in range(decoder.num_layers)]
        scores = LayerScores(tuple(map(float, turn)), self.name)
        return self._planned(scores.lowest(drop), scores)

    def prepare_(
        self, decoder: Decoder, data: TokenBatches, plan: PruningPlan, *, run: Run | None = None
    ) -> dict[str, Any]:
        """Partial fine-tuning with the layers that go bypassed; they are still there afterwards.

        Raises:
            TrainingDivergedError: if the loss stops being finite; the model then holds the last good weights.
        """
        from secateur.training.removal import train_towards_removal_

        settings = self._training()
        if not self.tune or settings.num_steps(data) == 0:
            return {}
        run = run or Run()
        training = train_towards_removal_(
            decoder,
            plan.dropped,
            data,
            settings=settings,
            precision=run.precision,
            seed=run.seed,
            progress=run.progress,
        )
        return {"training": training}

    def trains_weights(self, data: TokenBatches) -> bool:  # noqa: ARG002
        """If it tunes at all."""
        return self.tune

    def final_gate(self) -> float:
        """All of the layers that go is left where nothing was trained, and nothing where something was."""
        return 0.0 if self.tune else 1.0

    def cost(self, num_layers: int, drop: int, data: TokenBatches) -> Cost:
        """Choosing costs nothing; training goes forward through what stays, and backward through what is trained."""
        trained = self._training().num_steps(data) * self.sequences_per_step * data.sequence_length if self.tune else 0
        if not trained:
            return Cost()
        stays = 1 - drop / num_layers
        share = min(self.partial_layers, num_layers - drop) / num_layers + _HEAD
        return Cost(
            prepare_tokens=trained * (stays + 2.3 * share),
            training_tokens=trained,
            preparing=self._training().step(without=drop),
        )

    def _training(self) -> RemovalTraining:
        return RemovalTraining(
            train="partial",
            partial_layers=self.partial_layers,
            fade_over=0.0,
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            sequences_per_step=self.sequences_per_step,
            micro_batch=self.micro_batch,
            steps=self.steps,
            trainer=self.trainer,
        )
