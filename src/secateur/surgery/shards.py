"""Safetensors files without their tensors in memory: headers read and checked, new files written of what lies in others.

The format: eight bytes with the length of a JSON header, the header with each tensor's dtype, shape and place, then the
tensors without a gap. Headers come from strangers, so nothing in one is believed: every number is held to the file's size
before it is used, and what the format forbids is refused.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from secateur.errors import ModelError
from secateur.surgery.copying import NewFile, chunks_of, damaged, new_file, reading

__all__ = [
    "Bytes",
    "StoredTensor",
    "copy_file",
    "file_size",
    "quoted",
    "read_header",
    "read_json",
    "write_shard",
]

_MAX_HEADER = 100_000_000
"""Bytes; the format's own limit, which also bounds every other JSON file read here."""

_MAX_DIMENSIONS = 64

_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits an element, by the header's name of the dtype. Whatever the dtype, only bytes are copied."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """What a header says of one tensor, and where its bytes are."""

    file: Path
    """The file that holds it."""

    dtype: str
    """As the header spells it: `BF16`."""

    shape: tuple[int, ...]
    """As stored; packed weights have the packed shape."""

    start: int
    """Its first byte, from the beginning of the file."""

    num_bytes: int
    """Its length."""

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, a megabyte at a time.

        Raises:
            ModelError: if the file cannot be read any more.
        """
        return chunks_of(self.file, self.start, self.num_bytes)

    def part(self, first: int, count: int) -> bytes:
        """Some of its bytes; fewer than `count` where it ends.

        Raises:
            ModelError: if the file cannot be read any more.
        """
        count = min(count, self.num_bytes - first)
        return b"".join(chunks_of(self.file, self.start + first, count)) if count > 0 else b""


class Bytes(Protocol):
    """A tensor whose bytes come a megabyte at a time, wherever from."""

    @property
    def dtype(self) -> str:
        """As a header spells it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""

    @property
    def num_bytes(self) -> int:
        """Its length."""

    def chunks(self) -> Iterator[bytes]:
        """Its bytes: a megabyte each, the last what is left."""


def read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a safetensors file in the order of their bytes, and the file's metadata.

    Raises:
        ModelError: if the file cannot be read, or breaks a rule of the format.
    """
    header, start, size = _read_raw_header(path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(path, "its __metadata__ does not map words to words")
    tensors = {name: _stored(path, name, entry, start) for name, entry in header.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].num_bytes)))
    end = start
    for name, tensor in tensors.items():
        if tensor.start != end:
            what = "overlaps the one before it" if tensor.start < end else "does not follow the one before it"
            raise damaged(path, f"the tensor {quoted(name)} {what}")
        end = tensor.start + tensor.num_bytes
    if end != size:
        what = "cut short" if end > size else "longer than that"
        raise damaged(path, f"its header describes {end} bytes, and it is {what}, {size} bytes")
    return tensors, metadata


def _read_raw_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header as JSON, where it ends, and the size of the file."""
    size = file_size(path)
    with reading(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or 8 + length > size:
            raise damaged(path, f"it says that its header is {length} bytes long, and is {size} bytes itself")
        if length > _MAX_HEADER:
            raise damaged(path, f"its header is {length} bytes long, more than the format's {_MAX_HEADER}")
        header = _parsed(path, file.read(length))
    if not isinstance(header, dict):
        raise damaged(path, "its header is not a JSON object")
    return header, 8 + length, size


def _stored(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    """One entry of a header, held to the rules that concern it alone."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        name.encode()
    except (TypeError, KeyError, ValueError):  # no object, a part of it missing, a name that is no text
        raise damaged(path, f"its entry for {quoted(name)} is not one of a tensor") from None
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise damaged(path, f"the tensor {quoted(name)} has the unknown dtype {quoted(dtype)}")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(map(_is_count, [*shape, begin, end])):
        raise damaged(path, f"the tensor {quoted(name)} has the impossible shape or place {quoted(entry)}")
    if 8 * (end - begin) != math.prod(shape) * _BITS[dtype]:
        raise damaged(
            path, f"the tensor {quoted(name)} is given {end - begin} bytes, which is not {dtype} of {quoted(shape)}"
        )
    return StoredTensor(file=path, dtype=dtype, shape=tuple(shape), start=start + begin, num_bytes=end - begin)


def _is_count(number: Any) -> bool:
    """A whole number that a file can mean; the bound keeps products of them from growing without end."""
    return type(number) is int and 0 <= number < 2**63  # True is an int as well, but no count


def write_shard(
    path: Path, tensors: Mapping[str, Bytes], metadata: Mapping[str, str], done: Callable[[int], None]
) -> None:
    """Write a safetensors file whose tensors are copied from where they are stored, or computed, a megabyte at a time.

    Args:
        path: the new file.
        tensors: name in the new file → where the bytes come from.
        metadata: words to keep in the header.
        done: told of the bytes of each tensor after it.

    Raises:
        ModelError: if a source file cannot be read any more.
        OSError: if the new file cannot be written.
    """
    # The reference writer's order: wide dtypes first keeps every tensor aligned to its element.
    names = sorted(tensors, key=lambda name: (-_BITS[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].num_bytes
        header[name] = {
            "dtype": tensors[name].dtype,
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with new_file(path, 8 + len(raw) + end) as out:
        out.write(len(raw).to_bytes(8, "little") + raw)
        for name in names:
            _write(tensors[name], out)
            done(tensors[name].num_bytes)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content, not its mode.

    Raises:
        ModelError: if it cannot be read.
        OSError: if it cannot be written.
    """
    size = file_size(source)
    with new_file(target, size) as out:
        out.copy(source, 0, size)


def _write(tensor: Bytes, out: NewFile) -> None:
    """Write a tensor's bytes: from the file that holds them, or as they are computed."""
    if isinstance(tensor, StoredTensor):
        out.copy(tensor.file, tensor.start, tensor.num_bytes)
    else:
        for chunk in tensor.chunks():
            out.write(chunk)


def read_json(path: Path) -> Any:
    """A JSON file of bounded size in which no object names a key twice.

    Raises:
        ModelError: if it cannot be read or is no such JSON.
    """
    if (size := file_size(path)) > _MAX_HEADER:
        raise damaged(path, f"it is {size} bytes long, more than {_MAX_HEADER}")
    with reading(path):
        return _parsed(path, path.read_bytes())


def _parsed(path: Path, raw: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise damaged(path, f"it names {quoted(name)} twice")
            found[name] = value
        return found

    try:
        return json.loads(raw.decode(), object_pairs_hook=unique)
    except ModelError:
        raise
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number too long, brackets too deep
        raise damaged(path, f"no JSON can be read from it: {str(error)[:100]}") from None


def file_size(path: Path) -> int:
    """The size in bytes of what must be a plain file, or a link to one.

    Raises:
        ModelError: if it is missing, a link in a circle, a directory, a pipe.
    """
    with reading(path):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise ModelError(f"{path} is not a file; copy or download it again")
    return status.st_size


def quoted(value: Any) -> str:
    """A stranger's value for an error message: on one line, and not too long."""
    text = repr(value)
    return text if len(text) <= 120 else text[:119] + "…"
