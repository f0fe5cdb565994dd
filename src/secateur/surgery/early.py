"""Writing weights while it is still being verified that they are the right ones.

A cut from file to file begins with seconds of importing torch and transformers and of laying out the model, which keep one core
busy and the disk idle. What stays is nearly always clear from the names of the tensors alone, so a thread begins to copy it
meanwhile, into the directory that nobody sees before all is verified. What turns out otherwise is written again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from time import sleep
from types import TracebackType
from typing import TYPE_CHECKING

from secateur.surgery.shards import Bytes, write_shard

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["EarlyShards"]

Shards = Mapping[str, Mapping[str, Bytes]]
"""The name of a file → its tensors."""

_LOOK = 0.1
"""Seconds between two looks at how far the thread is."""


_PATIENCE = 100
"""Looks at a thread that may be about to begin."""

_TURN = 1e-4
"""Seconds after which a thread that imports gives way to the one that copies, which needs a moment now and then: with
Python's 5 ms each of its system calls would wait as long."""


class _StoppedError(Exception):
    """The files are not wanted any more."""


class EarlyShards:
    """Safetensors files that a thread writes; whatever happens in the block, the thread has ended after it.

    Args:
        directory: where they go.
        metadata: words to keep in their headers.
    """

    def __init__(self, directory: Path, metadata: Mapping[str, str]) -> None:
        self._directory, self._metadata = directory, metadata
        self._begun: Shards = {}
        self._thread: Thread | None = None
        self._unwanted = Event()
        self._num_done = 0
        self._error: BaseException | None = None
        self._turn_before = sys.getswitchinterval()

    def __enter__(self) -> Self:
        sys.setswitchinterval(min(_TURN, self._turn_before))
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        try:
            self._stop()
        finally:
            sys.setswitchinterval(self._turn_before)

    def begin(self, shards: Shards) -> None:
        """Begin to write what will probably be wanted; what goes wrong with it is said when it is."""
        self._begun = shards
        self._thread = Thread(target=self._write, name="early shards", daemon=True)
        self._thread.start()

    def finish(self, shards: Shards, advance: Callable[[int], None]) -> None:
        """Have the directory hold these files, which are verified.

        Args:
            shards: the name of a file → its tensors.
            advance: told of bytes as they are written.

        Raises:
            ModelError: if a source file cannot be read any more.
            OSError: if a file cannot be written.
        """
        if self._thread is None or shards != self._begun:
            self._stop()
            for name in self._begun:
                (self._directory / name).unlink(missing_ok=True)
            for name, tensors in shards.items():
                write_shard(self._directory / name, tensors, self._metadata, advance)
            return
        told = 0
        while self._thread.is_alive() or told < self._num_done:
            self._thread.join(_LOOK)
            if more := self._num_done - told:
                advance(more)
                told += more
        if self._error is not None:
            raise self._error

    def _write(self) -> None:
        try:
            self._done(0)
            for name, tensors in self._begun.items():
                write_shard(self._directory / name, tensors, self._metadata, self._done)
        except _StoppedError:
            pass
        except BaseException as error:  # said by `finish`, in the thread that waits
            self._error = error

    def _done(self, count: int) -> None:
        if self._unwanted.is_set():
            raise _StoppedError
        self._num_done += count

    def _stop(self) -> None:
        self._unwanted.set()
        if self._thread is None:
            return
        for _ in range(_PATIENCE):
            with suppress(RuntimeError):  # an interrupt came while it was started: it begins in a moment, or never
                self._thread.join()
                return
            sleep(0.01)
