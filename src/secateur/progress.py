"""How a long step says how far it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["Progress", "Silent", "duration", "in_one_step"]


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


def duration(seconds: float) -> str:
    """A span of time for people: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
