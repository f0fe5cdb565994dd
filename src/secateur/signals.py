"""The first SIGINT or SIGTERM lets a step end that is worth it, the second stops at once.

Only the command line watches (`watched`); in a Python program, signals are that program's own, and all else here does nothing.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

__all__ = ["asked_to_stop", "finishing", "watched"]


_UNWINDING = 1.0
"""Seconds in which further signals are taken for the one that is being followed; a shell often sends several."""


@dataclass
class Watch:
    """What has come, and whether it has to wait."""

    say: Callable[[str], None]
    number: int | None = None
    """The signal that came first."""

    finishing: int = 0
    """How many blocks that want to end are running, one in another."""

    what: str = ""
    """What the outermost of them is."""

    stopping_since: float | None = None
    """When it was stopped, by `time.monotonic`."""

    def receive(self, number: int, _: FrameType | None) -> None:
        """Stop now, or let what runs end."""
        first = self.number is None
        self.number = self.number or number
        if not (first and self.finishing):
            self._stop()
            return
        self.say(f"finishing {self.what}; once more stops at once")

    def _stop(self) -> None:
        """Raise, but not into what still unwinds: a second exception there, in compiled code, would abort the process."""
        now = time.monotonic()
        if self.stopping_since is None or now - self.stopping_since >= _UNWINDING:
            self.stopping_since = now
            raise KeyboardInterrupt


_watch: Watch | None = None


@contextmanager
def watched(say: Callable[[str], None] = lambda line: print(line, file=sys.stderr)) -> Iterator[Watch]:  # noqa: T201
    """Watch for SIGINT and SIGTERM inside; what was done about them before comes back."""
    global _watch  # noqa: PLW0603  signals belong to the process
    watch = Watch(say)
    heard = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) is not signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, watch.receive) for number in heard}
    _watch = watch
    try:
        yield watch
    finally:
        _watch = None
        for number, handler in before.items():
            signal.signal(number, handler)


def asked_to_stop() -> bool:
    """Whether a signal waits for the step to end."""
    return _watch is not None and _watch.number is not None


@contextmanager
def finishing(what: str = "this step, to go on from it later") -> Iterator[None]:
    """What runs inside ends before a first signal takes effect; or it asks `asked_to_stop` wherever it can stop.

    Args:
        what: how a signal that has to wait is answered: finishing WHAT.

    Raises:
        KeyboardInterrupt: at the end of the outermost block, if a signal has waited for it.
    """
    watch = _watch
    if watch is None:
        yield
        return
    if not watch.finishing:
        watch.what = what
    watch.finishing += 1
    try:
        yield
    finally:
        watch.finishing -= 1
    if not watch.finishing and asked_to_stop():
        raise KeyboardInterrupt
