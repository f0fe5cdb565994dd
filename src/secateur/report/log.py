"""The log of a run: a file with times, beside what the run prints; no access token gets into it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from secateur.progress import Progress
from secateur.report.record import redacted_text, versions

__all__ = ["Logged", "logging_to", "run_log"]

run_log = logging.getLogger("secateur.run")
run_log.propagate = False  # who watches the progress has seen it
run_log.setLevel(logging.INFO)


@contextmanager
def logging_to(file: Path, command: str = "") -> Iterator[None]:
    """Append to a file what is logged under `secateur` at INFO and above, as far as its loggers let it through.

    Args:
        file: the log; a run that goes on adds to it.
        command: the command line, without secrets.
    """
    handler = _File(file, encoding="utf-8")
    handler.setFormatter(_Redacted("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger("secateur"), run_log]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        found = ", ".join(f"{name} {number}" for name, number in versions().items() if number)
        run_log.info("%s (%s)", command or "secateur, from Python", found)
        yield
        run_log.info("done")
    except BaseException as error:
        run_log.error("%s: %s", type(error).__name__, error)
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


class _File(logging.FileHandler):
    """A log that cannot be written, on a full disk, is no reason to stop, nor to say so line by line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Go on."""

    def close(self) -> None:
        """Close the file, written to its end or not."""
        try:
            super().close()
        except OSError:
            self.stream = None


class _Redacted(logging.Formatter):
    """Lines without access tokens."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        return redacted_text(super().format(record))


class Logged:
    """A progress whose notes and steps are in the log as well."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @contextmanager
    def track(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """A step, as whoever watches shows it."""
        run_log.info("%s (%d)", description, total)
        with self._progress.track(description, total) as advance:
            yield advance

    def note(self, message: str) -> None:
        """A line."""
        run_log.info("%s", message)
        self._progress.note(message)
