"""How to train: the settings of both trainings. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from secateur.errors import RequestError
from secateur.processes import count
from secateur.settings import check_above_zero, check_at_least, check_choices, check_divides, check_shares
from secateur.step import ADAPTERS_ONLY, FORWARD_AND_BACKWARD, RowSize, Step
from secateur.training.trainer_options import check_trainer_options

if TYPE_CHECKING:
    from secateur.data import TokenBatches

__all__ = [
    "RESUME",
    "FineTuning",
    "RemovalTraining",
    "check_equal_shares",
    "rows_at_once",
]

RESUME = "resume_from_checkpoint"
"""An argument of `Trainer.train` that a removal takes beside those of the Trainer itself."""

_FULL_RATE, _LORA_RATE = 2e-5, 2e-4
_MICRO_BATCH = 4
_OURS = {
    "num_train_epochs": "that is epochs",
    "max_steps": "that is max_steps",
    "output_dir": "checkpoints are beside the output, for a run that goes on",
    "resume_from_checkpoint": "a run goes on from its own checkpoints",
}
"""Options of the Trainer that a fine-tuning would ignore, or that break a resumed one, and what to say instead."""


@dataclass(frozen=True, kw_only=True)
class RemovalTraining:
    """How to train towards a removal."""

    lambda_2: float = 0.0
    """Weight of the identity penalty on the layers that go."""

    lambda_2_ramp: float = 0.0
    """Share of the steps over which lambda_2 rises linearly from 0; 0 for constant."""

    norm: Literal["l1", "l2"] = "l2"
    """Norm of the identity penalty over the hidden dimension."""

    fade_over: float | None = None
    """Share of the steps over which the layers that go fade out: 0 bypasses them from the start, null never does."""

    distil: float = 0.0
    """Weight of the distillation from the dense model, 0 to 1; the rest is next-token cross-entropy."""

    distil_temperature: float = 1.0
    """Temperature of the distillation: above 1 the dense model's less likely tokens count for more."""

    distil_top_k: int | None = None
    """How many of the dense model's likeliest tokens are told apart in the distillation; all if null."""

    train: Literal["full", "lora", "partial"] = "full"
    """Train all weights, low-rank adapters that are merged at the end, or the head, the final norm and the last layers alone."""

    partial_layers: int = 3
    """Partial: how many of the last layers that stay are trained."""

    lora_rank: int = 16
    """Rank of the adapters."""

    lora_alpha: int = 32
    """Scale of the adapters, over their rank."""

    learning_rate: float = 2e-5
    """Peak learning rate of AdamW; linear decay."""

    warmup: float = 0.03
    """Share of the steps over which the learning rate rises."""

    weight_decay: float = 0.0
    """Weight decay."""

    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""

    sequences_per_step: int = 2
    """Calibration windows per optimiser step."""

    micro_batch: int | None = None
    """Windows per forward pass; all of a step's if null. Must divide sequences_per_step."""

    steps: int | None = None
    """Optimiser steps; one pass over the calibration windows if null, no training at all if 0."""

    trainer: dict[str, Any] = field(default_factory=dict)
    """Further fields of transformers.TrainingArguments (activation_checkpointing, report_to, optim, save_steps, …)."""

    def __post_init__(self) -> None:
        check_shares(self, "lambda_2_ramp", "distil", "warmup", "fade_over")
        check_above_zero(
            self, "sequences_per_step", "micro_batch", "lora_rank", "lora_alpha", "learning_rate", "partial_layers",
            "distil_temperature", "distil_top_k",
        )  # fmt: skip
        check_at_least(self, 0, "lambda_2", "weight_decay", "max_grad_norm", "steps")
        check_trainer_options(self.trainer, also=[RESUME])
        check_divides(self, "micro_batch", "sequences_per_step")

    def step(self, *, without: int) -> Step:
        """What a step takes, with `without` layers that do not run. The last good weights are kept beside what is trained.

        Raises:
            RequestError: if several processes cannot have equal shares of a step.
        """
        return Step(
            trains=self.train,
            sequences=rows_at_once(self.sequences_per_step, self.micro_batch or self.sequences_per_step),
            without=without,
            teacher=self.distil > 0,
            checkpointing=_checkpoints(self.trainer),
            moments=_moments(str(self.trainer.get("optim", ""))),
            lora_rank=self.lora_rank,
            partial_layers=self.partial_layers,
            trained_copies=1.0,
        )

    def num_steps(self, batches: TokenBatches) -> int:
        """Optimiser steps on these windows."""
        return math.ceil(batches.num_sequences / self.sequences_per_step) if self.steps is None else self.steps

    def fade_at(self, progress: float) -> float:
        """The gate of the layers that go, `progress` (0 at the first step, 1 after the last) into the training."""
        if self.fade_over is None:
            return 1.0
        return max(0.0, 1.0 - progress / self.fade_over) if self.fade_over > 0 else 0.0

    def lambda_2_at(self, progress: float) -> float:
        """The weight of the identity penalty, `progress` into the training."""
        return self.lambda_2 * (min(1.0, progress / self.lambda_2_ramp) if self.lambda_2_ramp > 0 else 1.0)


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How to fine-tune on a task."""

    train: Literal["full", "lora"] = "lora"
    """Train all weights, or low-rank adapters."""

    learning_rate: float | None = None
    """Peak learning rate of AdamW, linear decay; 2e-5 for full and 2e-4 for LoRA training if null (GradPruner: 1e-5)."""

    epochs: float = 3.0
    """Passes over the training examples."""

    max_steps: int | None = None
    """Optimiser steps, instead of epochs."""

    batch_size: int = 16
    """Examples per optimiser step (GradPruner: 64)."""

    micro_batch: int | None = None
    """Examples per forward pass, which must divide batch_size; 4, or what of 4 divides it, if null."""

    max_length: int = 1024
    """Tokens of an example at most; the beginning of a longer prompt is left out (GradPruner: 2048)."""

    lora_rank: int = 8
    """Rank of the adapters."""

    lora_alpha: int = 32
    """Scale of the adapters, over their rank."""

    lora_dropout: float = 0.0
    """Dropout before the adapters."""

    warmup: float = 0.03
    """Share of the steps over which the learning rate rises."""

    weight_decay: float = 0.0
    """Weight decay."""

    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""

    patience: int | None = None
    """Stop after so many epochs without a better validation score; never if null."""

    trainer: dict[str, Any] = field(default_factory=dict)
    """Further fields of transformers.TrainingArguments (activation_checkpointing, report_to, optim, save_steps, …)."""

    def __post_init__(self) -> None:
        check_choices(self, "train")
        check_above_zero(
            self, "learning_rate", "epochs", "max_steps", "batch_size", "micro_batch", "max_length", "lora_rank",
            "lora_alpha", "patience",
        )  # fmt: skip
        check_shares(self, "lora_dropout", "warmup")
        check_at_least(self, 0, "weight_decay", "max_grad_norm")
        check_divides(self, "micro_batch", "batch_size")
        check_trainer_options(self.trainer, elsewhere=_OURS)

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return self.learning_rate or (_FULL_RATE if self.train == "full" else _LORA_RATE)

    def num_steps(self, num_examples: int) -> int:
        """Optimiser steps on so many examples."""
        return self.max_steps or max(1, math.ceil(self.epochs * math.ceil(num_examples / self.batch_size)))

    def steps_of_epoch(self, num_examples: int) -> int:
        """Optimiser steps between two validations: a pass over so many examples, or all steps where they are fewer."""
        return max(1, min(self.num_steps(num_examples), math.ceil(num_examples / self.batch_size)))

    @property
    def at_once(self) -> int:
        """Examples per forward pass, in each process at most."""
        return self.micro_batch or math.gcd(self.batch_size, _MICRO_BATCH)

    @property
    def passes_per_token(self) -> float:
        """What training on a token costs, in forward passes."""
        passes = FORWARD_AND_BACKWARD if self.train == "full" else ADAPTERS_ONLY
        return passes + _checkpoints(self.trainer)

    def step(self, rows: RowSize, *, without: int = 0) -> Step:
        """What a step takes on such rows, after `without` layers were cut off.

        Raises:
            RequestError: if several processes cannot have equal shares of a step.
        """
        at_once = rows_at_once(self.batch_size, self.at_once)
        return Step(
            trains=self.train,
            sequences=at_once,
            tokens=rows.longest,
            logits=rows.logits(at_once),
            without=without,
            cut=True,
            checkpointing=_checkpoints(self.trainer),
            moments=_moments(str(self.trainer.get("optim", ""))),
            lora_rank=self.lora_rank,
        )


def _checkpoints(trainer: Mapping[str, Any]) -> bool:
    """Whether the Trainer's options have activations computed again."""
    return any(trainer.get(f"{name}_checkpointing") for name in ("gradient", "activation"))


