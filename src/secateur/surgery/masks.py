"""What a merge needs beside the weights, in a file: which entries of each pruned weight are added to the kept one, and how much.

The IGIA-Matrices that decide it are as large as the weights and are gone when the training ends; what follows from them is a bit
an entry, and for `sign-igia` a float32 for each entry chosen. So a plan with merges can be applied file to file, a megabyte at
a time, and gives bit for bit what `merge_layers_` gives in memory. The file is a safetensors file:

    3.mlp.up_proj.weight.top      U8   the bits of layer 3's entries in the order of the weight, the lowest bit of a byte first
    3.mlp.up_proj.weight.share    F32  F_pruned / (F_pruned + F_kept) of the entries chosen, in their order; with sign-igia

Its metadata say the merges (pruned layer → kept layer) and the shape of each weight.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secateur.errors import ModelError, PlanError, UnsupportedModelError
from secateur.plan import PruningPlan
from secateur.settings import Merge
from secateur.surgery.computed import FLOATS, ComputedTensor
from secateur.surgery.copying import CHUNK
from secateur.surgery.merge import Evidence, add_entries_, share_of, top_entries
from secateur.surgery.shards import Bytes, StoredTensor, quoted, read_header, write_shard

__all__ = ["MergedTensor", "merged", "write_masks"]


# ---- writing ------------------------------------------------------------------------------------------------------------


def write_masks(path: Path, merges: Mapping[int, int], evidence: Evidence, *, keep: float, merge: Merge) -> None:
    """Write what `merge_layers_` would choose, one weight in memory at a time.

    Args:
        path: the new file.
        merges: pruned layer → kept layer.
        evidence: the IGIA-Matrices.
        keep: the share of each pruned weight's entries that stays.
        merge: `sign` or `sign-igia`.

    Raises:
        RequestError: if the evidence was not kept.
        OSError: if the file cannot be written.
    """
    shapes: dict[str, list[int]] = {}
    parts: dict[str, Bytes] = {}
    # Beside the new file, as there is room; how many entries are chosen, and so the header, is known at the end.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as spool:

        def put(name: str, dtype: str, raw: bytes, count: int) -> None:
            start = spool.tell()
            spool.write(raw)
            parts[name] = StoredTensor(
                file=Path(spool.name), dtype=dtype, shape=(count,), start=start, num_bytes=len(raw)
            )

        for layer, into in sorted(merges.items()):
            beside = set(evidence.names(into))
            for name in (each for each in evidence.names(layer) if each in beside):
                information, share = evidence.matrix(layer, name), None
                if merge == "sign-igia":
                    other = evidence.matrix(into, name)
                    if other.shape != information.shape:
                        continue
                    share = share_of(information, other)
                top = top_entries(information, keep)
                shapes[f"{layer}.{name}"] = list(top.shape)
                bits = np.packbits(top.cpu().numpy().reshape(-1), bitorder="little")
                put(f"{layer}.{name}.top", "U8", bits.tobytes(), len(bits))
                if share is not None:
                    chosen = share[top].cpu().numpy()
                    put(f"{layer}.{name}.share", "F32", chosen.astype("<f4").tobytes(), len(chosen))
        spool.flush()
        words = {"merge": merge, "merges": json.dumps(merges), "shapes": json.dumps(shapes)}
        write_shard(path, parts, words, lambda _: None)


# ---- reading ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Mask:
    """Which entries of one weight are added, and how much of each."""

    shape: tuple[int, ...]
    top: StoredTensor
    share: StoredTensor | None

    def parts(self, most: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Whether each entry is, and its share, for at most that many entries at a time; a multiple of 8."""
        place, entries = 0, math.prod(self.shape)
        for first in range(0, entries, most):
            count = min(most, entries - first)
            bits = np.frombuffer(self.top.part(first // 8, -(-count // 8)), dtype=np.uint8)
            chosen = torch.from_numpy(np.unpackbits(bits, count=count, bitorder="little")).bool()
            if self.share is None:
                yield chosen, None
                continue
            picked = int(chosen.sum())
            values = np.frombuffer(self.share.part(4 * place, 4 * picked), dtype="<f4")
            if len(values) != picked:
                raise PlanError(f"{self.share.file} holds too few shares for its entries; make the plan again")
            place += picked
            share = torch.zeros(count)
            share[chosen] = torch.from_numpy(values.copy())
            yield chosen, share


@dataclass(frozen=True, kw_only=True)
class MergedTensor(ComputedTensor):
    """A tensor that entries of others are added to, as `merge_layers_` does."""

    sources: tuple[tuple[Bytes, _Mask], ...]
    """The pruned layers' tensors with their masks, the first layer first."""

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, as many at a time as those of the kept one."""
        most = CHUNK // FLOATS[self.dtype].itemsize
        streams = [zip(tensor.chunks(), mask.parts(most), strict=True) for tensor, mask in self.sources]
        for chunk, *parts in zip(self.kept.chunks(), *streams, strict=True):
            original = self.values(chunk)
            total = original.clone()
            for raw, (top, share) in parts:
                add_entries_(total, original, self.values(raw), top, share)
            yield total.view(torch.uint8).numpy().tobytes()


def merged(layers: Sequence[Mapping[str, Bytes]], plan: PruningPlan) -> list[dict[str, Bytes]]:
    """The tensors of each layer after the plan's merges.

    Args:
        layers: of the dense checkpoint; the names within the layer → its tensors.
        plan: with merges.

    Raises:
        PlanError: if the plan has no masks, or the file with them is missing, altered or another one.
        UnsupportedModelError: if a weight to be merged is not stored as the model has it, or is quantised.
    """
    without = f"cut without the merge: --layers {','.join(map(str, plan.dropped))}"
    if plan.masks is None:
        raise PlanError(
            f"the plan merges layer {min(plan.merges)} by {plan.method or 'a method'}, and has no file with the entries to add; "
            f"make it again with secateur score --out or prune, or {without}"
        )
    now: list[dict[str, Bytes]] = [dict(layer) for layer in layers]
    found = _read(plan.masks.verified(f"or {without}"), plan)
    for (into, name), masks in found.items():
        kept = layers[into].get(name)
        sources = []
        for layer, mask in masks:
            pruned = layers[layer].get(name)
            if kept is None or pruned is None or pruned.shape != mask.shape or pruned.dtype not in FLOATS:
                raise UnsupportedModelError(
                    f"cannot merge layer {layer} into layer {into}: the files do not hold {quoted(name)} as floating-point "
                    f"numbers of the shape {list(mask.shape)}, as the scored model did; merge the loaded model, or {without}"
                )
            if kept.shape == pruned.shape and kept.dtype == pruned.dtype:  # others are skipped in memory, too
                sources.append((pruned, mask))
        if kept is not None and sources:
            now[into][name] = MergedTensor(kept=kept, sources=tuple(sources))
    return now


def _read(path: Path, plan: PruningPlan) -> dict[tuple[int, str], list[tuple[int, _Mask]]]:
    """Kept layer and name of a weight → the pruned layers whose weights of that name are added to it, with their masks."""
    found: dict[tuple[int, str], list[tuple[int, _Mask]]] = {}
    try:
        tensors, words = read_header(path)
        merges = {int(layer): int(into) for layer, into in json.loads(words["merges"]).items()}
        shapes = {key: tuple(map(int, shape)) for key, shape in json.loads(words["shapes"]).items()}
        for key, shape in shapes.items():
            number, _, name = key.partition(".")
            mask = _Mask(
                shape=shape,
                top=tensors[f"{key}.top"],
                share=tensors[f"{key}.share"] if words["merge"] == "sign-igia" else None,
            )
            if (mask.top.dtype, mask.top.num_bytes) != ("U8", -(-math.prod(shape) // 8)):
                raise ValueError(f"{key} has not one bit an entry")
            found.setdefault((merges[int(number)], name), []).append((int(number), mask))
    except (ModelError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlanError(f"{path} does not hold the masks of merges ({error}); make the plan again") from error
    if merges != plan.merges:
        raise PlanError(f"{path} is of other merges than the plan; make the plan again")
    return {key: sorted(masks, key=lambda each: each[0]) for key, masks in found.items()}
