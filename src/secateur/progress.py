"""How a long step says how far it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["Progress", "Silent", "duration", "in_megabytes", "in_one_step"]

_MEGABYTE = 10**6


class Progress(Protocol):
    """Somebody who shows progress; the command line draws bars, a library call stays silent."""

    def track(self, description: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Open a step of `total` units; the value is called with the number of units just done."""
        ...

    def note(self, message: str) -> None:
        """Say one line about what was found."""
        ...


class Silent:
    """Progress that nobody watches."""

    @contextmanager
    def track(self, description: str, total: int) -> Iterator[Callable[[int], None]]:  # noqa: ARG002
        """Do nothing."""
        yield lambda done: None  # noqa: ARG005

    def note(self, message: str) -> None:
        """Do nothing."""


@contextmanager
def in_one_step(progress: Progress, description: str) -> Iterator[None]:
    """Say what is being done inside, of which nobody can say how far it is."""
    with progress.track(description, 1) as advance:
        yield
        advance(1)


@contextmanager
def in_megabytes(progress: Progress, description: str, num_bytes: int) -> Iterator[Callable[[int], None]]:
    """Open a step of so many bytes, which is shown in megabytes; the value is called with the number of bytes just done."""
    done = 0
    with progress.track(f"{description} (MB)", num_bytes // _MEGABYTE) as advance:

        def count(more: int) -> None:
            nonlocal done
            before, done = done, done + more
            advance(done // _MEGABYTE - before // _MEGABYTE)

        yield count


def duration(seconds: float) -> str:
    """A span of time for people: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
