"""Recovery: training after the cut, for the layers that stay to make up for those that went, on a stated number of tokens.

The same trainer as ELDeR's second stage (`secateur.training.removal`), with no layer on its way out, so that preparing and
recovering can be compared at equal tokens. The loss is next-token cross-entropy; with `distill` it is

    (1 − w)·CE + w·T²·KL(softmax(dense / T) ‖ softmax(pruned / T))
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from secateur.errors import RequestError
from secateur.settings import check_above_zero, check_at_least, check_choices, check_divides
from secateur.step import ADAPTERS_ONLY, FORWARD_AND_BACKWARD, Step
from secateur.training.settings import RemovalTraining
from secateur.training.trainer_options import check_trainer_options

if TYPE_CHECKING:
    import torch
    from torch import nn

    from secateur.data import TokenBatches
    from secateur.decoder import Decoder
    from secateur.progress import Progress
    from secateur.training.checkpoints import Keeping

__all__ = ["Recovery", "check_recovery", "recover_", "without_effect"]

_RATES = {"lora": 1e-3, "partial": 2e-4, "full": 2e-4, "distill": 2e-4}

_TRAINED: dict[str, Literal["full", "lora", "partial"]] = {
    "lora": "lora", "partial": "partial", "full": "full", "distill": "full",
}  # fmt: skip

_KINDS_OF: dict[str, tuple[str, ...]] = {
    "recover_tokens": tuple(_RATES), "recover_rate": tuple(_RATES), "recover_batch": tuple(_RATES),
    "recover_micro_batch": tuple(_RATES), "recover_trainer": tuple(_RATES), "recover_rank": ("lora",),
    "recover_alpha": ("lora",), "recover_layers": ("partial",), "distill_weight": ("distill",),
    "distill_temperature": ("distill",), "distill_top_k": ("distill",),
}  # fmt: skip
"""Setting → the kinds of recovery that use it."""

_WARM_UP = 0.1
"""Share of the steps over which the learning rate rises; ELDeR's second stage has the same."""

_HEAD = 0.2
"""Share of the model's weights in its head and final norm, at most: that of a small model with a large vocabulary."""

_OURS = ("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps")
"""Options of the Trainer that would break the budget."""


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How to train what is left."""

    recover: Literal["none", "lora", "partial", "full", "distill"] = "none"
    """Training after the cut: low-rank adapters that are merged at the end, the head with the final norm and the last layers,
    all weights, or all weights towards the dense model's predictions as well."""

    recover_tokens: int | None = None
    """Tokens trained on, in whole windows: never more than this. The calibration windows are repeated, or fewer of them taken;
    once all of them if null."""

    recover_rate: float | None = None
    """Peak learning rate of AdamW; linear decay. If null 1e-3 for lora, whose adapters start from nothing, and for the others
    2e-4, with which ELDeR's second stage trains a model of 135 million weights; larger models want smaller ones."""

    recover_batch: int = 2
    """Windows per optimiser step; the last may have fewer."""

    recover_micro_batch: int | None = None
    """Windows per forward pass; all of a step's if null. Must divide recover_batch."""

    recover_rank: int = 16
    """With lora: rank of the adapters."""

    recover_alpha: int = 32
    """With lora: scale of the adapters, over their rank."""

    recover_layers: int = 3
    """With partial: how many of the last layers are trained."""

    recover_trainer: dict[str, Any] = field(default_factory=dict)
    """Further fields of transformers.TrainingArguments (activation_checkpointing, report_to, optim, …)."""

    distill_weight: float = 0.3
    """With distill: weight of the dense model's predictions, above 0 to 1; the rest is the text itself. A teacher alone does
    worse, since it has not read this text."""

    distill_temperature: float = 1.0
    """With distill: temperature of both models' predictions; above 1 less likely tokens count for more."""

    distill_top_k: int | None = None
    """With distill: how many of the dense model's likeliest tokens are told apart, the rest being one; all if null."""

    def __post_init__(self) -> None:
        check_choices(self, "recover")
        check_above_zero(self, "recover_rate", "distill_weight", "distill_temperature")
        check_at_least(
            self, 1, "recover_tokens", "recover_batch", "recover_micro_batch", "recover_rank", "recover_alpha",
            "recover_layers", "distill_top_k",
        )  # fmt: skip
        if self.distill_weight > 1:
            raise RequestError(f"distill_weight is a share, not {self.distill_weight:g}; choose above 0 to 1")
        check_divides(self, "recover_micro_batch", "recover_batch")
        check_trainer_options(self.recover_trainer)
        ours = sorted(self.recover_trainer.keys() & set(_OURS))
        if ours:
            raise RequestError(
                f"recover_trainer cannot set {ours[0]}, which follows from recover_tokens and recover_batch"
            )

    @property
    def trains(self) -> bool:
        """Whether there is a recovery at all."""
        return self.recover != "none"

    @property
    def needs_teacher(self) -> bool:
        """Whether the dense model is needed beside the pruned one."""
        return self.recover == "distill"

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return _RATES.get(self.recover, 0.0) if self.recover_rate is None else self.recover_rate

    def num_windows(self, data: TokenBatches) -> int:
        """Windows trained on.

        Raises:
            RequestError: if the budget is less than one window.
        """
        if not self.trains:
            return 0
        if self.recover_tokens is None:
            return data.num_sequences
        windows = self.recover_tokens // data.sequence_length
        if windows < 1:
            raise RequestError(
                f"recover_tokens={self.recover_tokens} is less than one window of {data.sequence_length} tokens; choose "
                f"{data.sequence_length} or more, or shorter windows"
            )
        return windows

    def num_tokens(self, data: TokenBatches) -> int:
        """Tokens trained on."""
        return self.num_windows(data) * data.sequence_length

    def passes_per_token(self, num_layers: int, drop: int) -> float:
        """What training on a token costs after `drop` of `num_layers` layers went, in forward passes of the dense model."""
        left = 1 - drop / num_layers
        return {
            "none": 0.0,
            "lora": ADAPTERS_ONLY * left,
            "partial": left + ADAPTERS_ONLY * self._trained_share(num_layers, drop),
            "full": FORWARD_AND_BACKWARD * left,
            "distill": FORWARD_AND_BACKWARD * left + 1,
        }[self.recover]

    def step(self, drop: int) -> Step | None:
        """What a step takes after `drop` layers went, whose weights the dense model still holds."""
        return _training(self).step(without=drop) if self.trains else None

    def _trained_share(self, num_layers: int, drop: int) -> float:
        return min(min(self.recover_layers, num_layers - drop) / num_layers + _HEAD, 1.0)


