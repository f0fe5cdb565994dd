"""Carrying a LoRA adapter over: trained on the dense model, it then fits the pruned one.

The tensors are renamed and copied. peft's settings choose modules by suffix, list of layers or regular expression; a choice
that comes out otherwise under the new numbers is replaced by the names of the modules it chose.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from secateur.errors import ModelError, PlanError
from secateur.plan import PruningPlan
from secateur.surgery.companions import companions
from secateur.surgery.files import check_apart
from secateur.surgery.layout import explained
from secateur.surgery.names import layer_in, new_numbers, renumbered
from secateur.surgery.output import check_output, new_directory
from secateur.surgery.shards import StoredTensor, copy_file, quoted, read_header, read_json, write_shard
from secateur.values import write_json

__all__ = ["CarriedAdapter", "carry_adapter"]

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"

_WRAPPER = "base_model.model."
"""What peft puts before the names of the model's own modules."""


@dataclass(frozen=True, kw_only=True)
class CarriedAdapter:
    """What became of an adapter."""

    target: Path
    """The new adapter."""

    layers: tuple[int, ...]
    """Layers of the dense model whose parts were carried over, ascending."""

    num_tensors: int
    """Tensors carried over."""

    left_out: tuple[str, ...]
    """Tensors of dropped layers, by their old names."""

    rewritten: tuple[str, ...]
    """Settings that say the same under the new numbers, and therefore read differently."""

    copied: tuple[str, ...]
    """Files copied as they were."""

    left: tuple[str, ...]
    """What lies beside the adapter and was not copied: its model card, checkpoints, folders (these end in `/`)."""


def carry_adapter(
    adapter: str | Path,
    target: str | Path,
    plan: PruningPlan,
    *,
    base: str | Path | None = None,
    overwrite: bool = False,
) -> CarriedAdapter:
    """Write the LoRA adapter `adapter` of the dense model as one of the pruned model to `target`.

    On the pruned model it computes what it computed on the dense one with the dropped layers bypassed.

    Args:
        adapter: a directory that peft saved.
        target: the new directory; it is there whole at the end, or not at all.
        plan: which layers of the dense model went.
        base: where the pruned model is, for peft to find it; as it was if None.
        overwrite: replace what is at `target`.

    Raises:
        ModelError: if it is no LoRA adapter in safetensors, is damaged, or has settings that cannot be carried over.
        PlanError: if the adapter has layers that the plan's model has not, or all that it changes are dropped.
        OutputError: if `target` cannot be written to.
        WriteError: if writing fails half-way. On any of these errors, nothing is left at `target`.
    """
    folder, out = Path(adapter).expanduser(), check_output(target, overwrite=overwrite, marker="adapter_config.json")
    check_apart(folder, out)
    settings = _read_settings(folder)
    tensors, metadata = read_header(folder / _WEIGHTS)
    path = _list_of_layers(folder, tensors, plan.num_layers)
    new_of = new_numbers(plan.num_layers, plan.dropped)
    moved = {name: renumbered(name, [path], new_of) for name in tensors}
    kept = {new: tensors[name] for name, new in moved.items() if new is not None}
    layers = {layer for name in tensors if (layer := _layer(name, path)) is not None}
    if not layers & set(new_of):
        raise PlanError(
            f"the plan drops every layer that {folder} changes ({', '.join(map(str, sorted(layers)))}); "
            "nothing is left to carry over"
        )
    with explained(f"cannot understand {folder / _CONFIG}", "see the reason and mend it"):
        carried = _carry_settings(settings, tensors, path.removeprefix(_WRAPPER), new_of)
    if base is not None:
        carried |= {"base_model_name_or_path": str(base), "revision": None}
    copied, left = companions(folder, {_CONFIG, _WEIGHTS})
    with new_directory(target, overwrite=overwrite, marker="adapter_config.json") as directory:
        write_json(directory / _CONFIG, carried)
        for name in copied:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            copy_file(folder / name, directory / name)
        write_shard(directory / _WEIGHTS, kept, metadata, lambda _: None)
    return CarriedAdapter(
        target=out,
        layers=tuple(sorted(layers & set(new_of))),
        num_tensors=len(kept),
        left_out=tuple(name for name, new in moved.items() if new is None),
        rewritten=tuple(sorted(name for name in carried if carried[name] != settings.get(name))),
        copied=copied,
        left=left,
    )


# ---- reading ----------------------------------------------------------------------------------------------------------


