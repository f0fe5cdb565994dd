"""What an interrupted run leaves, and how it goes on: the work directory `OUT.work` beside its output."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from secateur.errors import OutputError, RequestError

__all__ = ["open_work", "resumable", "work_directory"]


def work_directory(out: str | Path) -> Path:
    """Where an unfinished run to `out` keeps what it has done."""
    target = Path(out).expanduser().absolute()
    return target.with_name(f"{target.name}.work")


def open_work(out: str | Path, asked: dict[str, Any], *, resume: bool) -> Path:
    """The work directory; what lies there must be this very run, and `resume` must say so.

    Args:
        out: the run's output.
        asked: what makes two runs the same run, as plain JSON values; an unfinished run has it in `request.json`.
        resume: whether the run is to go on.

    Raises:
        RequestError: if there is an unfinished run that is not to go on, or another, or none that could.
        OutputError: if something else is in its place.
    """
    work = work_directory(out)
    known = work / "request.json"
    if not resume:
        if known.exists():
            raise RequestError(
                f"{work} holds an unfinished run; add --resume to go on with it, or remove it to start over"
            )
        if work.exists() and not (work.is_dir() and not any(work.iterdir())):
            raise OutputError(f"{work} is needed while the run lasts, and holds something else; choose another --out")
        return work
    if not known.is_file():
        raise RequestError(f"there is nothing to resume: {work} holds no unfinished run; leave --resume out")
    before = json.loads(known.read_text(encoding="utf-8"))
    different = [name for name in asked if asked[name] != before.get(name)]
    if different:
        raise RequestError(
            f"the unfinished run in {work} had another {different[0]}; give the same options to resume it, or remove it"
        )
    return work


@contextmanager
def resumable(work: Path) -> Iterator[None]:
    """Say on an interrupt what is kept; what holds nothing yet, or a run that ended well, is removed."""
    created = [folder for folder in work.parents if not folder.exists()]  # the deepest first
    try:
        yield
    except BaseException as error:
        if not (work / "start").is_dir() and not (work / "dense").is_dir():
            shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):  # not empty: somebody else uses them
                for folder in created:
                    folder.rmdir()
        elif isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(
                f"what was done is kept in {work}; run the same command with --resume to go on"
            ) from None
        raise
    shutil.rmtree(work, ignore_errors=True)
