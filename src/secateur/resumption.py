"""What an interrupted run leaves, and how it goes on: the work directory `OUT.work` beside its output.

```
OUT.work/request.json        what was asked for; another request does not go on from here
OUT.work/NAME.json           a phase whose result is small: figures, a plan; always written
OUT.work/plan.json           what is cut; a phase after it goes on from it
OUT.work/adapters.safetensors  what the fine-tuning goes on from, where that is asked for
OUT.work/NAME/               a phase whose result is weights; `result.json` and `weights.safetensors`
OUT.work/NAME-training/      the Trainer's checkpoints inside a phase, see `secateur.training.checkpoints`
OUT.work/run.log             the run's log, which ends up in the output
```

A phase is there whole or not at all: its file or directory is written under another name, flushed to the disk, and renamed.
Weights are those that were written, by their sha256, or are made again; a plan and adapters are, or the run is to start over.
Weights take space and time, so they are written where making them took `Keeping.minutes` or more; what is not there is done
again, from the phase before and with the same seed, to the same bytes.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.disk import flush, flush_entry, full_disk_named, held, replaced, sha256, temporary_beside
from secateur.errors import OutputError, RequestError, SecateurError, WriteError
from secateur.plan import PruningPlan
from secateur.processes import by_first, count, is_first, sharded, zero_stage
from secateur.report.log import logging_to
from secateur.report.record import redacted, secateur_version, versions
from secateur.signals import finishing
from secateur.surgery.weights import load_weights_, num_bytes, save_weights
from secateur.training.checkpoints import Keeping
from secateur.values import read_sealed, write_sealed, write_text

__all__ = ["Work", "finished", "identity", "open_work", "resumable", "work_directory"]

logger = logging.getLogger(__name__)

_REQUEST, _LOG, _PLAN, _ADAPTERS = "request.json", "run.log", "plan.json", "adapters.safetensors"
_RESULT, _WEIGHTS = "result.json", "weights.safetensors"
_SEAL = ".sha256"
_NOTHING = {_REQUEST, _LOG, _PLAN, _PLAN + _SEAL, _ADAPTERS, _ADAPTERS + _SEAL, "plan.masks.safetensors"}
"""What there is before a phase is done."""

_OTHERS = "another process is at the run in {}; wait for it, or choose another --out"
_GO_ON = "run the same command with --resume to go on"


def work_directory(out: str | Path) -> Path:
    """Where an unfinished run to `out` keeps what it has done."""
    target = Path(out).expanduser().absolute()
    return target.with_name(f"{target.name}.work")


def finished(out: str | Path, asked: dict[str, Any], *, overwrite: bool = False) -> bool:
    """Whether the run has put its result in place; then nothing is left to do. What lies in its work directory is removed.

    Args:
        out: the run's output.
        asked: what `identity` gave. What computed the result is not asked for: it is there.
        overwrite: whether the result of another request may be replaced.

    Raises:
        RequestError: if the result of another request is there, and may not be replaced.
    """
    here, there = work_directory(out) / _REQUEST, Path(out).expanduser() / "secateur" / _REQUEST
    if not there.is_file() or (here.is_file() and here.read_bytes() != there.read_bytes()):  # with the moment it began
        return False
    try:
        before = json.loads(there.read_text(encoding="utf-8"))
    except ValueError:
        before = None
    if not isinstance(before, dict):  # not what a run leaves
        return False
    changes = _differences({name: value for name, value in asked.items() if name not in _COMPUTES}, before)
    if changes and not here.is_file() and overwrite:
        return False
    if changes:
        raise RequestError(
            f"the run to {out}, which is finished, had another {changes}; give the same options to be handed its result, or "
            "choose another --out"
        )
    if here.is_file():  # killed just before it would have gone
        shutil.rmtree(here.parent, ignore_errors=True)
    return True


_COMPUTES = ("torch", "transformers", "device", "secateur", "number_of_processes", "sharding", "zero_stage")
"""What of a request says what computes it."""


def identity(**asked: Any) -> dict[str, Any]:
    """What makes two runs the same run, as plain JSON values: what was asked for, and what computes it."""
    by: dict[str, Any] = {name: number for name, number in versions().items() if name in _COMPUTES}
    by |= {"secateur": secateur_version(), "number_of_processes": count()}
    by |= {"sharding": sharded(), "zero_stage": zero_stage()}
    return dict(redacted(json.loads(json.dumps({**asked, **by}, default=str))))


@dataclass(frozen=True, kw_only=True)
class Work:
    """The phases of a run that are done, and where what is being done is kept."""

    keeping: Keeping
    """The work directory, and when weights are worth their space."""

    @property
    def folder(self) -> Path:
        """The work directory."""
        return self.keeping.folder

    def begin(self, asked: dict[str, Any]) -> None:
        """Write down what was asked for, and on which data; from then on there is something to resume.

        Raises:
            RequestError: if the run was begun on other data.
        """
        by_first(lambda: self._begin(asked))

    def _begin(self, asked: dict[str, Any]) -> None:
        known = self.folder / _REQUEST
        if known.is_file():
            _check_same(asked, known)
            for left in self.folder.glob(".*"):  # half of something
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            return
        with self._writing(_REQUEST):
            began = datetime.now(timezone.utc).isoformat()
            write_text(known, json.dumps({**asked, "began": began}, indent=2))
            flush_entry(self.folder)

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a phase as plain JSON values: read if it was done before, else made and written."""
        file = self.folder / f"{name}.json"
        found = by_first(lambda: _sound(file, read_sealed) if file.is_file() else None)
        if found is not None:
            return dict(found)
        made = make()

        def write() -> None:
            with self._writing(file.name):
                write_sealed(file, made)

        by_first(write)
        return made

    def once_plan(self, make: Callable[[], tuple[PruningPlan, Any]]) -> tuple[PruningPlan, Any]:
        """The plan, with the masks of its merges, and what else `make` gives, plain JSON values: the same way."""
        made: list[PruningPlan] = []

        def choose() -> dict[str, Any]:
            plan, more = make()
            self.keep_plan(plan)
            made.append(plan)
            return {"more": more}

        more = self.once("choice", choose)["more"]
        return (made[0] if made else self.kept_plan()), more

    def keep_plan(self, plan: PruningPlan) -> None:
        """Write the plan, for a phase that is about to be done with it."""
        by_first(lambda: self._keep(_PLAN, plan.save))

    def kept_plan(self) -> PruningPlan:
        """The plan that was kept last.

        Raises:
            RequestError: if it is not as it was written.
        """
        return PruningPlan.load(by_first(lambda: self._kept(_PLAN)))

    def once_with_weights_(
        self,
        name: str,
        model: nn.Module,
        make_: Callable[[], dict[str, Any]],
        *,
        ready_: Callable[[dict[str, Any]], None] | None = None,
        always: bool = False,
    ) -> dict[str, Any]:
        """The same of a phase that changes the model in place, weights and all.

        Args:
            name: of the phase.
            model: has the weights of the phase before, and after this call those of this one.
            make_: changes them; the value is the rest of the result.
            ready_: gives the model, by the rest of the result, the modules that it has after `make_`; the same if None.
            always: write the weights however quickly they were made.
        """
        folder = self.folder / name
        found = by_first(lambda: _result_with_weights(folder))
        if found is not None:
            if ready_ is not None:
                ready_(found)
            load_weights_(model, folder / _WEIGHTS)
            return found
        start = time.monotonic()
        made = make_()
        seconds = time.monotonic() - start

        def write() -> None:
            if not (always or self.keeping.worth(seconds)):
                return
            with self._writing(name, needs=num_bytes(model)), temporary_beside(folder) as temporary:
                save_weights(model, temporary / _WEIGHTS)
                write_sealed(temporary / _RESULT, {"result": made, "sha256": sha256(temporary / _WEIGHTS)})
                replaced(temporary, folder)
            shutil.rmtree(self.training(name).folder, ignore_errors=True)  # done with

        by_first(write)
        return made

    def keep_adapters(self, adapters: Mapping[str, Tensor]) -> None:
        """Write adapters to go on with, in the same way."""

        def write(file: Path) -> None:
            save_file({name: tensor.cpu().contiguous() for name, tensor in adapters.items()}, file)
            flush(file)

        by_first(lambda: self._keep(_ADAPTERS, write))

    def kept_adapters(self) -> dict[str, Tensor]:
        """The adapters that were kept last.

        Raises:
            RequestError: if they are not as they were written.
        """
        return dict(load_file(by_first(lambda: self._kept(_ADAPTERS))))

    def _keep(self, name: str, write: Callable[[Path], None]) -> None:
        """Write a file that a later phase goes on from, and its sha256."""
        file = self.folder / name
        with self._writing(name):
            write(file)
            write_text(file.with_name(name + _SEAL), sha256(file))

    def _kept(self, name: str) -> Path:
        """Such a file, as it was written."""
        file = self.folder / name
        seal = file.with_name(name + _SEAL)
        if not (file.is_file() and seal.is_file() and sha256(file).encode() == seal.read_bytes()):
            raise _damaged(file)
        return file

    def training(self, name: str) -> Keeping:
        """Where a training inside a phase keeps its checkpoints."""
        return self.keeping.within(f"{name}-training")

    def left_of(self, name: str) -> float:
        """The share of a phase that is still to be done: all, none, or what its training has left of its steps."""
        if (self.folder / f"{name}.json").is_file() or (self.folder / name).is_dir():
            return 0.0
        return self.left_to_train(name)

    def left_to_train(self, name: str) -> float:
        """The share of the steps of a training inside a phase that its last checkpoint leaves; all if there is none."""
        left = 1.0
        for file in self.training(name).folder.glob("checkpoint-*/trainer_state.json"):
            with suppress(
                OSError, ValueError, KeyError, ZeroDivisionError
            ):  # half of one; that is judged where it is read
                state = json.loads(file.read_text(encoding="utf-8"))
                left = min(left, max(0.0, 1 - state["global_step"] / state["max_steps"]))
        return left

    def take_along(self, about: Path) -> None:
        """Copy the request, the log, and what trainings reported to TensorBoard, to where they stay."""
        for name in (_REQUEST, _LOG):
            shutil.copy2(self.folder / name, about / name)
        for runs in self.folder.glob("*-training/runs"):
            shutil.copytree(runs, about / "runs" / runs.parent.name)

    def forget(self) -> None:
        """Remove it all: there is nothing to go on from."""
        if is_first():
            shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _writing(self, name: str, needs: int | None = None) -> Iterator[None]:
        """A signal waits for what is being written, and a full disk is said."""
        then = f"what was done before is kept: make room, and {_GO_ON}"
        with finishing(), full_disk_named(self.folder / name, needs=needs, then=then):
            yield


