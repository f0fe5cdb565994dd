"""Fine-tuning on a task: the loss on the completion only, full or LoRA, on `transformers.Trainer`.

The Trainer's batches, schedules, checkpoints and logging are used as they are. Ours are the tokens (`secateur.training.rows`),
the score that chooses the best checkpoint, and the guard against a loss that is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainingArguments

from secateur.decoder import Decoder
from secateur.errors import TrainingDivergedError
from secateur.loading import quiet_transformers
from secateur.progress import Progress, Silent
from secateur.training.checkpoints import Keeping, ResumableTrainer
from secateur.training.completion import LearntPositions
from secateur.training.lora import attach_lora, lora_config, take_over_
from secateur.training.rows import Rows, collate
from secateur.training.settings import FineTuning
from secateur.training.sharding import in_parts
from secateur.training.trainer import (
    Advance,
    given_back,
    mean_of_processes,
    training_arguments,
    unprepared,
)

__all__ = ["FineTuning", "check_fine_tuning", "fine_tune_"]


def check_fine_tuning(
    decoder: Decoder, settings: FineTuning, num_examples: int, *, validated: bool, precision: torch.dtype | None = None
) -> None:
    """Make sure, before anything expensive, that a model can be fine-tuned so; nothing is changed.

    Raises:
        RequestError: if `settings.trainer` makes no sense, or peft cannot do what is asked for.
    """
    _arguments(settings, num_examples, Path("unused"), validated, True, precision, 0, validated)
    if settings.train == "lora":
        lora_config(decoder, rank=settings.lora_rank, alpha=settings.lora_alpha, dropout=settings.lora_dropout)


def fine_tune_(
    decoder: Decoder,
    rows: Rows,
    *,
    settings: FineTuning,
    work: Path,
    validate: Callable[[Any], dict[str, float]] | None = None,
    greater_is_better: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    precision: torch.dtype | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    description: str = "fine-tuning",
    shown_steps: int | None = None,
    save: bool = True,
    checkpoint_minutes: float = 5.0,
    adapters: Mapping[str, Tensor] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Fine-tune the model in place, from where `work` says it stopped, if it did.

    Args:
        decoder: the model to train, as it is now; with LoRA it is wrapped, and its own weights stay.
        rows: the training examples.
        settings: see `FineTuning`.
        work: the directory of the Trainer's checkpoints; one that lies there is resumed from.
        validate: measures the model after each epoch: a dictionary whose `score` chooses the best epoch. The last if None.
        greater_is_better: whether a larger score is better.
        callbacks: further callbacks of the Trainer.
        precision: autocast dtype.
        seed: of the order of the examples, dropout and the adapters.
        progress: told of each step.
        description: what is being done, for the progress.
        shown_steps: how many steps the progress expects, if a callback stops early.
        save: write checkpoints.
        checkpoint_minutes: write them between epochs as well, where as much work would be lost otherwise.
        adapters: with LoRA, where to begin: `secateur.training.lora.adapters_of_kept`. From nothing if None.

    Returns:
        The model (wrapped by peft with LoRA), in evaluation mode, trainable where it was; and a report: `steps`, `examples`,
        `seconds` (of this call), `losses`, `validation` (a dictionary an epoch) and `best_step`, whose weights the model has.

    Raises:
        RequestError: if `settings.trainer` makes no sense; nothing was changed.
        TrainingDivergedError: if the loss stops being finite. LoRA is taken off again; with full training the model holds
            weights of a late step, and the checkpoints of good epochs are in `work`.
    """
    arguments = _arguments(settings, len(rows), work, validate is not None, greater_is_better, precision, seed, save)
    with (
        given_back(decoder.model, checkpointing=bool(arguments.gradient_checkpointing)),
        _trainable(decoder, settings, seed, adapters) as model,
        unprepared(model),
        in_parts(model) as given,
    ):
        trainer = _TaskTrainer(
            model=given, args=arguments, train_dataset=list(rows), data_collator=collate, callbacks=list(callbacks),
            validate=validate,
        )  # fmt: skip
        if validate is not None and settings.patience is not None:
            trainer.add_callback(EarlyStoppingCallback(settings.patience))
        tracked = (progress or Silent()).track(description, shown_steps or arguments.max_steps)
        with quiet_transformers(), tracked as advance:
            trainer.add_callback(Advance(advance))
            keeping = Keeping(folder=work, minutes=checkpoint_minutes) if save else None
            seconds = trainer.carry_on(keeping)
    return model.eval(), trainer.report(seconds, batch_size=settings.batch_size)