def _read_settings(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError(f"cannot read {folder}: no such directory; give the directory of a peft adapter")
    settings = read_json(folder / _CONFIG)
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if kind != "LORA":
        raise ModelError(f"{folder} is a peft adapter of type {quoted(kind)}; only LORA adapters can be carried over")
    if settings.get("layer_replication"):
        raise ModelError(
            f"{folder} repeats layers of its base (layer_replication), so its numbers are not those of the plan; "
            "such an adapter cannot be carried over"
        )
    if not os.path.lexists(folder / _WEIGHTS):
        raise ModelError(f"{folder} has no {_WEIGHTS}; save the adapter again with a recent peft, as safetensors")
    return dict(settings)


def _layer(name: str, path: str) -> int | None:
    """The decoder layer that a tensor or module is of."""
    prefix, layer = layer_in(name)
    return layer if prefix == path else None


def _list_of_layers(folder: Path, names: Iterable[str], num_layers: int) -> str:
    """What stands before the number of a layer in the tensors' names; not every layer need be there."""
    last: dict[str, int] = {}
    for name in names:
        prefix, layer = layer_in(name)
        if layer is not None:
            last[prefix] = max(layer, last.get(prefix, 0))
    if not last:
        raise ModelError(f"{folder} has no tensors of decoder layers; there is nothing to renumber")
    paths = [path for path, layer in last.items() if layer < num_layers]
    if not paths:
        raise PlanError(
            f"{folder} changes layer {min(last.values())}, and the plan is for a model of {num_layers} layers; "
            "give the plan made on the adapter's own base"
        )
    if len(paths) > 1:  # an image encoder has layers too
        raise ModelError(
            f"{folder} changes layers under {' and '.join(map(quoted, paths))}, and nothing says which are the decoder's; "
            "such an adapter cannot be carried over"
        )
    return paths[0]


# ---- settings ---------------------------------------------------------------------------------------------------------


def _carry_settings(
    settings: Mapping[str, Any], tensors: Mapping[str, StoredTensor], path: str, new_of: Mapping[int, int]
) -> dict[str, Any]:
    """The settings under the new numbers: as they were where they still mean the same.

    Args:
        settings: adapter_config.json.
        tensors: the adapter's, by peft's names.
        path: where the model keeps its layers.
        new_of: kept layer → its new number.
    """
    carried = dict(settings)
    modules = sorted({name.removeprefix(_WRAPPER).partition(".lora_")[0] for name in tensors if ".lora_" in name})
    # Every kind of module the adapter changes, in every layer that stays: a pattern must also not choose too many.
    kinds = {name.removeprefix(f"{path}.{layer}.") for name in modules if (layer := _layer(name, path)) is not None}
    places = {f"{path}.{old}.{kind}": f"{path}.{new}.{kind}" for old, new in new_of.items() for kind in kinds}

    for field in ("modules_to_save", "target_parameters"):
        if settings.get(field):
            carried[field] = _renumber_suffixes(settings[field], field, path, new_of)
    layers = settings.get("layers_to_transform")
    if layers is not None:
        listed = [layers] if isinstance(layers, int) else list(layers)
        carried["layers_to_transform"] = [new_of[layer] for layer in listed if layer in new_of] or None
    if any(_is_chosen(settings, old) != _is_chosen(carried, new) for old, new in places.items()):
        chosen = [new for name in modules if _is_chosen(settings, name) and (new := renumbered(name, [path], new_of))]
        carried |= {"target_modules": chosen, "exclude_modules": None}
        carried |= {"layers_to_transform": None, "layers_pattern": None}
    for pattern in ("rank_pattern", "alpha_pattern"):
        values = settings.get(pattern) or {}
        if any(_value(values, old) != _value(values, new) for old, new in places.items()):
            carried[pattern] = {
                new: value
                for name in modules
                if (value := _value(values, name)) is not None and (new := renumbered(name, [path], new_of))
            }
    return carried


def _is_chosen(settings: Mapping[str, Any], module: str) -> bool:
    """Does peft put a LoRA on this module?"""
    from peft.tuners.tuners_utils import check_target_module_exists

    fields = ("target_modules", "exclude_modules", "modules_to_save", "target_parameters")
    numbers = ("layers_to_transform", "layers_pattern")
    return bool(
        check_target_module_exists(SimpleNamespace(**{name: settings.get(name) for name in fields + numbers}), module)
    )


def _value(pattern: Mapping[str, Any], module: str) -> Any:
    """What a `rank_pattern` or `alpha_pattern` says of a module; None if nothing."""
    from peft.utils.other import get_pattern_key

    return pattern.get(get_pattern_key(pattern.keys(), module))


def _renumber_suffixes(names: Collection[str], field: str, path: str, new_of: Mapping[int, int]) -> list[str]:
    """Module names, or the ends of such, under the new numbers; without those of dropped layers."""
    found = []
    for name in names:
        prefix, _ = layer_in(f"{name}.")
        if name[:1].isdigit():
            raise ModelError(
                f"the adapter's {field} names {quoted(name)}, whose number may be a layer's or not; give the name in full"
            )
        inside = path == prefix or path.endswith(f".{prefix}")
        new = renumbered(f"{name}.", [prefix], new_of) if inside else f"{name}."
        if new is not None:
            found.append(new.removesuffix("."))
    return found
