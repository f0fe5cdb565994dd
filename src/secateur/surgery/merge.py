"""Fold what pruned layers knew into the layers beside them: GradPruner's sparsify and merge (arXiv 2601.19503, section 3.2).

Of each linear weight of a pruned layer the entries with the largest IGIA F stay, the top `keep` of them; each is added to the
same entry of the kept layer's weight where the two have the same sign:

    W_kept[j,k] ← W_kept[j,k] + share · W_pruned[j,k]    where F_pruned[j,k] is in the top and sign W_kept = sign W_pruned

`sign` has share 1; `sign-igia` has F_pruned / (F_pruned + F_kept). The signs compared are those of the kept layer's weight as
it was. Norms and biases are not merged. The `k = keep·m·n` largest are those not below the k-th largest, so equal entries
stay or go together; an entry with F = 0 never stays.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from secateur.decoder import Decoder
from secateur.errors import RequestError
from secateur.progress import Progress, Silent
from secateur.settings import Merge, check_keep

__all__ = [
    "Evidence",
    "add_entries_",
    "highest_merged",
    "merge_layers_",
    "merge_targets",
    "share_of",
    "top_entries",
]


class Evidence(Protocol):
    """Where the IGIA-Matrices come from."""

    def names(self, layer: int) -> list[str]:
        """The weights of a layer that have one, by name within the layer."""

    def matrix(self, layer: int, name: str, device: torch.device | str | None = None) -> Tensor:
        """F of one weight, in the shape in which the model stores the weight; where the weight was scored if None."""


def merge_targets(dropped: Collection[int], num_layers: int, merged: Sequence[int]) -> dict[int, int]:
    """Pruned layer → the kept layer it is merged into: the nearest before it, or the first after it if there is none before.

    Args:
        dropped: all layers that go.
        num_layers: the layers of the dense model.
        merged: those of `dropped` that are merged.
    """
    kept = [layer for layer in range(num_layers) if layer not in set(dropped)]
    return {layer: max((k for k in kept if k < layer), default=kept[0]) for layer in sorted(merged)}


def highest_merged(order: Sequence[int], num_layers: int, merge: Merge, count: int | None) -> dict[int, int]:
    """The merges of the pruned layers with the highest scores.

    Args:
        order: the layers that go, lowest score first.
        num_layers: the layers of the dense model.
        merge: how they are merged; `none` of them with `none`.
        count: how many are merged; all if None.
    """
    if merge == "none" or count == 0:
        return {}
    return merge_targets(order, num_layers, order if count is None else order[-count:])


def merge_layers_(
    decoder: Decoder,
    merges: Mapping[int, int],
    evidence: Evidence,
    *,
    keep: float = 0.2,
    merge: Merge = "sign",
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Merge layers that will be removed into layers that stay, in place, one weight at a time.

    Args:
        decoder: the dense model, without adapters.
        merges: pruned layer → kept layer.
        evidence: the IGIA-Matrices, as `IGIA` accumulates them.
        keep: the share of each pruned weight's entries that stays, in (0, 1].
        merge: `none`, `sign` or `sign-igia`.
        progress: told of each pruned layer.

    Returns:
        A dictionary a pruned layer: `layer`, `into`, `entries` (of the watched weights), `added` (how many of them were), and
        `skipped` (names of weights that the kept layer does not have in that shape).

    Raises:
        RequestError: if `keep` is no share, or a weight is quantised. Nothing is changed then.
    """
    check_keep(keep)
    if merge == "none":
        return []
    pairs = {layer: _pairs(decoder, layer, into, evidence) for layer, into in merges.items()}
    for into in set(merges.values()):  # one kept weight at a time: its signs, and then all that comes to it
        for name in evidence.names(into):
            _refuse_quantised(decoder.layers[into], into, name)
    report: dict[int, dict[str, Any]] = {
        layer: {"layer": layer, "into": into, "entries": 0, "added": 0, "skipped": pairs[layer][1]}
        for layer, into in merges.items()
    }
    with (progress or Silent()).track("merging the pruned layers", len(merges)) as advance, torch.no_grad():
        for into in sorted(set(merges.values())):
            sources = [layer for layer in sorted(merges) if merges[layer] == into]
            for name in sorted({name for layer in sources for name in pairs[layer][0]}):
                kept = _weight(decoder.layers[into], name)
                original = kept.detach().clone()
                for layer in sources:
                    if name not in pairs[layer][0]:
                        continue
                    pruned = _weight(decoder.layers[layer], name).to(original)
                    information = evidence.matrix(layer, name, original.device)
                    share = None
                    if merge == "sign-igia":
                        share = share_of(information, evidence.matrix(into, name, original.device))
                    added = add_entries_(kept, original, pruned, top_entries(information, keep), share)
                    report[layer]["entries"] += original.numel()
                    report[layer]["added"] += added
            advance(len(sources))
    return [report[layer] for layer in sorted(report)]


def top_entries(information: Tensor, keep: float) -> Tensor:
    """Where the largest entries are: those not below the k-th largest, `k = round(keep · entries)`, and above 0."""
    count = min(max(int(keep * information.numel() + 0.5), 1), information.numel())
    # the k-th largest is the (n − k + 1)-th smallest; kthvalue needs no sorted copy
    threshold = information.flatten().kthvalue(information.numel() - count + 1).values
    return (information >= threshold) & (information > 0)


def add_entries_(kept: Tensor, original: Tensor, pruned: Tensor, top: Tensor, share: Tensor | None) -> int:
    """Add entries of a pruned weight to a kept one, where the signs agree; how many.

    Args:
        kept: the weight that stays, with what was added to it before.
        original: the same before anything was added.
        pruned: the weight that goes.
        top: which of its entries may be added.
        share: how much of each; all if None.
    """
    chosen = top & (original.sign() == pruned.sign())
    if share is not None:
        pruned = pruned * share.to(pruned)
    kept.add_(torch.where(chosen, pruned, torch.zeros_like(pruned)))
    return int(chosen.sum())


def share_of(pruned: Tensor, kept: Tensor) -> Tensor:
    """F_pruned / (F_pruned + F_kept), 0 where both are."""
    total = pruned + kept
    return torch.where(total > 0, pruned / total, torch.zeros_like(total))


def _pairs(decoder: Decoder, layer: int, into: int, evidence: Evidence) -> tuple[list[str], list[str]]:
    """The names of the weights that the two layers share in one shape, and those they do not."""
    shared: list[str] = []
    skipped: list[str] = []
    known = set(evidence.names(into))
    for name in evidence.names(layer):
        _refuse_quantised(decoder.layers[layer], layer, name)
        same = name in known and _weight(decoder.layers[into], name).shape == _weight(decoder.layers[layer], name).shape
        (shared if same else skipped).append(name)
    return shared, skipped


def _weight(layer: nn.Module, name: str) -> nn.Parameter:
    return layer.get_parameter(name)


def _refuse_quantised(layer: nn.Module, number: int, name: str) -> None:
    weight = _weight(layer, name)
    if not weight.is_floating_point() or weight.element_size() < 2:
        raise RequestError(
            f"layer {number}'s {name} is quantised ({weight.dtype}), and cannot be merged into: score on the quantised model "
            "with merge='none', or apply the plan to the full-precision one"
        )
