"""Which layer of one checkpoint a layer of another is: by the bytes of its tensors, a megabyte at a time.

A layer that was only moved has the very tensors that it had. One that was trained or merged has not; it is then held to be the
layer whose values are nearest, if they are near: the weights of two layers have nothing in common, so that the distance
between them is about √2 of their size.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.progress import Progress, Silent, in_megabytes
from secateur.surgery.computed import FLOATS
from secateur.surgery.shards import Bytes

__all__ = ["Match", "changed_tensors", "match_layers", "same_tensor"]

_NEAR = 0.8
"""Distance, as a share of the size, up to which values come from others."""

_FAR = 2.0

Layer = Mapping[str, Bytes]
"""The tensors of a layer, by their names within it."""


@dataclass(frozen=True)
class Match:
    """What a layer of the pruned checkpoint is."""

    source: int | None
    """The layer of the dense one; None if it is like none."""

    exact: bool
    """Whether all tensors that both have are the same."""


def match_layers(
    dense: Sequence[Layer],
    pruned: Sequence[Layer],
    *,
    claimed: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[Match]:
    """For each layer of the pruned checkpoint, the layer of the dense one that it is.

    Of equal layers the first after the one before is meant, as if the order was kept.

    Args:
        dense: its layers.
        pruned: the others.
        claimed: the layers that they are said to be, which are tried first, and believed where tensors were changed.
        progress: told of the bytes of each layer.
    """
    matches: list[Match] = []
    after = 0
    sizes = [sum(tensor.num_bytes for tensor in layer.values()) for layer in pruned]
    with in_megabytes(progress or Silent(), "comparing the layers", sum(sizes)) as advance:
        for number, layer in enumerate(pruned):
            order = [*range(after, len(dense)), *range(after)]
            if claimed is not None:
                order = sorted(order, key=lambda source: source != claimed[number])
            match = next((Match(source, True) for source in order if _same_layer(dense[source], layer)), None)
            if match is None and claimed is not None:
                match = Match(claimed[number], False)
            matches.append(match or Match(_nearest(dense, layer, order), False))
            if (source := matches[-1].source) is not None:
                after = source + 1
            advance(sizes[number])
    return matches


def changed_tensors(
    wanted: Mapping[str, Bytes], found: Mapping[str, Bytes], names: Collection[str], progress: Progress
) -> list[str]:
    """Of the tensors so called those that are not the same in both."""
    changed = []
    with in_megabytes(progress, "comparing the other tensors", sum(found[name].num_bytes for name in names)) as advance:
        for name in names:
            if not same_tensor(wanted[name], found[name]):
                changed.append(name)
            advance(found[name].num_bytes)
    return changed


def same_tensor(one: Bytes, other: Bytes) -> bool:
    """Whether `other` is `one`, bit for bit; in another floating-point dtype, whether it is `one` rounded to that."""
    if one.shape != other.shape:
        return False
    if one.dtype == other.dtype:
        return all(a == b for a, b in zip(one.chunks(), other.chunks(), strict=True))
    if one.dtype not in FLOATS or other.dtype not in FLOATS:
        return False
    return all(torch.equal(a.to(b.dtype), b) for a, b in _aligned(one, other))


def _same_layer(one: Layer, other: Layer) -> bool:
    """By the tensors that both have; one may have more that no model reads."""
    shared = one.keys() & other.keys()
    return bool(shared) and all(same_tensor(one[name], other[name]) for name in shared)


def _nearest(dense: Sequence[Layer], layer: Layer, order: Collection[int]) -> int | None:
    """The layer that has most tensors in common with this one, and of those the one whose values are nearest."""
    best, found = (1, 0.0), None
    for source in order:
        shared = [(dense[source][name], layer[name]) for name in dense[source].keys() & layer.keys()]
        distances = [_distance(one, other) for one, other in shared]
        sizes = [other.num_bytes for _, other in shared]
        distance = sum(map(operator.mul, distances, sizes)) / max(sum(sizes), 1)
        if distance < _NEAR and (-distances.count(0), distance) < best:
            best, found = (-distances.count(0), distance), source
    return found


def _distance(one: Bytes, other: Bytes) -> float:
    """`|other − one| / |one|` over the first megabyte, and 2 at most: also for what is no number."""
    if one.shape != other.shape or one.dtype not in FLOATS or other.dtype not in FLOATS:
        return 0.0 if same_tensor(one, other) else _FAR
    a, b = next(_aligned(one, other), (torch.zeros(1), torch.zeros(1)))
    if torch.equal(a, b):
        return 0.0
    distance = torch.linalg.vector_norm(b.double() - a.double()) / torch.linalg.vector_norm(a.double())
    return min(float(distance.nan_to_num(_FAR)), _FAR)


def _aligned(one: Bytes, other: Bytes) -> Iterator[tuple[Tensor, Tensor]]:
    """The values of two tensors of one shape, piece by piece, as many of each at a time."""
    wide = max(FLOATS[one.dtype].itemsize, FLOATS[other.dtype].itemsize)
    yield from zip(_values(one, wide), _values(other, wide), strict=True)


def _values(tensor: Bytes, wide: int) -> Iterator[Tensor]:
    """Values in pieces of a megabyte of the wider dtype."""
    dtype = FLOATS[tensor.dtype]
    pieces = wide // dtype.itemsize  # of a chunk of the narrower
    for chunk in tensor.chunks():
        values = torch.frombuffer(bytearray(chunk), dtype=dtype)
        yield from torch.split(values, max(1, 2**20 // dtype.itemsize // pieces))
