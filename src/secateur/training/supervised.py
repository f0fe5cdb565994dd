"""Fine-tuning on a task: examples as tokens, the loss on the completion only, full or LoRA, on `transformers.Trainer`.

The Trainer's batches, schedules, checkpoints and logging are used as they are. Ours are the tokens (a prompt that is too
long is cut from its beginning, never the completion, which trl's trainer would cut), the score that chooses the best
checkpoint, and the guard against a loss that is not finite.
"""

from __future__ import annotations

import logging
import math
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerState

from secateur.data import TokenBatches
from secateur.data.prompts import context_length, encode_pairs
from secateur.decoder import Decoder
from secateur.errors import RequestError, TrainingDivergedError
from secateur.loading import quiet_transformers
from secateur.progress import Progress, Silent
from secateur.training.completion import IGNORED, LearntPositions
from secateur.training.igia import IGIACallback
from secateur.training.lora import attach_lora, lora_config
from secateur.training.trainer import Advance, check_trainer_options, given_back, training_arguments

if TYPE_CHECKING:
    from secateur.data.examples import Examples

__all__ = [
    "FineTuning",
    "Rows",
    "Scoring",
    "check_fine_tuning",
    "fine_tune_",
    "one_of",
    "rows_of",
    "rows_of_windows",
    "score_layers",
]

logger = logging.getLogger(__name__)

Rows = Sequence[dict[str, list[int]]]
"""Tokenised examples: `input_ids` and `labels` (-100 where no loss is)."""

_MICRO_BATCH = 4
_FULL_RATE, _LORA_RATE = 2e-5, 2e-4


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
        one_of(self, "gradients")
        _above_zero(self, "scoring_rank", "scoring_alpha", "scoring_rate", "scoring_batch")
        _shares(self, "scoring_warmup")
        _not_below_zero(self, "scoring_weight_decay")

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
    """Further fields of transformers.TrainingArguments (gradient_checkpointing, report_to, optim, save_steps, …)."""

    def __post_init__(self) -> None:
        one_of(self, "train")
        _above_zero(
            self, "learning_rate", "epochs", "max_steps", "batch_size", "micro_batch", "max_length", "lora_rank",
            "lora_alpha", "patience",
        )  # fmt: skip
        _shares(self, "lora_dropout", "warmup")
        _not_below_zero(self, "weight_decay", "max_grad_norm")
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise RequestError(f"micro_batch={self.micro_batch} does not divide batch_size={self.batch_size}")
        check_trainer_options(self.trainer)

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return self.learning_rate or (_FULL_RATE if self.train == "full" else _LORA_RATE)

    def num_steps(self, num_examples: int) -> int:
        """Optimiser steps on so many examples."""
        return self.max_steps or max(1, math.ceil(self.epochs * math.ceil(num_examples / self.batch_size)))


# ---- tokens ------------------------------------------------------------------------------------------------------------


def rows_of(examples: Examples, model: Any, tokenizer: Any, *, max_length: int) -> Rows:
    """Tokenise examples as they are scored, with the end-of-text token after the completion; the loss is on these two.

    None is longer than `max_length` or the model's context.

    Raises:
        DataError: if a completion alone is longer than that. A plain text that is too long is cut at its end.
    """
    end = tokenizer.eos_token_id
    length = context_length(model, max_length)
    encoded = encode_pairs(
        model, tokenizer, [(example.prompt, example.completion) for example in examples],
        limit=length - 2 if examples.kind != "text" else sys.maxsize,  # of a pair, and without the end-of-text token
    )  # fmt: skip
    rows = []
    for item in encoded:
        learnt = list(item.completion)
        if end is not None and end not in learnt:  # a chat template ends its turns itself
            learnt.append(end)
        ids = [*item.context, *learnt][:length]
        rows.append({"input_ids": ids, "labels": [IGNORED] * len(item.context) + ids[len(item.context) :]})
    return rows


def rows_of_windows(batches: TokenBatches) -> Rows:
    """Windows of plain text as rows: every token is learnt."""
    return [{"input_ids": window, "labels": window} for window in batches.input_ids.tolist()]


