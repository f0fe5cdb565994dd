"""Who works on what: several processes may share one folder of results, each takes what no other has taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["claimed"]


@contextmanager
def claimed(file: str | Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file; it is given back at the end of the block, and when the process ends, however it ends.

    Args:
        file: the lock file; its folder is made.
        wait: wait for whoever holds it.

    Yields:
        Whether it could be had.
    """
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
