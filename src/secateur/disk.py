"""Files that are there whole or not at all, whatever stops their writer: a signal, a power cut, a full disk."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from secateur.errors import WriteError

__all__ = [
    "flush",
    "flush_entry",
    "format_size",
    "free_space",
    "full_disk_named",
    "held",
    "is_full",
    "replaced",
    "sha256",
    "sweep",
    "temporary_beside",
]

_CHUNK = 1 << 20
_FULL = {errno.ENOSPC, errno.EFBIG} | ({errno.EDQUOT} if hasattr(errno, "EDQUOT") else set())
_FULL_WORDS = ("No space left", "os error 28", "inline_container", "PytorchStreamWriter", "iostream error")
"""How safetensors and torch say it, whose errors carry no number; torch's writer fails for no other reason."""


def flush(path: Path) -> None:
    """Have a file, or a directory with all that is in it, on the disk itself: after that a power cut cannot take it back."""
    inside = sorted(path.rglob("*")) if path.is_dir() else []
    for each in [*inside, path]:
        if each.is_dir() and os.name == "nt":  # cannot be opened there
            continue
        handle = os.open(each, os.O_RDONLY)
        try:
            with suppress(OSError) if each.is_dir() else _nothing():  # some file systems cannot do it
                os.fsync(handle)
        finally:
            os.close(handle)


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def full_disk_named(path: Path, *, needs: int | None = None, then: str, certain: bool = True) -> Iterator[None]:
    """Say in one line that the disk is full, where, how much it takes and how much there was; other errors pass.

    Args:
        path: what is being written.
        needs: about how many bytes that takes, if known.
        then: what holds after the error, and what to do besides making room.
        certain: whether so much will be written for sure; then less than that free is an error before anything is.

    Raises:
        WriteError: if the disk is full.
    """
    takes = "" if needs is None else f"it takes about {format_size(needs)}, and "

    def message() -> str:
        return f"the disk is full: cannot write {path}; {takes}{format_size(free_space(path))} is free; {then}"

    if certain and needs is not None and needs > free_space(path):
        raise WriteError(message())
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        raise WriteError(message()) from error


def is_full(error: BaseException) -> bool:
    """Whether an error is that of a full disk, as the system, safetensors or torch say it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(word in str(error) for word in _FULL_WORDS)


def free_space(path: Path) -> int:
    """Bytes that may be written to where `path` is or will be."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def format_size(num_bytes: float) -> str:
    """Bytes in words: `3.1 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


# ---- directories -------------------------------------------------------------------------------------------------------------


@contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """An empty directory beside `target` that nobody else sweeps while this process lives; it is removed at the end."""
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        temporary.chmod(0o755)
        with held(temporary):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replaced(temporary: Path, target: Path) -> None:
    """Move a directory to `target`, once it is on the disk; what was there is put aside first, and comes back if that fails."""
    flush(temporary)
    if not target.exists():
        temporary.rename(target)
    else:
        aside = temporary.with_suffix(".old")
        target.rename(aside)
        try:
            temporary.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):
        flush_entry(target.parent)


def flush_entry(folder: Path) -> None:
    """Have the names in a directory on the disk."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep(target: Path) -> None:
    """Remove what writers to `target` that were killed have left beside it; what one had put aside comes back."""
    for aside in target.parent.glob(f".{target.name}.*.old"):
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(target)
    for left in target.parent.glob(f".{target.name}.*.tmp"):
        if left.is_dir():
            with suppress(OSError), held(left) as mine:
                if mine:
                    shutil.rmtree(left, ignore_errors=True)


@contextmanager
def held(folder: Path) -> Iterator[bool | None]:
    """Hold a directory until the end of the block, or of the process, however it ends; whether it could be had.

    None where the system has no such locks (Windows).
    """
    try:
        import fcntl
    except ImportError:
        yield None
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = True
        except OSError:
            mine = False
        yield mine
    finally:
        os.close(handle)
