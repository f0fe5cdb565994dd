"""Cutting a checkpoint file to file: layers leave, the bytes of all others are copied, and no weight is ever loaded.

So a checkpoint may be larger than memory, and of any dtype: which tensor is whose is a matter of names and shapes (`layout`).
What a plan folds into kept layers is computed on the way, a megabyte at a time (`folding`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.decoder import layer_count
from secateur.errors import OutputError, RequestError
from secateur.plan import PruningPlan, write_json
from secateur.progress import Progress, Silent
from secateur.surgery.checkpoint import check_output, new_directory
from secateur.surgery.folding import folded
from secateur.surgery.layout import cut_layout, explained
from secateur.surgery.legacy import with_legacy_fields
from secateur.surgery.shards import Bytes, copy_file, file_size, reading, write_shard
from secateur.surgery.source import INDEX, WEIGHTS, read_config, read_weights

__all__ = ["CutReport", "check_apart", "companions", "cut_checkpoint"]

_GENERATION = "generation_config.json"

_NOT_COPIED = {
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".onnx_data", ".gguf", ".ggml", ".h5", ".msgpack", ".npz",
    ".npy", ".tflite", ".pkl", ".pickle", ".zip", ".tar", ".gz", ".lock",
}  # fmt: skip
"""Weights of the dense model in other forms, and what may hide them."""


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

    num_folded: int
    """Of these, those that layers which went are folded into."""

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

    The memory needed does not grow with the weights. Every kept tensor is bit for bit what it was, under its new number; or,
    where a plan folds layers into it, what folding the loaded model gives.

    Args:
        source: a local checkpoint directory, with safetensors in one file or many.
        target: the new directory; it is there whole at the end, or not at all.
        dropped: layers of the dense model, 0 the first; or a plan, which is kept in `secateur/plan.json`.
        overwrite: replace a checkpoint that is at `target`.
        max_shard_size: bytes of weights in one file; a number, or words such as `5GB`.
        dry_run: check everything and write nothing.
        trust_remote_code: run code that comes with the model, to see which weights it has.
        progress: told of each tensor copied.

    Raises:
        ModelError: if the checkpoint is damaged or incomplete.
        UnsupportedModelError: if its layers cannot be found in the files, the result could not be described or loaded, or the
            plan folds layers that differ or are quantised.
        PlanError: if a layer does not exist, none would be left, or the plan is of another depth, or merges by more than weights.
        OutputError: if `target` cannot be written to.
        RequestError: if `max_shard_size` is not a size.
        WriteError: if writing fails half-way. On any of these errors, nothing is left at `target`.
    """
    folder, out = Path(source).expanduser(), check_output(target, overwrite=overwrite)
    check_apart(folder, out)
    tensors, metadata = read_weights(folder)
    config = read_config(folder, len(tensors), trust_remote_code)
    num_layers = layer_count(config)
    gone = PruningPlan.of_layers(dropped, num_layers).dropped
    layout = cut_layout(folder, config, tensors, gone, trust_remote_code)
    kept: Mapping[str, Bytes] = layout.tensors
    computed: Collection[str] = ()
    if isinstance(dropped, PruningPlan):
        kept, computed = folded(layout, tensors, dropped)
    shards, index = _split(kept, max_shard_size)
    copied, left = companions(folder, {"config.json", WEIGHTS, INDEX, *(each.file.name for each in tensors.values())})
    texts = _texts(folder, layout.config, copied)
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
                write_json(directory / INDEX, index)
            if isinstance(dropped, PruningPlan):  # where `check` and `carry` find what was folded, and the numbers
                (directory / "secateur").mkdir()
                dropped.save(directory / "secateur" / "plan.json")
    num_bytes = index["metadata"]["total_size"]
    return CutReport(
        target=out,
        dropped=gone,
        num_layers=num_layers,
        num_tensors=len(kept),
        num_folded=len(computed),
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


def _texts(folder: Path, cut_config: Any, copied: Collection[str]) -> dict[str, str]:
    """The configuration as transformers writes it, and the generation settings if they are not in a file of their own."""
    from transformers import GenerationConfig

    with explained(f"cannot write down the configuration of {folder}", "see the reason and mend its config.json"):
        texts = {"config.json": with_legacy_fields(cut_config.to_json_string(use_diff=True), type(cut_config))}
        if _GENERATION not in copied:  # older checkpoints have them in config.json, from where reading removes them
            found = GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True)
            texts[_GENERATION] = found.to_json_string(use_diff=True)
    return texts


def _split(tensors: Mapping[str, Bytes], max_shard_size: int | str) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """The new files with the names of their tensors, and the index over them."""
    from huggingface_hub import split_state_dict_into_shards_factory

    words = isinstance(max_shard_size, str) and re.fullmatch(r"\s*[0-9]+(\.[0-9]+)?\s*[KMGT]B\s*", max_shard_size)
    if not words and not (isinstance(max_shard_size, int) and max_shard_size > 0):
        raise RequestError(f"cannot write files of at most {max_shard_size!r} bytes; give a size such as 5GB or 500MB")
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.num_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    return split.filename_to_tensors, {
        "metadata": split.metadata,
        "weight_map": dict(sorted(split.tensor_to_filename.items())),
    }


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
