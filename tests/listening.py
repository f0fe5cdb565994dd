"""Progress that keeps what it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Listener:
    """Progress as (description, total, what was counted), and the notes."""

    def __init__(self) -> None:
        self.steps: list[list] = []
        self.notes: list[str] = []

    @contextmanager
    def track(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        self.steps.append([description, total, 0])
        yield self.count

    def count(self, done: int) -> None:
        self.steps[-1][2] += done

    def note(self, message: str) -> None:
        self.notes.append(message)