@contextmanager
def _trainable(
    decoder: Decoder, settings: FineTuning, seed: int, adapters: Mapping[str, Tensor] | None
) -> Iterator[Any]:
    """The model with all its weights trainable, or with adapters, which an error takes off again."""
    lora, model = settings.train == "lora", decoder.model
    if lora:
        model = attach_lora(
            decoder, rank=settings.lora_rank, alpha=settings.lora_alpha, dropout=settings.lora_dropout, seed=seed
        )
        if adapters is not None:
            take_over_(model, adapters)
    else:
        model.requires_grad_(True)
    try:
        yield model
    except BaseException:
        if lora:
            model.unload()
        raise


class _TaskTrainer(ResumableTrainer):
    """A Trainer that is evaluated by a function of ours, and stops on a loss that is not finite."""

    def __init__(self, *, validate: Callable[[Any], dict[str, float]] | None, **trainer: Any) -> None:
        self.validate = validate  # the Trainer asks for an evaluation set otherwise
        super().__init__(**trainer, eval_dataset=trainer["train_dataset"][:1] if validate else None)
        self.remove_callback(PrinterCallback)  # standard output is for results
        self.learnt = LearntPositions(usable=not self.args.label_smoothing_factor and self.args.n_gpu <= 1)

    def report(self, seconds: float, *, batch_size: int) -> dict[str, Any]:
        """How the training went, also before an interrupt."""
        log, best = self.state.log_history, self.state.best_model_checkpoint
        return {
            "steps": self.state.global_step,
            "examples": self.state.global_step * batch_size,
            "seconds": round(seconds, 3),
            "losses": [entry for entry in log if "loss" in entry],
            "validation": [
                {name.removeprefix("eval_"): value for name, value in entry.items()}
                for entry in log
                if "eval_score" in entry
            ],
            "best_step": int(best.rpartition("-")[2]) if best else self.state.global_step,
        }

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the score on the validation examples."""
        assert self.validate is not None  # noqa: S101  the strategy is "no" without it
        metrics = {f"eval_{name}": value for name, value in self.validate(self.model).items()}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.model.train()
        return metrics

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The model's own loss, of what is learnt, looked at."""
        loss = super().compute_loss(model, self.learnt(model, inputs), *args, **kwargs)
        value = mean_of_processes({"loss": loss[0] if isinstance(loss, tuple) else loss})["loss"]
        if not math.isfinite(value):  # in one process or in several: all give up
            raise TrainingDivergedError(
                f"the loss became {value} at step {self.state.global_step + 1}; try a lower learning rate (now "
                f"{self.args.learning_rate:g}), or fp32 precision"
            )
        return loss


def _arguments(
    settings: FineTuning,
    num_examples: int,
    work: Path,
    validated: bool,
    greater_is_better: bool,
    precision: torch.dtype | None,
    seed: int,
    save: bool,
) -> TrainingArguments:
    steps = settings.num_steps(num_examples)
    each, every = ("steps", settings.steps_of_epoch(num_examples)) if save else ("no", 1)
    return training_arguments(
        settings,
        settings.trainer,
        work=work,
        steps=steps,
        batch=settings.batch_size,
        micro_batch=settings.at_once,
        rate=settings.rate,
        precision=precision,
        seed=seed,
        save_strategy=each,
        save_steps=every,
        eval_strategy=each if validated else "no",
        eval_steps=every,
        load_best_model_at_end=validated and save,
        metric_for_best_model="score" if validated else None,
        greater_is_better=greater_is_better if validated else None,
        restore_callback_states_from_checkpoint=True,  # how many epochs the patience has lasted
        logging_steps=max(1, steps // 50),
    )
