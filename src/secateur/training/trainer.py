"""What every training here asks of `transformers.Trainer`, and gives back after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from secateur.errors import RequestError
from secateur.processes import count, summed_, zero_stage
from secateur.training.settings import rows_at_once
from secateur.training.trainer_options import options_as_named_here

__all__ = ["Advance", "given_back", "mean_of_processes", "training_arguments", "unprepared"]

_PREPARED = "_is_accelerate_prepared"
_PUT_IN_BY_ACCELERATE = ("forward", "_original_forward", _PREPARED)


def training_arguments(
    settings: Any,
    theirs: Mapping[str, Any],
    *,
    work: str | Path,
    steps: int,
    batch: int,
    micro_batch: int,
    rate: float,
    precision: torch.dtype | None,
    seed: int,
    **ours: Any,
) -> TrainingArguments:
    """The Trainer's arguments: AdamW with a warm-up and a linear decay, quiet, on a GPU if there is one.

    Args:
        settings: has `warmup`, `weight_decay` and `max_grad_norm`.
        theirs: the user's own, which win.
        work: the Trainer's directory.
        steps: optimiser steps.
        batch: rows per optimiser step, of all processes together.
        micro_batch: rows per forward pass at most; divides `batch`.
        rate: peak learning rate.
        precision: autocast dtype; the weights' own if None.
        seed: of everything random.
        ours: what this training wants besides.

    Raises:
        RequestError: if the arguments contradict each other, or the processes cannot have equal shares of a step.
    """
    at_once = rows_at_once(batch, micro_batch)
    common: dict[str, Any] = {
        "output_dir": str(work),
        "max_steps": steps,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": batch // (at_once * count()),
        "learning_rate": rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": min(math.ceil(settings.warmup * steps), steps - 1),  # of one step, the rate is not 0
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": precision is torch.bfloat16,
        "fp16": precision is torch.float16,
        "seed": seed,
        "data_seed": seed,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
    }
    try:
        arguments = TrainingArguments(**{**common, **ours, **options_as_named_here(theirs)})
    except (TypeError, ValueError, ImportError) as error:
        raise RequestError(f"trainer options: {' '.join(str(error).split())}") from error
    if zero_stage():
        _agree_with_deepspeed(arguments)
    return arguments


def _agree_with_deepspeed(arguments: TrainingArguments) -> None:
    """Have DeepSpeed clip and count rows as the Trainer does, which a file of its own may not say, and hold it to the rest.

    Raises:
        RequestError: if that says otherwise, which the Trainer finds once the training begins.
    """
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    asked = arguments.deepspeed_plugin.deepspeed_config
    for name in ("gradient_clipping", "train_batch_size", "train_micro_batch_size_per_gpu"):
        asked.setdefault(name, "auto")
    tried = HfTrainerDeepSpeedConfig(asked)  # of a copy
    tried.trainer_config_process(arguments)
    if tried.mismatches:
        raise RequestError(
            f"accelerate's configuration of DeepSpeed contradicts the training ({tried.mismatches[0].removeprefix('- ')}); say "
            "'auto' there, and mixed_precision 'no': secateur's options decide"
        )


def mean_of_processes(losses: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Losses of this process's rows, scalars, as the mean over the rows of all processes: each has as many."""
    together = torch.stack([loss.detach().float() for loss in losses.values()])
    return dict(zip(losses, (summed_(together) / count()).tolist(), strict=True))


@contextmanager
def given_back(model: Any, *, checkpointing: bool) -> Iterator[None]:
    """What a training changes besides weights: gradients, what is trainable, how it runs; evaluation mode afterwards."""
    was_frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    use_cache = getattr(model.config, "use_cache", None)  # the Trainer turns it off, and it would be saved so
    try:
        yield
    finally:
        if checkpointing:  # transformers is renaming gradient to activation checkpointing
            getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()
        if use_cache is not None:
            model.config.use_cache = use_cache
        for parameter in model.parameters():
            parameter.grad = None
            parameter.requires_grad_(parameter not in was_frozen)
        model.eval()


@contextmanager
def unprepared(model: Any) -> Iterator[None]:
    """A model that accelerate has not prepared, before and after: where it finds its mark it leaves out mixed precision too."""
    before = {name: vars(model)[name] for name in _PUT_IN_BY_ACCELERATE if name in vars(model)}
    vars(model).pop(_PREPARED, None)
    try:
        yield
    finally:
        for name in _PUT_IN_BY_ACCELERATE:
            vars(model).pop(name, None)
        vars(model).update(before)


class Advance(TrainerCallback):  # type: ignore[misc]
    """Tells the progress of each step, and of those that a resumed training need not do again."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance = advance

    def on_train_begin(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Count what was done before."""
        if state.global_step:
            self.advance(state.global_step)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Count one step."""
        self.advance(1)
