"""GGUF files without their tensors in memory: headers read and checked.

The format (github.com/ggml-org/ggml/blob/master/docs/gguf.md): a magic word, a version, the numbers of tensors and of
metadata entries; the entries (name, type, value); for each tensor its name, shape, type and place; then the tensors, each
padded to the alignment. A header comes from strangers, so every number in it is held to the file's size before it is used.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secateur.errors import ModelError, RequestError
from secateur.surgery.copying import reading
from secateur.surgery.shards import file_size, quoted

__all__ = ["MAGIC", "Entry", "Header", "Tensor", "padded", "read_gguf", "text_bytes"]

MAGIC = b"GGUF"

_VERSIONS = (2, 3)
"""They have the same layout; version 1 counted in 32 bits, and no tool writes it any more."""

_SCALARS = "BbHhIif?..Qqd"
"""The `struct` letter of each type of value, by its number in the format."""

_STRING, _ARRAY = 8, 9

_MAX_HEADER = 2**28
"""Bytes: some ten times the largest vocabulary with its merges."""

_MAX_DIMENSIONS, _MAX_NAME = 4, 65535
"""Dimensions of a tensor in ggml; bytes of a name in the format."""

_MAX_ITEMS = 2**20
"""Of an array that becomes a tuple, which takes eight times its bytes; no model has as many layers."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of the metadata, as the bytes it was."""

    name: str
    """The key, such as `llama.block_count`."""

    kind: int
    """The type of the value, by its number in the format."""

    raw: bytes
    """The value's bytes; of an array, the type and number of its items first."""

    @property
    def length(self) -> int | None:
        """Items of an array, of numbers or of texts; None for anything else."""
        return struct.unpack_from("<Q", self.raw, 4)[0] if self.kind == _ARRAY else None

    @property
    def value(self) -> Any:
        """A number, a text, a tuple of numbers; None for an array of texts, or of more numbers than could speak of layers."""
        if self.kind == _STRING:
            return self.raw[8:].decode(errors="replace")
        if self.kind != _ARRAY:
            return struct.unpack("<" + _SCALARS[self.kind], self.raw)[0]
        if self._item is None or (self.length or 0) > _MAX_ITEMS:
            return None
        return struct.unpack(f"<{self.length}{self._item}", self.raw[12:])

    def with_number(self, number: int) -> Entry:
        """The same entry with another whole number."""
        return replace(self, raw=struct.pack("<" + _SCALARS[self.kind], number))

    def with_items(self, indices: list[int]) -> Entry:
        """The same entry with only these items of its array, whose bytes stay as they are."""
        starts = [12]
        for _ in range(self.length or 0):
            starts.append(starts[-1] + self._width(starts[-1]))
        items = b"".join(self.raw[starts[index] : starts[index + 1]] for index in indices)
        return replace(self, raw=self.raw[:4] + struct.pack("<Q", len(indices)) + items)

    def _width(self, start: int) -> int:
        """Bytes of the item of an array that starts there."""
        if self._item is not None:
            return struct.calcsize("<" + self._item)
        return 8 + int(struct.unpack_from("<Q", self.raw, start)[0])

    @property
    def _item(self) -> str | None:
        """The `struct` letter of an array's items, if they are numbers."""
        if self.kind != _ARRAY:
            return None
        kind = struct.unpack_from("<I", self.raw)[0]
        return None if kind == _STRING else _SCALARS[kind]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """What a header says of one tensor, and where its bytes are."""

    name: str
    """Such as `blk.3.attn_q.weight`."""

    shape: tuple[int, ...]
    """As the format has it: the dimension whose elements lie side by side comes first."""

    kind: int
    """The type of its elements or quantised blocks, by ggml's number."""

    start: int
    """Its first byte in the file."""

    num_bytes: int
    """Without what pads it."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """All that a GGUF file says before its tensors."""

    version: int
    """Of the format."""

    entries: tuple[Entry, ...]
    """The metadata, in the file's order."""

    tensors: tuple[Tensor, ...]
    """In the order of the file, which is that of their bytes."""

    alignment: int
    """Bytes; each tensor starts at a multiple of it."""

    def value(self, name: str, default: Any = None) -> Any:
        """The value of a metadata entry."""
        return next((entry.value for entry in self.entries if entry.name == name), default)


def text_bytes(text: str) -> bytes:
    """A text as the format stores it."""
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def read_gguf(path: Path) -> Header:
    """Read and check the header of a GGUF file.

    Raises:
        ModelError: if the file cannot be read, or breaks a rule of the format.
        RequestError: if the package gguf is not installed.
    """
    sizes = _block_sizes()
    size = file_size(path)
    with reading(path), path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise ModelError(f"{path} is not a GGUF file; give one, or the directory of a checkpoint")
        if size < 24:
            raise _damaged(path, f"it is cut short, at {size} bytes")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Parser(path, data, size).header(sizes)


def _block_sizes() -> dict[int, tuple[int, int]]:
    """The elements and the bytes of a block, by the number of the tensor's type."""
    try:
        from gguf import GGML_QUANT_SIZES
    except ImportError:
        raise RequestError(
            "the package gguf knows the types of tensors in a GGUF file; install it with pip install 'secateur[gguf]'"
        ) from None
    return {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}