def _collate(rows: Rows) -> dict[str, Tensor]:
    """Right-padded tensors (batch, tokens)."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, value: int) -> Tensor:
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": padded("input_ids", 0),
        "labels": padded("labels", IGNORED),
        "attention_mask": torch.tensor(mask),
    }


# ---- the two trainings -------------------------------------------------------------------------------------------------


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
        The callback that watched.

    Raises:
        TrainingDivergedError: if the loss stops being finite; the model is as it was.
    """
    total = total_steps or math.ceil(len(rows) / settings.scoring_batch)
    steps = settings.num_scoring_steps(total)
    callback = IGIACallback(steps, gradients=settings.gradients, stop=True, keep_factors=keep_factors)
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
            trained.unload()
    return callback


@contextmanager
def _borrowed(model: nn.Module, *, weights: bool) -> Iterator[None]:
    """The model for a training that is only looked at: modes, gradients and what is trainable come back, weights if asked."""
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

    Returns:
        The model (wrapped by peft with LoRA), in evaluation mode, trainable where it was; and a report: `steps`, `examples`,
        `seconds` (of this call), `losses`, `validation` (a dictionary an epoch) and `best_step`, whose weights the model has.

    Raises:
        RequestError: if `settings.trainer` makes no sense; nothing was changed.
        TrainingDivergedError: if the loss stops being finite. LoRA is taken off again; with full training the model holds
            weights of a late step, and the checkpoints of good epochs are in `work`.
    """
    arguments = _arguments(settings, len(rows), work, validate is not None, greater_is_better, precision, seed, save)
    lora, model = settings.train == "lora", decoder.model
    with given_back(decoder.model, checkpointing=bool(arguments.gradient_checkpointing)):
        if lora:
            model = attach_lora(
                decoder, rank=settings.lora_rank, alpha=settings.lora_alpha, dropout=settings.lora_dropout, seed=seed
            )
        else:
            model.requires_grad_(True)
        forward = vars(model).get("forward")
        try:
            trainer = _TaskTrainer(
                model=model,
                args=arguments,
                train_dataset=list(rows),
                data_collator=_collate,
                callbacks=list(callbacks),
                validate=validate,
            )
            if validate is not None and settings.patience is not None:
                trainer.add_callback(EarlyStoppingCallback(settings.patience))
            tracked = (progress or Silent()).track(description, shown_steps or arguments.max_steps)
            with quiet_transformers(), tracked as advance:
                trainer.add_callback(Advance(advance))
                seconds = trainer.carry_on(_last_checkpoint(work) if save else None)
        except BaseException:
            if lora:
                model.unload()
            raise
        finally:  # mixed precision put another forward in its place
            vars(model).pop("_original_forward", None)
            vars(model).pop("forward", None)
            if forward is not None:
                model.forward = forward
    state = trainer.state
    best = trainer.best_checkpoint(state)
    return model.eval(), {
        "steps": state.global_step,
        "examples": state.global_step * settings.batch_size,
        "seconds": round(seconds, 3),
        "losses": [entry for entry in state.log_history if "loss" in entry],
        "validation": trainer.validations,
        "best_step": int(best.rpartition("-")[2]) if best else state.global_step,
    }


def _last_checkpoint(work: Path) -> tuple[Path, TrainerState] | None:
    """The newest checkpoint that was written to its end, and its state; an interrupt may leave half of one."""
    numbers = [folder.name.rpartition("-")[2] for folder in work.glob("checkpoint-*")]
    for number in sorted((int(number) for number in numbers if number.isdecimal()), reverse=True):
        folder = work / f"checkpoint-{number}"
        try:
            return folder, TrainerState.load_from_json(str(folder / "trainer_state.json"))  # the Trainer writes it last
        except (OSError, ValueError, TypeError):
            logger.info("%s was not written to its end; it is not used", folder)
    return None


class _TaskTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that is evaluated by a function of ours, and stops on a loss that is not finite."""

    def __init__(self, *, validate: Callable[[Any], dict[str, float]] | None, **trainer: Any) -> None:
        self.validate = validate  # the Trainer asks for an evaluation set otherwise
        super().__init__(**trainer, eval_dataset=trainer["train_dataset"][:1] if validate else None)
        self.remove_callback(PrinterCallback)  # standard output is for results
        self.learnt = LearntPositions(usable=not self.args.label_smoothing_factor and self.args.n_gpu <= 1)

    @property
    def validations(self) -> list[dict[str, float]]:
        """What was measured after each epoch, also before an interrupt."""
        return [
            {name.removeprefix("eval_"): value for name, value in entry.items()}
            for entry in self.state.log_history
            if "eval_score" in entry
        ]

    def carry_on(self, last: tuple[Path, TrainerState] | None) -> float:
        """Train, from the last checkpoint if there is one; the seconds that took.

        The Trainer does not know that the run of a checkpoint was over: it would do the rest of an epoch that had to stop.
        """
        if last is None:
            return float(self.train().metrics["train_runtime"])
        folder, state = last
        if not _is_over(state):
            return float(self.train(resume_from_checkpoint=str(folder)).metrics["train_runtime"])
        self._load_from_checkpoint(str(folder.with_name(self.best_checkpoint(state) or folder.name)))
        self.state = state
        return 0.0

    def best_checkpoint(self, state: TrainerState) -> str | None:
        """The name of the checkpoint that is loaded at the end; None if that is the last."""
        best = state.best_model_checkpoint if self.args.load_best_model_at_end else None
        return Path(best).name if best else None

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
        value = loss[0] if isinstance(loss, tuple) else loss
        if not torch.isfinite(value):
            raise TrainingDivergedError(
                f"the loss became {value.item()} at step {self.state.global_step + 1}; try a lower learning rate (now "
                f"{self.args.learning_rate:g}), or fp32 precision"
            )
        return loss


