"""Cutting a checkpoint file to file: layers leave, the bytes of all others are copied, and no weight is ever loaded.

So a checkpoint may be larger than memory, and of any dtype: which tensor is whose is a matter of names and shapes (`layout`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.errors import ModelError, OutputError, PlanError, RequestError, UnsupportedModelError
from secateur.plan import PruningPlan, count_to_drop, write_json
from secateur.progress import Progress, Silent
from secateur.surgery.checkpoint import check_output, new_directory
from secateur.surgery.layout import cut_layout, explained
from secateur.surgery.shards import (
    StoredTensor,
    copy_file,
    file_size,
    quoted,
    read_header,
    read_json,
    reading,
    write_shard,
)

__all__ = ["CutReport", "check_apart", "companions", "cut_checkpoint"]

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_GENERATION = "generation_config.json"

_NOT_COPIED = {
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".onnx_data", ".gguf", ".ggml", ".h5", ".msgpack", ".npz",
    ".npy", ".tflite", ".pkl", ".pickle", ".zip", ".tar", ".gz", ".lock",
}  # fmt: skip
"""Weights of the dense model in other forms, and what may hide them."""

_COUNT = re.compile(r"(?:^|_)(?:layers?|depth|blocks|stages|experts|labels|attention_types)$")
"""Configuration fields by which transformers builds that many objects."""

_PLAUSIBLE_COUNT = 1024
"""Objects that cost next to nothing, whatever the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class CutReport:
    """What a cut from file to file did, or would do."""

    target: Path
    """The new checkpoint."""

    dropped: tuple[int, ...]
    """Layers of the dense model that went, ascending."""

    num_layers: int
    """Layers of the dense model."""

    num_tensors: int
    """Tensors kept."""

    num_bytes: int
    """Bytes of the weights kept."""

    removed_bytes: int
    """Bytes of the weights that went."""

    weights: tuple[str, ...]
    """The new safetensors files."""

    copied: tuple[str, ...]
    """Files copied as they were: tokenizer, chat template, generation settings, code."""

    left: tuple[str, ...]
    """What lies in the source and was not copied: other weights, its model card, folders (these end in `/`)."""


