"""Folds of layers into others, as LaCo's: `θ_l ← θ_l + Σ (θ_k − θ_l)` for each number, on live weights or file to file.

A fold asks for nothing but weights, and each number of it for the numbers at the same place. So it is computed a megabyte at a
time, whatever the size of a weight, and is the same whether experts lie in one tensor or one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.errors import PlanError, UnsupportedModelError
from secateur.plan import PruningPlan
from secateur.surgery.computed import FLOATS, ComputedTensor
from secateur.surgery.layout import CutLayout
from secateur.surgery.masks import merged
from secateur.surgery.names import layers_under, new_numbers
from secateur.surgery.shards import Bytes, StoredTensor, quoted

__all__ = ["Fold", "FoldedTensor", "fold", "folded", "folds_of"]


@dataclass(frozen=True)
class Fold:
    """Layers that go, the layer they are folded into, and what the model was like afterwards; layers of the dense model."""

    into: int
    layers: tuple[int, ...]
    similarity: float | None = None
    threshold: float | None = None


def fold(kept: Tensor, others: Iterable[Tensor]) -> Tensor:
    """`θ_l + Σ (θ_k − θ_l)` in float32, in the dtype of the kept weight."""
    wide = kept.float()
    total = wide
    for other in others:
        total = total + (other.to(kept.device).float() - wide)
    return total.to(kept.dtype)


def folds_of(plan: PruningPlan) -> list[Fold]:
    """The folds that a plan names, or those that follow from the layers that go.

    Where a plan says nothing of folds, each layer goes into the one that `merges` names, or else into the nearest kept layer
    before it, or after it if there is none before.

    Raises:
        PlanError: if the plan's folds are none, or are not of the layers that go.
    """
    if "folds" in plan.provenance:
        try:
            folds = [
                Fold(int(each["into"]), tuple(map(int, each["layers"])), each.get("similarity"), each.get("threshold"))
                for each in plan.provenance["folds"]
            ]
        except (TypeError, KeyError, ValueError, AttributeError):
            raise PlanError("the plan's folds are not layers and what they go into; make it again") from None
        gone: set[int] = set()
        for each in folds:
            if not gone.isdisjoint({each.into, *each.layers}) or each.into in each.layers:
                raise PlanError(f"the plan folds {_words(each)} after one of them has gone; make it again")
            gone |= set(each.layers)
        if gone != set(plan.dropped) or not all(0 <= each.into < plan.num_layers for each in folds):
            raise PlanError("the plan's folds are not of the layers that it drops; make it again")
        return folds
    into_of = {
        layer: max((kept for kept in plan.kept if kept < layer), default=plan.kept[0]) for layer in plan.dropped
    } | plan.merges
    return [
        Fold(into, tuple(layer for layer in plan.dropped if into_of[layer] == into))
        for into in sorted(set(into_of.values()))
    ]


# ---- file to file -------------------------------------------------------------------------------------------------------


def folded(
    layout: CutLayout, tensors: Mapping[str, StoredTensor], plan: PruningPlan
) -> tuple[dict[str, Bytes], frozenset[str]]:
    """The tensors that a cut keeps, with what the plan folds into them, and the names of those that are computed.

    Args:
        layout: what the checkpoint is after the cut.
        tensors: of the dense checkpoint.
        plan: which layers go, and how.

    Raises:
        PlanError: if the plan's folds make no sense, or the masks of its merges are missing or others.
        UnsupportedModelError: if layers to be folded together differ, or are quantised.
    """
    kept: dict[str, Bytes] = dict(layout.tensors)
    before = layers_under(tensors, layout.prefix)
    if "folds" in plan.provenance:
        after = _fold_tensors(before, folds_of(plan), layout.model.get_submodule(layout.path))
    elif plan.merges:
        after = merged(before, plan)
    else:
        return kept, frozenset()
    computed = {
        f"{layout.prefix}.{new}.{name}": tensor
        for layer, new in new_numbers(plan.num_layers, plan.dropped).items()
        for name, tensor in after[layer].items()
        if isinstance(tensor, ComputedTensor)
    }
    return kept | computed, frozenset(computed)


@dataclass(frozen=True, kw_only=True)
class FoldedTensor(ComputedTensor):
    """A tensor that others are folded into."""

    others: tuple[Bytes, ...]

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, as many at a time as those of the kept one."""
        for kept, *others in zip(self.kept.chunks(), *(each.chunks() for each in self.others), strict=True):
            values = [self.values(each) for each in (kept, *others)]
            yield fold(values[0], values[1:]).view(torch.uint8).numpy().tobytes()


def _fold_tensors(
    layers: Sequence[Mapping[str, Bytes]], folds: Sequence[Fold], model_layers: Any
) -> list[dict[str, Bytes]]:
    """The tensors of each layer after the folds, one after the other; those that are not matrices stay.

    Args:
        layers: of the dense checkpoint; the names within the layer → its tensors.
        folds: what goes into what.
        model_layers: the layers of the dense model, on any device.

    Raises:
        UnsupportedModelError: if layers to be folded together differ in dtype or shape, or are not of floating-point numbers.
    """
    now: list[dict[str, Bytes]] = [dict(layer) for layer in layers]
    for each in folds:
        names = [_matrices(layers[layer], model_layers[layer]) for layer in (each.into, *each.layers)]
        for name in sorted(set().union(*names)):
            found = [tensor for layer in (each.into, *each.layers) if (tensor := now[layer].get(name)) is not None]
            kinds = {(tensor.dtype, tensor.shape) for tensor in found}
            if len(found) <= len(each.layers) or len(kinds) > 1 or found[0].dtype not in FLOATS:
                raise UnsupportedModelError(
                    f"cannot fold {_words(each)}: their {quoted(name)} are not floating-point numbers of one dtype and shape; "
                    "choose layers of one kind in a checkpoint that is not quantised"
                )
            kept, *others = found
            now[each.into][name] = FoldedTensor(kept=kept, others=tuple(others))
    return now


def _matrices(layer: Mapping[str, Bytes], module: Any) -> set[str]:
    """The tensors of modules that hold a matrix: projections with their biases, and no norms and no buffers."""
    buffers = {name for name, _ in module.named_buffers()}
    holders = {
        name.rpartition(".")[0] for name, tensor in layer.items() if len(tensor.shape) > 1 and name not in buffers
    }
    return {name for name in layer if name.rpartition(".")[0] in holders and name not in buffers}


def _words(each: Fold) -> str:
    return f"layers {', '.join(map(str, each.layers))} into layer {each.into}"