def _moments(optimizer: str) -> float:
    """What an optimiser of the Trainer keeps on the device, in float32 copies of what is trained; as AdamW, if that is not known.

    bitsandbytes keeps 8 bits of each moment (arXiv 2110.02861), and pages what `paged` optimisers keep out to the CPU's memory.
    """
    if optimizer.startswith("paged_") or optimizer in ("sgd", "adafactor"):  # Adafactor: a row and a column a matrix
        return 0.0
    moments = 1.0 if optimizer.startswith(("lion", "rmsprop", "adagrad")) else 2.0
    return moments / (4 if optimizer.endswith("8bit") else 8 if optimizer.endswith("4bit") else 1)


def rows_at_once(batch: int, micro_batch: int) -> int:
    """Rows of a forward pass in each process, `micro_batch` at most, where all of them share the rows of an optimiser step.

    Raises:
        RequestError: if their shares cannot be equal.
    """
    check_equal_shares(batch, count())
    return math.gcd(batch // count(), micro_batch)


def check_equal_shares(batch: int, processes: int) -> None:
    """Hold the rows of an optimiser step to what several processes can share.

    Raises:
        RequestError: if their shares cannot be equal.
    """
    if batch % processes:
        raise RequestError(
            f"a step of {batch} rows cannot be shared by {processes} processes; choose a multiple of {processes} for the rows of "
            "a step (batch_size, sequences_per_step, recover_batch, scoring_batch), or fewer processes"
        )