def _is_over(state: TrainerState) -> bool:
    """Whether the training had come to its end, or was stopped early, when this state was written."""
    control = state.stateful_callbacks["TrainerControl"]
    control = control[-1] if isinstance(control, list) else control
    return bool(control["args"]["should_training_stop"])


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
    epoch = max(1, min(steps, math.ceil(num_examples / settings.batch_size)))
    each, every = ("steps", epoch) if save else ("no", 1)
    return training_arguments(
        settings,
        settings.trainer,
        work=work,
        steps=steps,
        batch=settings.batch_size,
        micro_batch=settings.micro_batch or math.gcd(settings.batch_size, _MICRO_BATCH),
        rate=settings.rate,
        precision=precision,
        seed=seed,
        save_strategy=each,
        save_steps=every,
        save_total_limit=2,
        eval_strategy=each if validated else "no",
        eval_steps=every,
        load_best_model_at_end=validated and save,
        metric_for_best_model="score" if validated else None,
        greater_is_better=greater_is_better if validated else None,
        restore_callback_states_from_checkpoint=True,  # how many epochs the patience has lasted
        logging_steps=max(1, steps // 50),
    )


def one_of(settings: Any, *names: str) -> None:
    """Hold fields of settings to the choices that their types name.

    Raises:
        RequestError: if one has another value.
    """
    for name in names:
        hint, value = get_type_hints(type(settings))[name], getattr(settings, name)
        choices = [choice for part in (hint, *get_args(hint)) for choice in get_args(part) if isinstance(choice, str)]
        if value not in choices and not (value is None and type(None) in get_args(hint)):
            raise RequestError(f"{name} is one of {', '.join(choices)}, not '{value}'")


def _above_zero(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise RequestError(f"{name} must be above 0, not {value:g}")


def _shares(settings: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(settings, name) <= 1:
            raise RequestError(f"{name} is a share, not {getattr(settings, name):g}; choose 0..1")


def _not_below_zero(settings: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(settings, name) < math.inf:
            raise RequestError(f"{name} must be 0 or more, not {getattr(settings, name):g}")