def cut_checkpoint(
    source: str | Path,
    target: str | Path,
    dropped: Collection[int] | PruningPlan,
    *,
    overwrite: bool = False,
    max_shard_size: int | str = "5GB",
    dry_run: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> CutReport:
    """Write the safetensors checkpoint `source` without some decoder layers to `target`.

    The memory needed does not grow with the weights. Every kept tensor is bit for bit what it was, under its new number.

    Args:
        source: a local checkpoint directory, with safetensors in one file or many.
        target: the new directory; it is there whole at the end, or not at all.
        dropped: layers of the dense model, 0 the first; or a plan.
        overwrite: replace a checkpoint that is at `target`.
        max_shard_size: bytes of weights in one file; a number, or words such as `5GB`.
        dry_run: check everything and write nothing.
        trust_remote_code: run code that comes with the model, to see which weights it has.
        progress: told of each tensor copied.

    Raises:
        ModelError: if the checkpoint is damaged or incomplete.
        UnsupportedModelError: if its layers cannot be found in the files, or the result could not be described or loaded.
        PlanError: if a layer does not exist, none would be left, or the plan is of another depth or merges layers.
        OutputError: if `target` cannot be written to.
        RequestError: if `max_shard_size` is not a size.
        WriteError: if writing fails half-way. On any of these errors, nothing is left at `target`.
    """
    folder, out = Path(source).expanduser(), check_output(target, overwrite=overwrite)
    check_apart(folder, out)
    tensors, metadata = _read_weights(folder)
    config = _read_config(folder, len(tensors), trust_remote_code)
    num_layers = config.get_text_config(decoder=True).num_hidden_layers
    gone = _layers_to_drop(dropped, num_layers)
    cut_config, kept = cut_layout(folder, config, tensors, gone, trust_remote_code)
    shards, index = _split(kept, max_shard_size)
    copied, left = companions(folder, {"config.json", _WEIGHTS, _INDEX, *(each.file.name for each in tensors.values())})
    texts = _texts(folder, cut_config, copied)
    if not dry_run:
        with new_directory(target, overwrite=overwrite) as directory:
            for name, text in texts.items():
                (directory / name).write_text(text, encoding="utf-8")
            for name in copied:
                copy_file(folder / name, directory / name)
            with (progress or Silent()).track("copying tensors", len(kept)) as advance:
                for name, names in shards.items():
                    write_shard(directory / name, {each: kept[each] for each in names}, metadata, advance)
            if len(shards) > 1:
                write_json(directory / _INDEX, index)
    num_bytes = index["metadata"]["total_size"]
    return CutReport(
        target=out,
        dropped=tuple(gone),
        num_layers=num_layers,
        num_tensors=len(kept),
        num_bytes=num_bytes,
        removed_bytes=sum(tensor.num_bytes for tensor in tensors.values()) - num_bytes,
        weights=tuple(shards),
        copied=copied,
        left=left,
    )


def check_apart(folder: Path, out: Path) -> None:
    """Refuse to replace the source, or a directory that holds it.

    Raises:
        OutputError: if `out` is one.
    """
    source, target = os.path.realpath(folder), os.path.realpath(out)
    if source == target or source.startswith(target + os.sep):
        raise OutputError(f"writing to {out} would replace {folder} itself; choose another --out")


def _layers_to_drop(dropped: Collection[int] | PruningPlan, num_layers: int) -> list[int]:
    if isinstance(dropped, PruningPlan):
        if dropped.num_layers != num_layers:
            raise PlanError(
                f"the plan is for a model of {dropped.num_layers} layers, and this one has {num_layers}; "
                "give the model it was made on"
            )
        if dropped.merges:
            raise PlanError(
                f"the plan merges layer {min(dropped.merges)} into another, which a cut from file to file cannot: "
                "it computes nothing; prune the loaded model instead"
            )
        return list(dropped.dropped)
    gone = sorted(set(dropped))
    count_to_drop(len(gone), num_layers)
    if gone[0] < 0 or gone[-1] >= num_layers:
        wrong = gone[0] if gone[0] < 0 else gone[-1]
        raise PlanError(f"the model has no layer {wrong}; its layers are 0..{num_layers - 1}")
    return gone


def _texts(folder: Path, cut_config: Any, copied: Collection[str]) -> dict[str, str]:
    """The configuration as transformers writes it, and the generation settings if they are not in a file of their own."""
    from transformers import GenerationConfig

    with explained(f"cannot write down the configuration of {folder}", "see the reason and mend its config.json"):
        texts = {"config.json": cut_config.to_json_string(use_diff=True)}
        if _GENERATION not in copied:  # older checkpoints have them in config.json, from where reading removes them
            found = GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True)
            texts[_GENERATION] = found.to_json_string(use_diff=True)
    return texts


def _split(tensors: dict[str, StoredTensor], max_shard_size: int | str) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """The new files with the names of their tensors, and the index over them."""
    from huggingface_hub import split_state_dict_into_shards_factory

    words = isinstance(max_shard_size, str) and re.fullmatch(r"\s*[0-9]+(\.[0-9]+)?\s*[KMGT]B\s*", max_shard_size)
    if not words and not (isinstance(max_shard_size, int) and max_shard_size > 0):
        raise RequestError(f"cannot write files of at most {max_shard_size!r} bytes; give a size such as 5GB or 500MB")
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.num_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    return split.filename_to_tensors, {
        "metadata": split.metadata,
        "weight_map": dict(sorted(split.tensor_to_filename.items())),
    }


# ---- reading the source -----------------------------------------------------------------------------------------------