def open_work(out: str | Path, asked: dict[str, Any], *, resume: bool, minutes: float = 5.0) -> Work:
    """The work directory; what lies there must be this very run, and `resume` must say so. Nothing is written yet.

    Args:
        out: the run's output.
        asked: what makes two runs the same run, as plain JSON values; an unfinished run has it in `request.json`.
        resume: whether the run is to go on.
        minutes: see `Keeping`.

    Raises:
        RequestError: if there is an unfinished run that is not to go on, or another, or none that could.
        OutputError: if something else is in its place.
    """
    folder = work_directory(out)
    known = folder / _REQUEST
    work = Work(keeping=Keeping(folder=folder, minutes=minutes))
    if not resume:
        if known.exists():
            with held(folder) as free:
                if free is False:
                    raise RequestError(_OTHERS.format(folder))
            raise RequestError(
                f"{folder} holds an unfinished run; add --resume to go on with it, or remove it to start over"
            )
        if folder.exists() and not (folder.is_dir() and not _foreign(folder)):
            raise OutputError(f"{folder} is needed while the run lasts, and holds something else; choose another --out")
        return work
    if not known.is_file():
        if folder.is_dir() and not _foreign(folder):
            return work  # killed before it had begun: nothing is lost, and all is done now
        raise RequestError(f"there is nothing to resume: {folder} holds no unfinished run; leave --resume out")
    _check_same(asked, known)
    return work


