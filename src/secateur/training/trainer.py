"""What every training here asks of `transformers.Trainer`, and gives back after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from secateur.errors import RequestError
from secateur.processes import count, summed_

__all__ = ["Advance", "check_trainer_options", "given_back", "mean_of_processes", "rows_at_once", "training_arguments"]


def check_trainer_options(options: Mapping[str, Any], *, also: Collection[str] = ()) -> None:
    """Hold further options of the Trainer to the names it knows, and those in `also`.

    Raises:
        RequestError: if one is unknown, or what is to be reported to is not installed.
    """
    unknown = sorted(options.keys() - {*TrainingArguments.__dataclass_fields__, *also})
    if unknown:
        raise RequestError(f"trainer has no option '{unknown[0]}'; see transformers.TrainingArguments for what it has")
    asked = options.get("report_to") or ()
    wanted = {asked} if isinstance(asked, str) else set(asked)
    missing = sorted(wanted - {"none", "all", *(get_available_reporting_integrations() if wanted else ())})
    if missing:
        raise RequestError(f"cannot report to '{missing[0]}', which is not installed here; pip install it, or say none")


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
        return TrainingArguments(**{**common, **ours, **theirs})
    except (TypeError, ValueError, ImportError) as error:
        raise RequestError(f"trainer options: {' '.join(str(error).split())}") from error


def rows_at_once(batch: int, micro_batch: int) -> int:
    """Rows of a forward pass in each process, `micro_batch` at most, where all of them share the rows of an optimiser step.

    Raises:
        RequestError: if their shares cannot be equal.
    """
    if batch % count():
        raise RequestError(
            f"a step of {batch} rows cannot be shared by {count()} processes; choose a multiple of {count()} for the rows of a "
            "step (batch_size, sequences_per_step, recover_batch, scoring_batch), or fewer processes"
        )
    return math.gcd(batch // count(), micro_batch)


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
