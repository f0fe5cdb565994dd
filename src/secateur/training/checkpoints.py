"""Checkpoints of a training that is to go on after an interrupt as if there had been none: the Trainer's own, and when.

A checkpoint counts once `secateur.json` is in it, which is written last, when all else is on the disk itself, and while its files
are those that were written, by their sha256: half of one, or a damaged one, is never read. It holds what the Trainer does not
keep as well: the loss since it was last logged, and what a trainer of ours adds. Older ones are removed once it is there, but
for the best.

Weights, and AdamW's two moments of each, are written where as much work would be lost otherwise as `Keeping.minutes` says, and
never so often that it would take more than a twentieth of the time; and on a signal, after the step. Whether one is written
changes nothing in the training.
"""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import TrainerState

from secateur.disk import flush, flush_entry, full_disk_named, sha256
from secateur.processes import agreed, all_here, by_first
from secateur.signals import asked_to_stop, finishing
from secateur.surgery.weights import load_weights_, state, write_weights
from secateur.training.sharding import whole
from secateur.values import read_sealed, write_sealed

__all__ = ["Keeping", "ResumableTrainer"]

logger = logging.getLogger(__name__)

_MARK, _FILES, _TRAINED = "secateur.json", "sha256", "trained.safetensors"
_SHARE = 20
"""Between two checkpoints is so many times what the last took."""


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Where what a run has done is kept, and when that is worth its space."""

    folder: Path
    """What lies there is gone on from."""

    minutes: float = 5.0
    """Weights are written where as much work would be lost otherwise; 0 writes them after every step."""

    def within(self, name: str) -> Keeping:
        """The same in a folder of it."""
        return Keeping(folder=self.folder / name, minutes=self.minutes)

    def worth(self, seconds: float) -> bool:
        """Whether the weights that took so long to make are to be written."""
        return seconds >= 60 * self.minutes


class ResumableTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that goes on from its last whole checkpoint, to the bit."""

    def __init__(self, **trainer: Any) -> None:
        super().__init__(**trainer)
        self._dtypes = {name: tensor.dtype for name, tensor in self._state().items()}

    def carry_on(self, keeping: Keeping | None) -> float:
        """Train, from the last checkpoint if there is one, and write others; the seconds that took.

        The Trainer does not know that the run of a checkpoint was over: it would do the rest of an epoch that had to stop.

        Args:
            keeping: where checkpoints are; none are read or written if None.

        Raises:
            WriteError: if the disk is full; the checkpoint before is whole.
            KeyboardInterrupt: once a step has ended, if a signal had come.
        """
        if keeping is None:
            return float(self.train().metrics["train_runtime"])
        last = by_first(lambda: last_checkpoint(keeping.folder))
        kept = {} if last is None else last[2]
        self.add_callback(_Checkpoints(self, keeping, kept))
        self.restore(kept)
        if last is not None and _is_over(last[1]):
            folder, self.state, _ = last
            self._load_from_checkpoint(str(_best_beside(folder, self.state) or folder))
            return 0.0
        then = "the last whole checkpoint stays: make room, and go on with --resume"
        with full_disk_named(keeping.folder, needs=self._checkpoint_bytes(), then=then, certain=False), finishing():
            try:
                result = self.train(resume_from_checkpoint=None if last is None else str(last[0]))
            except BaseException:
                half = keeping.folder / f"checkpoint-{self.state.global_step}"
                if not (half / _MARK).exists():
                    shutil.rmtree(half, ignore_errors=True)
                raise
        return float(result.metrics["train_runtime"])

    def _checkpoint_bytes(self) -> int:
        """Of a checkpoint, about: what is trained, and AdamW's two moments of it."""
        trained = (weight for weight in self.model.parameters() if weight.requires_grad)
        return 3 * sum(int(weight.numel() * weight.element_size()) for weight in trained)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """What is trained, by its names in memory: no family's way of writing files comes between.

        The Trainer leaves out what it does not find under the names of files, as experts that are stored one by one. DeepSpeed's
        weights may be rounded ones, of which those that are updated lie in parts in the processes.
        """
        if state_dict is not None and not self.is_deepspeed_enabled:  # sharded weights, gathered by accelerate
            super()._save(output_dir, state_dict)
            return
        weights = {name: whole(tensor).to(self._dtypes[name]) for name, tensor in self._state().items()}
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_weights(weights, folder / _TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._take_up(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled or not self._take_up(Path(self.state.best_model_checkpoint)):
            super()._load_best_model()  # DeepSpeed has what it updates beside the model

    def _take_up(self, folder: Path) -> bool:
        """Whether what is trained lies there by its names in memory, and is now in the model."""
        file = folder / _TRAINED
        if not file.exists():
            return False
        load_weights_(self.model, file, only=self._trained_names())
        return True

    def _state(self) -> dict[str, torch.Tensor]:
        """What is trained, and buffers, by their names in memory."""
        return state(self.model, only=self._trained_names())

    def _trained_names(self) -> set[str]:
        return {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def remembered(self) -> dict[str, Any]:
        """What else a checkpoint has to hold, as plain JSON values."""
        return {}

    def restore(self, kept: dict[str, Any]) -> None:
        """Take up what `remembered` gave."""


class _Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Asks for checkpoints in time, marks those that are whole, and stops after one where a signal has come."""

    def __init__(self, trainer: ResumableTrainer, keeping: Keeping, kept: dict[str, Any]) -> None:
        self.trainer, self.keeping, self.kept = trainer, keeping, kept
        self.since, self.took = time.monotonic(), 0.0

    def on_train_begin(self, _args: Any, _state: Any, *_: Any, **__: Any) -> None:
        """Go on with the loss since it was last logged, which the Trainer begins anew."""
        trainer = self.trainer
        if self.kept:
            trainer._globalstep_last_logged = self.kept["last_logged"]
            trainer._tr_loss = torch.full_like(trainer._tr_loss, self.kept["loss_since"])
        self.since = time.monotonic()

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint if one is due."""
        gone = time.monotonic() - self.since
        least = _SHARE * self.took if self.keeping.minutes else 0.0
        due = self.keeping.worth(gone) and gone >= least and state.global_step < state.max_steps
        if agreed(due or asked_to_stop()):
            control.should_save = True
        self.saving = time.monotonic()

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Mark what was just written as whole; and stop, if that is what it was for."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        about = {
            "last_logged": self.trainer._globalstep_last_logged,
            "loss_since": self.trainer._tr_loss.item(),
            **self.trainer.remembered(),
        }
        all_here()  # all have written their part
        by_first(lambda: _mark(folder, state, about))
        self.since = time.monotonic()
        self.took = self.since - self.saving
        if agreed(asked_to_stop()):
            raise KeyboardInterrupt


def _mark(folder: Path, state: TrainerState, about: dict[str, Any]) -> None:
    """Say that a checkpoint is whole, and remove those that it replaces."""
    flush(folder)
    (folder / _MARK).unlink(missing_ok=True)  # of a damaged one that this one replaces
    files = {file.relative_to(folder).as_posix(): sha256(file) for file in folder.rglob("*") if file.is_file()}
    write_sealed(folder / _MARK, {**about, _FILES: files})
    flush_entry(folder)
    flush_entry(folder.parent)
    kept = {folder, _best_beside(folder, state)}
    for other in folder.parent.glob("checkpoint-*"):
        if other not in kept:
            (other / _MARK).unlink(missing_ok=True)  # first, as half of it is none
            shutil.rmtree(other, ignore_errors=True)


def last_checkpoint(folder: Path) -> tuple[Path, TrainerState, dict[str, Any]] | None:
    """The newest checkpoint that is whole, and so is the best at its time; its state, and what is in its mark."""
    numbers = [path.name.rpartition("-")[2] for path in folder.glob("checkpoint-*")]
    for number in sorted((int(number) for number in numbers if number.isdecimal()), reverse=True):
        found = folder / f"checkpoint-{number}"
        try:
            kept = _whole(found)
            state = TrainerState.load_from_json(str(found / "trainer_state.json"))
            if (best := _best_beside(found, state)) is not None:
                _whole(best)
        except FileNotFoundError:
            logger.info("%s was not written to its end; it is not used", found)
        except (OSError, ValueError) as error:
            logger.warning("%s; the checkpoint is not used", error)
        else:
            return found, state, kept
    return None


def _whole(folder: Path) -> dict[str, Any]:
    """What is in the mark of a checkpoint, whose files are those that were written.

    Raises:
        OSError, ValueError: if it has no mark, or they are not.
    """
    kept = read_sealed(folder / _MARK)
    for name, digest in kept[_FILES].items():
        if sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} is damaged")
    return kept


def _best_beside(folder: Path, state: TrainerState) -> Path | None:
    """Where the best checkpoint is, beside another; None if nothing says which that is."""
    best = state.best_model_checkpoint
    return folder.with_name(Path(best).name) if best else None


def _is_over(state: TrainerState) -> bool:
    """Whether the training had come to its end, or was stopped early, when this state was written."""
    control = state.stateful_callbacks["TrainerControl"]
    control = control[-1] if isinstance(control, list) else control
    return bool(control["args"]["should_training_stop"])
