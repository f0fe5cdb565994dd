"""The layers in the names of tensors: `model.layers.3.mlp.up_proj.weight`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from secateur.surgery.shards import Bytes, StoredTensor

__all__ = ["layer_in", "layers_under", "new_numbers", "renumbered"]


def layer_in(name: str) -> tuple[str, int | None]:
    """What stands before the first number in a dotted name, and that number: `('model.layers', 3)`."""
    match = re.match(r"((?:(?![0-9]+\.)[^.]+\.)+?)(0|[1-9][0-9]{0,8})\.", name)
    return ("", None) if match is None else (match[1].removesuffix("."), int(match[2]))


def new_numbers(num_layers: int, dropped: Collection[int]) -> dict[int, int]:
    """Kept layer of the dense model → its number after the cut."""
    return {layer: new for new, layer in enumerate(sorted(set(range(num_layers)) - set(dropped)))}


def renumbered(name: str, paths: Collection[str], new_of: Mapping[int, int]) -> str | None:
    """The name after the cut of the lists of layers at `paths`; None if it is of a dropped layer."""
    prefix, layer = layer_in(name)
    if layer is None or prefix not in paths:
        return name
    return f"{prefix}.{new_of[layer]}{name.removeprefix(f'{prefix}.{layer}')}" if layer in new_of else None


def layers_under(tensors: Mapping[str, StoredTensor], prefix: str) -> list[dict[str, Bytes]]:
    """The layers whose tensors stand under a prefix such as `model.layers`, each with the names within it."""
    found: dict[int, dict[str, Bytes]] = {}
    for name, tensor in tensors.items():
        before, layer = layer_in(name)
        if layer is not None and before == prefix:
            found.setdefault(layer, {})[name.removeprefix(f"{prefix}.{layer}.")] = tensor
    return [found[layer] for layer in range(len(found))]
