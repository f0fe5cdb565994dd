"""Cutting a model that is in memory."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from secateur.decoder import Decoder
from secateur.errors import PlanError, UnsupportedModelError
from secateur.plan import count_to_drop
from secateur.surgery.config import remove_layers_from_config_

__all__ = ["remove_layers_"]


def remove_layers_(model: nn.Module, dropped: Collection[int]) -> None:
    """Remove decoder layers in place: modules, layer numbers inside the kept ones, and the configuration.

    Args:
        model: a `transformers` causal language model.
        dropped: layers of the model as it is now, 0 the first; order and repetition do not matter.

    Raises:
        UnsupportedModelError: if the layers cannot be found, or the family's configuration cannot describe the result.
        PlanError: if a layer does not exist, or none would be left.

    On any of these errors the model is unchanged.
    """
    decoder = Decoder(model)
    gone = sorted(set(dropped))
    count_to_drop(len(gone), decoder.num_layers)
    if gone[0] < 0 or gone[-1] >= decoder.num_layers:
        wrong = gone[0] if gone[0] < 0 else gone[-1]
        raise PlanError(f"the model has no layer {wrong}; its layers are 0..{decoder.num_layers - 1}")
    _refuse_companions(decoder)

    saved = copy.deepcopy(vars(decoder.config))
    try:
        remove_layers_from_config_(decoder.config, gone)
    except BaseException:
        vars(decoder.config).clear()
        vars(decoder.config).update(saved)
        raise

    numbers = list(_layer_numbers(decoder.layers))
    new_of = {layer: new for new, layer in enumerate(sorted(set(range(decoder.num_layers)) - set(gone)))}
    for layer, module, name in numbers:
        if layer in new_of:
            setattr(module, name, getattr(module, name) - layer + new_of[layer])
    for layer in reversed(gone):
        del decoder.layers[layer]


def _refuse_companions(decoder: Decoder) -> None:
    """A second list beside the layers, as long as they are, holds a part for each: the cut would tear them apart."""
    parent = decoder.model.get_submodule(decoder.path.rpartition(".")[0])
    for name, module in parent.named_children():
        if module is not decoder.layers and isinstance(module, nn.ModuleList) and len(module) == decoder.num_layers:
            raise UnsupportedModelError(
                f"{type(decoder.model).__name__} keeps a second list '{name}' with one module a layer; "
                "cutting such models is not supported"
            )


def _layer_numbers(layers: nn.ModuleList) -> Iterator[tuple[int, Any, str]]:
    """Find the attributes that hold a layer's own number, such as `layer_idx`: (layer, module, attribute name).

    An attribute counts when, at the same place in every layer that has it, it is the layer's index plus one constant. In
    a place that only one layer has, that could be chance, so there the name must speak of layers.
    """
    places: dict[tuple[str, str], dict[int, tuple[Any, int]]] = defaultdict(dict)
    for layer, block in enumerate(layers):
        for path, module in block.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, int) and not isinstance(value, bool):
                    places[path, name][layer] = (module, value)
    for (_, name), found in places.items():
        offsets = {value - layer for layer, (_, value) in found.items()}
        named = any(word in name for word in ("layer", "idx", "index", "block"))
        if len(offsets) == 1 and (len(found) > 2 or (named and offsets <= {0, 1})):
            yield from ((layer, module, name) for layer, (module, _) in found.items())