class _Parser:
    """Reads one value after the other, none of them beyond the end."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self.path, self.data, self.size, self.at = path, data, size, 4

    def header(self, sizes: dict[int, tuple[int, int]]) -> Header:
        version = self.number("I")
        if version not in _VERSIONS:
            big = version and not version & 0xFFFF
            what = "written for big-endian machines" if big else f"of version {version} of the format"
            raise ModelError(f"{self.path} is {what}; convert the model again with a llama.cpp of today")
        num_tensors, num_entries = self.number("Q"), self.number("Q")
        entries = self._unique(num_entries, self.entry)
        places = self._unique(num_tensors, lambda: self.place(sizes))
        alignment = next((entry.value for entry in entries if entry.name == "general.alignment"), 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise _damaged(self.path, f"its alignment is {quoted(alignment)}, not a power of two")
        tensors = self._placed(places, alignment)
        return Header(version=version, entries=tuple(entries), tensors=tensors, alignment=alignment)

    def _unique(self, count: int, read: Callable[[], Any]) -> list[Any]:
        """So many entries or tensors, no name of which occurs twice."""
        found: dict[str, Any] = {}
        for _ in range(count):
            each = read()
            if each.name in found:
                raise _damaged(self.path, f"it names {quoted(each.name)} twice")
            found[each.name] = each
        return list(found.values())

    def _placed(self, tensors: list[Tensor], alignment: int) -> tuple[Tensor, ...]:
        """The tensors with their places in the file; they must follow one another as in every file llama.cpp reads."""
        begin = padded(self.at, alignment)
        end, expected = begin, 0
        placed = []
        for tensor in tensors:
            if tensor.start != expected:
                what = "overlaps the one before it" if tensor.start < expected else "does not follow the one before it"
                raise _damaged(self.path, f"the tensor {quoted(tensor.name)} {what}")
            placed.append(replace(tensor, start=begin + tensor.start))
            end = begin + tensor.start + tensor.num_bytes
            expected = padded(tensor.start + tensor.num_bytes, alignment)
        if not end <= self.size <= begin + expected:
            what = "cut short" if end > self.size else "longer than that"
            raise _damaged(self.path, f"its header describes {end} bytes, and it is {what}, {self.size} bytes")
        return tuple(placed)

    def entry(self) -> Entry:
        """One entry of the metadata."""
        name, kind, begin = self.name(), self.number("I"), self.at
        if kind == _ARRAY:
            item, count = self.number("I"), self.number("Q")
            if item == _STRING:
                for _ in range(count):
                    self.skip(self.number("Q"))
            else:
                self.skip(count * self.width(item, name))
        elif kind == _STRING:
            self.skip(self.number("Q"))
        else:
            self.skip(self.width(kind, name))
        return Entry(name=name, kind=kind, raw=self.data[begin : self.at])

    def place(self, sizes: dict[int, tuple[int, int]]) -> Tensor:
        """One tensor, its place counted from the first tensor's."""
        name, dimensions = self.name(), self.number("I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise _damaged(self.path, f"the tensor {quoted(name)} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        kind, start = self.number("I"), self.number("Q")
        if kind not in sizes:
            raise ModelError(
                f"{self.path}: the tensor {quoted(name)} is of type {kind}, which the package gguf here does not know; "
                "update gguf, or download the file again if that does not help"
            )
        elements, num_bytes = sizes[kind]
        if shape[0] % elements or not all(shape):
            raise _damaged(self.path, f"the tensor {quoted(name)} has the impossible shape {quoted(list(shape))}")
        return Tensor(
            name=name, shape=shape, kind=kind, start=start, num_bytes=math.prod(shape) // elements * num_bytes
        )

    def name(self) -> str:
        """A name of bounded length."""
        length = self.number("Q")
        if length > _MAX_NAME:
            raise _damaged(self.path, f"a name in its header is {length} bytes long")
        begin = self.at
        self.skip(length)
        try:
            return self.data[begin : self.at].decode()
        except UnicodeDecodeError:
            raise _damaged(self.path, "a name in its header is no text") from None

    def width(self, kind: int, name: str) -> int:
        """The bytes of a number of this type."""
        if kind >= len(_SCALARS) or _SCALARS[kind] == ".":
            raise _damaged(self.path, f"{quoted(name)} has a value of the unknown type {kind}")
        return struct.calcsize("<" + _SCALARS[kind])

    def number(self, letter: str) -> int:
        """A number of this `struct` letter."""
        begin = self.at
        self.skip(struct.calcsize("<" + letter))
        return int(struct.unpack_from("<" + letter, self.data, begin)[0])

    def skip(self, count: int) -> None:
        """Go on by so many bytes, if the file has them."""
        if count > self.size - self.at:
            raise _damaged(self.path, f"its header goes beyond its end, at {self.size} bytes")
        self.at += count
        if self.at > _MAX_HEADER:
            raise _damaged(self.path, f"its header is longer than {_MAX_HEADER} bytes")


def padded(count: int, alignment: int) -> int:
    """The next multiple of the alignment."""
    return -(-count // alignment) * alignment


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError(f"{path} is damaged: {why}; copy or download it again")
