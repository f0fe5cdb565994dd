"""Tensors outside the layers that hold an equal part for each of them, file to file: the parts of the kept layers stay.

Gemma 3n and 4 keep such: an embedding with some columns a layer, a projection with some rows. They are the largest of such a
model, so the parts are gathered while they are read, a megabyte at a time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from secateur.errors import UnsupportedModelError
from secateur.surgery.copying import CHUNK
from secateur.surgery.shards import Bytes, StoredTensor, quoted

__all__ = ["PartsTensor", "parts_foreseen", "parts_kept"]

_OF_ALL = re.compile(r"(?:^|[._])per_layer(?:[._]|$)")
"""In the names that Gemma gives them."""


@dataclass(frozen=True, kw_only=True)
class PartsTensor:
    """The parts of some layers of a tensor that has an equal one for each."""

    whole: StoredTensor
    """With the parts of all layers."""

    dim: int
    """The dimension along which they lie."""

    num_layers: int
    """How many there are."""

    kept: tuple[int, ...]
    """The layers whose parts stay, ascending."""

    @property
    def dtype(self) -> str:
        """That of the whole one."""
        return self.whole.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the whole one, and shorter along one dimension."""
        before, size, after = (
            self.whole.shape[: self.dim], self.whole.shape[self.dim], self.whole.shape[self.dim + 1 :]
        )  # fmt: skip
        return (*before, size // self.num_layers * len(self.kept), *after)

    @property
    def num_bytes(self) -> int:
        """Its length."""
        return self.whole.num_bytes // self.num_layers * len(self.kept)

    def chunks(self) -> Iterator[bytes]:
        """Its bytes: a megabyte each, the last what is left."""
        gathered = bytearray()
        for piece in self._pieces():
            gathered += piece
            while len(gathered) >= CHUNK:
                yield bytes(gathered[:CHUNK])
                del gathered[:CHUNK]
        if gathered:
            yield bytes(gathered)

    def _pieces(self) -> Iterator[bytes]:
        """The same in pieces as they come: of short rows many at once, of a long one what lies side by side."""
        num_rows = math.prod(self.whole.shape[: self.dim])
        row = self.whole.num_bytes // num_rows
        part = row // self.num_layers
        runs = [(layers[0] * part, len(layers) * part) for layers in _runs(self.kept)]
        if row > CHUNK:
            for start in range(0, num_rows * row, row):
                for first, count in runs:
                    yield from replace(self.whole, start=self.whole.start + start + first, num_bytes=count).chunks()
            return
        rows = bytearray()
        for chunk in self.whole.chunks():
            rows += chunk
            whole = len(rows) // row * row
            yield b"".join(
                rows[start + first : start + first + count] for start in range(0, whole, row) for first, count in runs
            )
            del rows[:whole]


def parts_kept(
    tensors: Mapping[str, Bytes], packed: Mapping[str, int], num_layers: int, kept: Sequence[int]
) -> dict[str, Bytes]:
    """The tensors that hold a part for each layer, with those of the kept layers alone.

    Args:
        tensors: of the checkpoint, each under its name.
        packed: names in the model → the dimension along which the parts lie.
        num_layers: of the dense model.
        kept: the layers that stay, ascending.

    Raises:
        UnsupportedModelError: if the files hold one in another way than the model does.
    """
    found: dict[str, Bytes] = {}
    for name, dim in packed.items():
        tensor, owner = tensors.get(name), f"{name.rpartition('.')[0]}."
        beside = [
            each for each in tensors if each.startswith(owner) and each not in packed
        ]  # scales of a quantised one
        if beside or not isinstance(tensor, StoredTensor) or not _divides(tensor, dim, num_layers):
            raise UnsupportedModelError(
                f"{quoted(name)} holds a part for each layer, and the files have it in another form; "
                "prune the loaded model instead"
            )
        found[name] = PartsTensor(whole=tensor, dim=dim, num_layers=num_layers, kept=tuple(kept))
    return found


def parts_foreseen(name: str, tensor: StoredTensor, num_layers: int, kept: Sequence[int]) -> Bytes:
    """What a tensor outside the layers probably becomes, as far as its name and shape say; whether so is verified later."""
    dims = [dim for dim in range(len(tensor.shape)) if _divides(tensor, dim, num_layers)]
    if len(tensor.shape) < 2 or len(dims) != 1 or not _OF_ALL.search(name):
        return tensor
    return PartsTensor(whole=tensor, dim=dims[0], num_layers=num_layers, kept=tuple(kept))


def _divides(tensor: StoredTensor, dim: int, num_layers: int) -> bool:
    """Whether it has so many equal parts along a dimension, each of whole bytes."""
    if dim >= len(tensor.shape) or not tensor.num_bytes or tensor.shape[dim] % num_layers:
        return False
    return tensor.num_bytes % (math.prod(tensor.shape[:dim]) * num_layers) == 0


def _runs(layers: Sequence[int]) -> Iterator[list[int]]:
    """Layers that follow each other, together."""
    for _, run in groupby(enumerate(layers), key=lambda item: item[1] - item[0]):
        yield [layer for _, layer in run]