def _sound(file: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """What a run left; written whole or not at all, so that damage comes from elsewhere."""
    try:
        return read(file)
    except (ValueError, TypeError) as error:
        raise _damaged(file) from error


def _damaged(file: Path) -> RequestError:
    return RequestError(f"{file} is damaged, so that the run cannot go on from it; remove {file.parent} to start over")


def _result_with_weights(folder: Path) -> dict[str, Any] | None:
    """What a phase left beside its weights, which are those that were written; None if the phase is to be done again."""
    if not folder.is_dir():
        return None
    try:
        about = read_sealed(folder / _RESULT)
        if sha256(folder / _WEIGHTS) == about["sha256"]:
            return dict(about["result"])
    except (FileNotFoundError, ValueError):
        pass
    logger.warning("what is in %s is damaged; that is done again", folder)
    shutil.rmtree(folder)
    return None


def _check_same(asked: dict[str, Any], known: Path) -> None:
    before = _sound(known, lambda file: dict(json.loads(file.read_text(encoding="utf-8"))))
    if changes := _differences(asked, before):
        raise RequestError(
            f"the unfinished run in {known.parent} had another {changes}; give the same options to resume it, or remove it"
        )


def _differences(asked: dict[str, Any], before: dict[str, Any]) -> str:
    """The first part of a request that was another one, with what of it was what: `target (drop: 2 then, 3 now)`."""
    name = next((name for name in asked if asked[name] != before.get(name)), None)
    if name is None:
        return ""
    return f"{name.replace('_', ' ')} ({'; '.join(_changed(before.get(name), asked[name]))})"


def _changed(then: Any, now: Any, name: str = "") -> list[str]:
    """Each value that is another now, by its name where there are several."""
    if isinstance(then, dict) and isinstance(now, dict):
        names = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        return [change for key in names for change in _changed(then.get(key), now.get(key), key.replace("_", "-"))]
    then, now = ("null" if value is None else value for value in (then, now))
    return [f"{name}: {then} then, {now} now".removeprefix(": ")]


def _worth_nothing(folder: Path, error: BaseException, *, begun_here: bool) -> bool:
    """Whether nothing is done yet, or only what takes little time beside an error that would come again."""
    comes_again = begun_here and isinstance(error, SecateurError) and not isinstance(error, WriteError)
    found = list(folder.glob("*"))  # none where the folder is gone already
    return {path.name for path in found} <= _NOTHING or (comes_again and not any(path.is_dir() for path in found))


def _foreign(folder: Path) -> bool:
    """Whether there is more than a run leaves that was killed before it had written its request."""
    return any(path.name != _LOG and not path.name.startswith(".request.json.") for path in folder.iterdir())


@contextmanager
def resumable(work: Work, *, command: str = "") -> Iterator[None]:
    """Hold the work directory, log into it, and say on an interrupt what is kept; after a run that ended well, it is removed.

    Args:
        work: what `open_work` gave.
        command: the command line without secrets, for the log.

    Raises:
        RequestError: if another process is at it.
    """
    if not is_first():  # the first process sees to all that is on the disk
        yield
        return
    folder = work.folder
    created = [each for each in folder.parents if not each.exists()]  # the deepest first
    begun_here = not (folder / _REQUEST).exists()
    with full_disk_named(folder, then="nothing was written: make room, or choose another --out"):
        folder.mkdir(parents=True, exist_ok=True)
    with held(folder) as mine:
        if mine is False:
            raise RequestError(_OTHERS.format(folder))
        try:
            with logging_to(folder / _LOG, command):
                yield
        except BaseException as error:
            if _worth_nothing(folder, error, begun_here=begun_here):
                work.forget()
                with suppress(OSError):  # not empty: somebody else uses them
                    for each in created:
                        each.rmdir()
            elif isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(f"what was done is kept in {folder}; {_GO_ON}") from None
            raise
        work.forget()
