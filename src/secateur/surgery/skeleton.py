"""Whether a configuration says all of the layers that are kept: two models without weights, the dense one and the cut one.

transformers builds both. Each kept layer must come out as it was, but for its number. What differs outside the layers (a
count, a table with a part for each layer) is what the cut has to change there.
"""

from __future__ import annotations

import logging
import math
import types
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import UnsupportedModelError
from secateur.loading import quiet_transformers

__all__ = ["SHARING", "Changes", "changes_between", "empty_model"]

logger = logging.getLogger(__name__)

SHARING = {"store_full_length_kv"}
"""Attributes that say whose keys and values later layers read. They follow who is kept: a run on tokens shows if rightly."""

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What a cut changes beside taking layers out of their list. Layers have their numbers of before the cut."""

    in_layers: dict[tuple[int, str, str], tuple[Any, Any]]
    """(layer, path inside it, attribute) → values before and after: the layers' numbers."""

    outside: dict[tuple[str, str], tuple[Any, Any]]
    """(path, attribute) of modules that are not in a layer → values before and after."""

    packed: dict[str, int]
    """Parameters and buffers outside the layers that hold an equal part for each layer → the dimension they lie along."""


def empty_model(model_class: Any, config: Any, what: str) -> Any:
    """The model that a configuration gives once it was written down, without memory for its weights.

    Buffers have their values.

    Args:
        model_class: a model of `transformers`.
        config: its configuration.
        what: what the message calls that.

    Raises:
        UnsupportedModelError: if the model cannot be built from it.
    """
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
            torch.manual_seed(0)
            again = type(config).from_dict(config.to_dict())
            again._attn_implementation = "eager"  # what is preferred may not run here; the layers are the same
            with no_init_weights():
                return model_class(again)
    except Exception as error:
        logger.debug("building from the configuration failed", exc_info=True)
        raise UnsupportedModelError(
            f"{model_class.__name__} cannot be built from {what} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        ) from error


def changes_between(dense: nn.Module, cut: nn.Module, path: str, kept: Sequence[int]) -> Changes:
    """Compare two models of the same class.

    Args:
        dense: built from the dense configuration.
        cut: built from that of the kept layers.
        path: where both keep their list of layers.
        kept: the layers of `dense` that `cut` has, ascending.

    Raises:
        UnsupportedModelError: if `cut` differs in more than counts and numbers of layers.
    """
    before: Any = dense.get_submodule(path)
    after: Any = cut.get_submodule(path)
    what = type(dense).__name__
    if len(after) != len(kept):
        raise UnsupportedModelError(
            f"{what} has {len(after)} layers when it is built from the configuration of {len(kept)}; it cannot be cut"
        )
    differing: dict[tuple[str, str], dict[int, tuple[int, Any, Any]]] = defaultdict(dict)
    for new, layer in enumerate(kept):
        for where, name, values in _differences(before[layer], after[new], f"{what}: layer {layer}"):
            differing[where, name][layer] = (new, *values)
    new_of = {layer: new for new, layer in enumerate(kept)}
    for (where, name), places in differing.items():
        _check_numbers(dense, cut, what, f"{where}.{name}".lstrip("."), places, new_of)
    outside, packed = _outside(dense, cut, path, len(before), len(after))
    return Changes(
        in_layers={
            (layer, where, name): (old, new)
            for (where, name), places in differing.items()
            for layer, (_, old, new) in places.items()
        },
        outside=outside,
        packed=packed,
    )


def _differences(before: nn.Module, after: nn.Module, what: str) -> Iterator[tuple[str, str, tuple[Any, Any]]]:
    """Path, name and values of the attributes that differ; structure, shapes and buffers must not."""
    old, new = (dict(module.named_modules(remove_duplicate=False)) for module in (before, after))
    for where in {**old, **new}:
        first, second = (type(modules[where]).__name__ if where in modules else "none" for modules in (old, new))
        if first != second:
            _refuse(what, where or "all of it", first, second)
    for where, module in old.items():
        tensors, others = (_tensors(each) for each in (module, new[where]))
        for name in {**tensors, **others}:
            stored = name not in module._non_persistent_buffers_set
            if (reason := _differ(tensors.get(name), others.get(name), stored=stored)) is not None:
                _refuse(what, f"{where}.{name}".lstrip("."), *reason)
        yield from ((where, name, values) for name, values in _attributes(module, new[where]))


def _refuse(what: str, name: str, before: Any, after: Any) -> None:
    raise UnsupportedModelError(
        f"{what} would not be read again as it is: its {name} would be {_short(after)} and not {_short(before)}, and the "
        "configuration has no field for that; drop other layers"
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    named = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {name: tensor for name, tensor in named if tensor is not None}


def _differ(before: Tensor | None, after: Tensor | None, *, stored: bool) -> tuple[str, str] | None:
    """How two tensors differ, in words; the values of one that is not `stored` with the weights count as well."""
    if before is None or after is None:
        return ("none" if before is None else "there"), ("none" if after is None else "there")
    if before.shape != after.shape:
        return f"{list(before.shape)}", f"{list(after.shape)}"
    if stored or before.is_meta or after.is_meta or torch.equal(before, after):
        return None
    return "computed for its old number", "computed for another layer"


def _attributes(before: nn.Module, after: nn.Module) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The plain attributes of a module that differ."""
    old, new = vars(before), vars(after)
    for name in {**old, **new}:
        if name not in _OF_EVERY_MODULE:
            first, second = _plain(old.get(name)), _plain(new.get(name))
            if first != second and not _close(first, second):
                yield name, (old.get(name), new.get(name))


def _close(first: Any, second: Any) -> bool:
    """Equal but for rounding, as a scale that is computed from another depth."""
    return type(first) is type(second) is float and math.isclose(first, second, rel_tol=1e-12)


def _plain(value: Any) -> Any:
    """The value if it can be compared, a function's name, else nothing."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in (sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
        return value.__qualname__
    if isinstance(value, Tensor):
        return None if value.is_meta else value.tolist()
    return value if isinstance(value, (bool, int, float, str, torch.dtype, type(None))) else None


def _check_numbers(
    dense: nn.Module,
    cut: nn.Module,
    what: str,
    name: str,
    values: Mapping[int, tuple[int, Any, Any]],
    new_of: Mapping[int, int],
) -> None:
    """A number of a layer moves as the layer does, or as a whole multiple; a copy of a configuration's field follows it."""
    steps = set()
    for layer, (new, before, after) in values.items():
        whole = type(before) is int and type(after) is int and layer != new and (before - after) % (layer - new) == 0
        steps.add((before - after) // (layer - new) if whole else 0)
    if len(steps) == 1 and min(steps) > 0:
        return
    if name.rpartition(".")[2] in SHARING:
        return
    for layer, (_, before, after) in values.items():
        by_number = isinstance(before, dict) and after == {new_of[key]: before[key] for key in before if key in new_of}
        if not by_number and not _is_field(dense, cut, before, after):
            _refuse(f"{what}: layer {layer}", name, before, after)


def _is_field(dense: Any, cut: Any, before: Any, after: Any) -> bool:
    first, second = (model.config.get_text_config(decoder=True) for model in (dense, cut))
    fields = vars(first).keys() & vars(second).keys()
    values = (_plain(before), _plain(after))
    return any((_plain(vars(first)[name]), _plain(vars(second)[name])) == values for name in fields)


def _outside(
    dense: nn.Module, cut: nn.Module, path: str, before: int, after: int
) -> tuple[dict[tuple[str, str], tuple[Any, Any]], dict[str, int]]:
    """What differs in the modules that are in no layer: attributes, and tensors with a part for each layer."""
    attributes: dict[tuple[str, str], tuple[Any, Any]] = {}
    packed: dict[str, int] = {}
    old, new = (
        {
            name: module
            for name, module in model.named_modules()
            if not f"{name}.".startswith(f"{path}.") or name == path
        }
        for model in (dense, cut)
    )
    if different := old.keys() ^ new.keys():
        raise UnsupportedModelError(
            f"{type(dense).__name__} has {min(different)} for some numbers of layers only; such models cannot be cut"
        )
    for where, module in old.items():
        for name, values in _attributes(module, new[where]):
            attributes[where, name] = values
        others = _tensors(new[where])
        for name, tensor in _tensors(module).items():
            if name not in others and name in module._non_persistent_buffers_set:
                continue  # computed for a kind of layer of which none is kept
            if name in others and (dim := _part_dim(tensor, others[name], before, after)) is not None:
                packed[f"{where}.{name}".lstrip(".")] = dim
            elif (reason := _differ(tensor, others.get(name), stored=True)) is not None:
                _refuse(type(dense).__name__, f"{where}.{name}".lstrip("."), *reason)
    return attributes, packed


def _part_dim(tensor: Tensor, other: Tensor, before: int, after: int) -> int | None:
    """The dimension along which `tensor` has an equal part for each layer, and `other` one for each that is kept."""
    if tensor.dim() != other.dim():
        return None
    dims = [dim for dim in range(tensor.dim()) if tensor.shape[dim] != other.shape[dim]]
    if len(dims) != 1:
        return None
    old, new = tensor.shape[dims[0]], other.shape[dims[0]]
    return dims[0] if old % before == 0 and old // before * after == new else None