def _read_weights(folder: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """All tensors in the order of the files' bytes, and the files' metadata together."""
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    files, places = _weight_files(folder)
    for file in files:
        found, words = read_header(folder / file)
        for name in found:
            if name in tensors:
                raise ModelError(
                    f"{folder} holds the tensor {quoted(name)} twice, in {tensors[name].file.name} and {file}; "
                    "copy or download it again"
                )
        tensors |= found
        metadata |= words
    for name, file in places.items():
        if name not in tensors or tensors[name].file.name != file:
            raise ModelError(
                f"{folder} lacks the tensor {quoted(name)} in {file}, where its index places it; "
                "copy or download it again"
            )
    return tensors, metadata


def _weight_files(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The names of the files, and where the index places each tensor. One file goes before an index, as in transformers."""
    if not folder.is_dir():
        raise ModelError(f"cannot read {folder}: no such directory; give a local checkpoint directory")
    if os.path.lexists(folder / "adapter_config.json"):
        raise ModelError(
            f"{folder} holds an adapter, which transformers would load with the model; move adapter_config.json away, "
            "and carry the adapter over by itself"
        )
    if os.path.lexists(folder / _WEIGHTS):
        return [_WEIGHTS], {}
    if not os.path.lexists(folder / _INDEX):
        raise ModelError(f"{folder} holds neither {_WEIGHTS} nor {_INDEX}; give a checkpoint with safetensors weights")
    index = read_json(folder / _INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise ModelError(f"{folder / _INDEX} is damaged: it has no weight_map; copy or download it again")
    for file in places.values():
        # A stranger chose the names: nothing outside the folder may be read.
        if not isinstance(file, str) or not re.fullmatch(r"[\w\-.]+\.safetensors", file):
            raise ModelError(
                f"{folder / _INDEX} names the file {quoted(file)}, which is not a safetensors file beside it; "
                "copy or download the checkpoint again"
            )
    return sorted(set(places.values())), places


def _read_config(folder: Path, num_tensors: int, trust_remote_code: bool) -> Any:
    """The configuration of a decoder-only causal language model."""
    from transformers import CONFIG_MAPPING, AutoConfig

    path = folder / "config.json"
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise ModelError(f"{path} is not a configuration; give a complete checkpoint")
    if raw.get("transformers_weights") is not None:
        raise ModelError(
            f"{path} sets transformers_weights={quoted(raw['transformers_weights'])}, another place for the weights, "
            f"which is not supported; name them {_WEIGHTS} and remove the field"
        )
    if raw.get("auto_map") and raw.get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
        raise ModelError(f"{folder} needs code that comes with it; read that, and then allow it with trust_remote_code")
    # Before transformers builds as many objects as it says: no model has more layers than tensors.
    _check_counts(path, "", raw, max(num_tensors, _PLAUSIBLE_COUNT))
    with explained(f"cannot read {path}", "see the reason and mend it"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        masked = any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in config.architectures or ())
        if masked or config.is_encoder_decoder:
            raise UnsupportedModelError(
                f"{folder} is a '{config.model_type}' model, not a causal language model; choose one that generates text"
            )
        count = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    if type(count) is not int or count < 1:
        raise ModelError(f"{path} says that the model has {quoted(count)} layers, which is no count; mend it")
    return config


def _check_counts(path: Path, name: str, value: Any, most: int) -> None:
    if isinstance(value, dict):
        for each in value:
            _check_counts(path, each, value[each], most)
    elif isinstance(value, list):
        for each in value:
            _check_counts(path, name, each, most)
    elif isinstance(value, (int, float)) and value > most and _COUNT.search(name):
        raise ModelError(
            f"{path} sets {name}={quoted(value)}, more than this checkpoint can hold ({most} at most); mend it"
        )


def companions(folder: Path, rewritten: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What lies beside the weights: the files to copy as they are, and what to leave.

    Args:
        folder: the source directory.
        rewritten: names that are written anew, and count as neither.

    Raises:
        ModelError: if a file to copy is none, such as a link in a circle.
    """
    copied, left = [], []
    with reading(folder):
        beside = sorted(path for path in folder.iterdir() if path.name not in rewritten)
    for path in beside:
        name = path.name
        if path.is_dir():
            left.append(f"{name}/")
        elif (
            path.suffix in _NOT_COPIED
            or name.startswith((".", "README", "trainer_state"))
            or name.endswith(".index.json")
        ):
            left.append(name)
        else:
            file_size(path)
            copied.append(name)
    return tuple(copied), tuple(left)
