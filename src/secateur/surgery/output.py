"""A directory that is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from secateur.disk import full_disk_named, replaced, sweep, temporary_beside
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
    if not str(out):
        raise OutputError("--out is empty; name a new directory")
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
        known = (target / marker).is_file()
        if not overwrite:
            remedy = ", or give --overwrite to replace it" if known else ""
            raise OutputError(f"{out} is not empty; choose another --out{remedy}")
        if not known:
            raise OutputError(f"{out} is not a checkpoint (it has no {marker}), so it is not replaced; choose another")
    parent = next(folder for folder in target.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to {parent}; choose an --out in a directory of yours")


@contextmanager
def new_directory(
    out: str | Path, *, overwrite: bool = False, marker: str = "config.json", needs: int | None = None
) -> Iterator[Path]:
    """A temporary directory beside `out` that becomes `out` when the block ends well, and vanishes when it does not.

    What a process that was killed has left there is swept away first.

    Args:
        out: the directory.
        overwrite: whether what is there may be replaced.
        marker: the file by which what is there is known as such a checkpoint.
        needs: about how many bytes will be written, if known.

    Raises:
        OutputError: if `out` cannot be written to.
        WriteError: if writing fails half-way, as on a full disk, or there is less room than it takes.
    """
    target = check_output(out, overwrite=overwrite, marker=marker)
    created = [folder for folder in target.parents if not folder.exists()]  # the deepest first
    try:
        with full_disk_named(target, needs=needs, then="nothing is left there: make room, or choose another --out"):
            target.parent.mkdir(parents=True, exist_ok=True)
            sweep(target)
            with temporary_beside(target) as temporary:
                yield temporary
                replaced(temporary, target)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise WriteError(
            f"cannot write {out}: {why}; nothing is left there: make room, or choose another --out"
        ) from error
    finally:
        with suppress(OSError):  # not empty: it ended well, or somebody else uses them
            for folder in created:
                folder.rmdir()
