"""A directory that is there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from secateur.errors import OutputError, WriteError

__all__ = ["check_output", "new_directory"]


def check_output(out: str | Path, *, overwrite: bool = False, marker: str = "config.json") -> Path:
    """Make sure, before anything expensive, that a checkpoint can be written to `out`; nothing is created.

    Args:
        out: the directory.
        overwrite: whether what is there may be replaced.
        marker: the file by which what is there is known as such a checkpoint.

    Raises:
        OutputError: if something is there already, or its parent cannot be written to.
    """
    target = Path(out).expanduser().absolute()
    try:
        _check_target(target, out, overwrite, marker)
    except OSError as error:  # a name too long, a folder that must not be read
        raise OutputError(f"cannot write to {out}: {error.strerror or error}; choose another --out") from error
    return target


def _check_target(target: Path, out: str | Path, overwrite: bool, marker: str) -> None:
    if target.exists() and not target.is_dir():
        raise OutputError(f"{out} is a file; choose a directory for --out")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise OutputError(f"{out} is not empty; choose another --out, or give --overwrite to replace it")
        if not (target / marker).is_file():
            raise OutputError(f"{out} is not a checkpoint (it has no {marker}), so it is not replaced; choose another")
    parent = next(folder for folder in target.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to {parent}; choose an --out in a directory of yours")


@contextmanager
def new_directory(out: str | Path, *, overwrite: bool = False, marker: str = "config.json") -> Iterator[Path]:
    """A temporary directory beside `out` that becomes `out` when the block ends well, and vanishes when it does not.

    Raises:
        OutputError: if `out` cannot be written to.
        WriteError: if writing fails half-way, as on a full disk.
    """
    target = check_output(out, overwrite=overwrite, marker=marker)
    created = [folder for folder in target.parents if not folder.exists()]  # the deepest first
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
        temporary.chmod(0o755)
        yield temporary
        _replace(temporary, target)
    except OSError as error:
        raise WriteError(
            f"cannot write {out}: {error.strerror or error}; nothing is left there: make room, or choose another --out"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # not empty: it ended well, or somebody else uses them
            for folder in created:
                folder.rmdir()


def _replace(temporary: Path, target: Path) -> None:
    """Move `temporary` to `target`; what was there is put aside first, and comes back if the move fails."""
    if not target.exists():
        temporary.rename(target)
        return
    aside = temporary.with_suffix(".old")
    target.rename(aside)
    try:
        temporary.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