def without_effect(settings: Recovery) -> tuple[str, tuple[str, ...]] | None:
    """The first setting that differs from its default and is not used by this kind of recovery, with the kinds that use it."""
    for name, kinds in _KINDS_OF.items():
        if settings.recover not in kinds and getattr(settings, name) != getattr(Recovery(), name):
            return name, kinds
    return None


def check_recovery(settings: Recovery, data: TokenBatches, *, precision: torch.dtype | None = None) -> None:
    """Find what is wrong with a recovery before anything expensive.

    Raises:
        RequestError: if the budget is less than one window, or the Trainer refuses its further fields.
    """
    from secateur.training.removal import removal_arguments

    if settings.trains:
        windows = _in_order(data, settings.num_windows(data), seed=0)
        removal_arguments(_training(settings), windows, precision=precision, scratch="unused")


def recover_(
    decoder: Decoder,
    data: TokenBatches,
    *,
    settings: Recovery,
    teacher: nn.Module | None = None,
    precision: torch.dtype | None = None,
    wide: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    keeping: Keeping | None = None,
) -> dict[str, Any]:
    """Train a pruned model in place; adapters are merged at the end, so that it stays a plain model.

    Args:
        decoder: the pruned model.
        data: the text; every pass over it is in a seeded order of its own.
        settings: which weights, and on how many tokens.
        teacher: the dense model, for `distill`; it is put into evaluation mode and frozen.
        precision: autocast dtype of the passes.
        wide: train 16-bit weights in float32, and round them back at the end.
        seed: of the order of the windows, dropout and adapters.
        progress: told of each step.
        keeping: where checkpoints are, from which the training goes on; none are written if None.

    Returns:
        `kind`, `rate`, `steps`, `windows`, `tokens` (windows times their length), `passes` over the data, `seconds`, and
        `losses`: a dictionary a step.

    Raises:
        RequestError: if the budget is less than one window, or a teacher is missing; nothing was changed.
        TrainingDivergedError: if the loss or a weight stops being finite. The model then holds the last good weights.
    """
    from secateur.training.precision import in_float32
    from secateur.training.removal import train_towards_removal_

    windows = settings.num_windows(data)
    if settings.needs_teacher and teacher is None:
        raise RequestError(
            "recover='distill' learns from the dense model; give it as teacher, or choose another recovery"
        )
    start = time.monotonic()
    report: dict[str, Any] = {"steps": 0, "tokens": 0, "losses": []}
    if settings.trains:
        with in_float32(decoder.model, wanted=wide and settings.recover != "lora"):
            report = train_towards_removal_(
                decoder, (), _in_order(data, windows, seed), settings=_training(settings),
                teacher=teacher if settings.needs_teacher else None, precision=precision, seed=seed, progress=progress,
                description="recovering", keeping=keeping,
            )  # fmt: skip
    return {
        "kind": settings.recover,
        "rate": settings.rate,
        "steps": report["steps"],
        "windows": windows,
        "tokens": report["tokens"],
        "passes": round(windows / data.num_sequences, 4),
        "seconds": round(time.monotonic() - start, 3),
        "losses": report["losses"],
    }


def _in_order(data: TokenBatches, windows: int, seed: int) -> TokenBatches:
    """The first `windows` of as many passes over the data as it takes, each shuffled."""
    import torch

    from secateur.data import TokenBatches

    generator = torch.Generator().manual_seed(seed)
    passes = math.ceil(windows / data.num_sequences)
    order = torch.cat([torch.randperm(data.num_sequences, generator=generator) for _ in range(passes)])
    return TokenBatches(data.input_ids[order[:windows]], data.batch_size, data.spec)


def _training(settings: Recovery) -> RemovalTraining:
    return RemovalTraining(
        train=_TRAINED[settings.recover],
        distil=settings.distill_weight if settings.needs_teacher else 0.0,
        distil_temperature=settings.distill_temperature,
        distil_top_k=settings.distill_top_k,
        partial_layers=settings.recover_layers,
        lora_rank=settings.recover_rank,
        lora_alpha=settings.recover_alpha,
        learning_rate=settings.rate,
        warmup=_WARM_UP,
        sequences_per_step=settings.recover_batch,
        micro_batch=settings.recover_micro_batch,
        trainer={"train_sampling_strategy": "sequential", **settings.recover_trainer},  # the order is ours
    )
