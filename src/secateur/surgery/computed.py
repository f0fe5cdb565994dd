"""Tensors that are computed while they are read, a megabyte at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from secateur.surgery.shards import Bytes

__all__ = ["FLOATS", "ComputedTensor"]

FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""Dtypes whose values can be computed with."""


@dataclass(frozen=True, kw_only=True)
class ComputedTensor(ABC):
    """A tensor computed while it is read, from the one that has its dtype and shape and from others."""

    kept: Bytes
    """The tensor in whose place this is."""

    @property
    def dtype(self) -> str:
        """That of the kept one."""
        return self.kept.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the kept one."""
        return self.kept.shape

    @property
    def num_bytes(self) -> int:
        """That of the kept one."""
        return self.kept.num_bytes

    @abstractmethod
    def chunks(self) -> Iterator[bytes]:
        """Its bytes, as many at a time as those of the kept one."""

    def values(self, chunk: bytes) -> torch.Tensor:
        """A chunk of a tensor of this dtype as numbers."""
        return torch.frombuffer(bytearray(chunk), dtype=FLOATS[self.dtype])
