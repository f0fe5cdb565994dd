"""Bytes from file to file, whatever they are: in pieces, and past the system's cache of pages where there are many.

Through that cache every byte of a checkpoint is copied twice, and takes the page of something that was worth keeping; on virtual
machines, making those pages costs more time of a core than the disk takes. So a large file is read and written directly
(`O_DIRECT`), in whole blocks and through two small buffers, wherever the system can. Elsewhere the kernel copies, if it can.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from secateur.errors import ModelError

__all__ = ["CHUNK", "NewFile", "chunks_of", "damaged", "new_file", "reading"]

CHUNK = 2**20
"""Bytes copied at a time. Larger ones are five times slower, as each is given fresh pages."""

LARGE = 2**26
"""Bytes from which a file goes past the cache; what is small is as well kept."""

_BLOCK = 4096
"""What disks and systems want direct places and lengths to be multiples of, at the most."""

_BUFFER = 2**22
"""Bytes read or written directly at once."""

_SENT_AT_ONCE = 2**24
"""Bytes between two requests to send what was written to the disk; the disk then works while the next are read."""


class NewFile(Protocol):
    """A new file, written from its beginning to its end."""

    def write(self, data: bytes) -> None:
        """Write these bytes behind those before."""

    def copy(self, source: Path, start: int, count: int) -> None:
        """Write `count` bytes of another file, from `start`.

        Raises:
            ModelError: if the other file cannot be read, or ends before.
        """


@contextmanager
def new_file(path: Path, size: int) -> Iterator[NewFile]:
    """A new file of about `size` bytes; what is there is replaced.

    Raises:
        OSError: if it cannot be written.
    """
    handle = _opened_directly(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if size >= LARGE else None
    if handle is None:
        with path.open("wb") as file:
            yield _ThroughCache(file)
        return
    with closing(_Direct(handle)) as direct:
        yield direct
        direct.finish()


class _ThroughCache:
    """Written through the system's cache; what lies in a file is copied by the kernel if it can, with no memory at all."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._unsent = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._count(len(data))

    def copy(self, source: Path, start: int, count: int) -> None:
        done = self._copied_by_kernel(source, start, count)
        for chunk in chunks_of(source, start + done, count - done):
            self.write(chunk)

    def _copied_by_kernel(self, source: Path, start: int, count: int) -> int:
        """How many bytes were; fewer than there are where it cannot, or anything is wrong: copying the rest says what."""
        done = 0
        self._file.flush()
        with suppress(AttributeError, OSError), source.open("rb") as file:  # not on every system, nor between all
            while done < count:
                copied = os.copy_file_range(file.fileno(), self._file.fileno(), count - done, start + done)
                if not copied:
                    break
                done += copied
        self._count(done)
        return done

    def _count(self, written: int) -> None:
        """Have the system begin to send what was written to the disk, so that little is left to wait for at the end."""
        self._unsent += written
        if self._unsent < _SENT_AT_ONCE:
            return
        self._file.flush()
        with suppress(AttributeError, OSError):  # not on every system
            first = self._file.tell() - self._unsent
            os.posix_fadvise(self._file.fileno(), first, self._unsent, os.POSIX_FADV_DONTNEED)
        self._unsent = 0


class _Direct:
    """Written past the cache: whole blocks, from memory that begins where a page does."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._read, self._written = (memoryview(mmap.mmap(-1, _BUFFER)) for _ in range(2))
        self._filled = 0
        self._source: tuple[Path, int] | None = None

    def write(self, data: bytes | memoryview) -> None:
        data = memoryview(data)
        while data:
            part = data[: _BUFFER - self._filled]
            self._written[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            data = data[len(part) :]
            if self._filled == _BUFFER:
                self._send()

    def copy(self, source: Path, start: int, count: int) -> None:
        while count:
            before = start % _BLOCK
            wanted = min(_BUFFER, -(-(before + count) // _BLOCK) * _BLOCK)
            with reading(source):
                handle = self._open(source)
                found = _directly_or_not(handle, partial(os.preadv, handle, [self._read[:wanted]], start - before))
            part = self._read[before : min(found, before + count)]
            if not part:
                raise damaged(source, "it became shorter while it was read")
            self.write(part)
            start, count = start + len(part), count - len(part)

    def finish(self) -> None:
        """Write what is left, which is no whole block."""
        _no_longer_directly(self._handle)
        self._send()

    def close(self) -> None:
        """Close the new file, and the one that was read last."""
        self._close_source()
        os.close(self._handle)

    def _send(self) -> None:
        left = self._written[: self._filled]
        while left:
            left = left[_directly_or_not(self._handle, partial(os.write, self._handle, left)) :]
        self._filled = 0

    def _open(self, source: Path) -> int:
        """The file to be read; tensors of one file mostly follow each other, so only the last one is kept open."""
        if self._source is None or self._source[0] != source:
            self._close_source()
            handle = _opened_directly(source, os.O_RDONLY)
            self._source = source, os.open(source, os.O_RDONLY) if handle is None else handle
        return self._source[1]

    def _close_source(self) -> None:
        if self._source is not None:
            os.close(self._source[1])
            self._source = None


def _opened_directly(path: Path, flags: int) -> int | None:
    """A file open past the cache; None where the system has no such thing, or this file system refuses it."""
    direct = getattr(os, "O_DIRECT", None)
    if direct is None:
        return None
    try:
        return os.open(path, flags | direct, 0o666)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


def _directly_or_not(handle: int, call: Callable[[], int]) -> int:
    """What a call on a file gives; a file that refuses to be read or written directly is not asked to again."""
    try:
        return call()
    except OSError as error:
        if error.errno != errno.EINVAL or not _no_longer_directly(handle):
            raise
    return call()


def _no_longer_directly(handle: int) -> bool:
    """Have a file go through the cache from here on; whether it did not before."""
    import fcntl  # where O_DIRECT is, this is

    flags: Any = fcntl.fcntl(handle, fcntl.F_GETFL)
    fcntl.fcntl(handle, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    return bool(flags & os.O_DIRECT)


def chunks_of(source: Path, start: int, count: int) -> Iterator[bytes]:
    """Bytes of a file, a megabyte at a time.

    Raises:
        ModelError: if it cannot be read, or ends before.
    """
    with reading(source):
        file = source.open("rb")
        file.seek(start)
    with file:
        while count:
            with reading(source):
                chunk = file.read(min(count, CHUNK))
            if not chunk:
                raise damaged(source, "it became shorter while it was read")
            yield chunk
            count -= len(chunk)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say what cannot be read, and why, in one line."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}; copy or download it again") from error


def damaged(path: Path, why: str) -> ModelError:
    """What to say of a file that is not what it must be."""
    return ModelError(f"{path} is damaged: {why}; copy or download it again")
