"""Cutting a checkpoint file to file: layers leave, the bytes of all others are copied, and no weight is ever loaded.

So a checkpoint may be larger than memory, and of any dtype: which tensor is whose is a matter of names and shapes (`layout`).
What a plan folds into kept layers is computed on the way, a megabyte at a time (`folding`). What needs torch is imported when it
is its turn: copying has begun by then (`early`).
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.depth import layer_count
from secateur.disk import format_size, free_space
from secateur.errors import OutputError, RequestError
from secateur.plan import PruningPlan
from secateur.progress import Progress, Silent, in_megabytes
from secateur.surgery.companions import companions
from secateur.surgery.early import EarlyShards
from secateur.surgery.names import layer_in, new_numbers, renumbered
from secateur.surgery.output import check_output, new_directory
from secateur.surgery.parts import parts_foreseen
from secateur.surgery.shards import Bytes, StoredTensor, copy_file, read_json
from secateur.surgery.source import INDEX, WEIGHTS, read_config, read_weights
from secateur.values import write_json

__all__ = ["CutReport", "ahead", "check_apart", "cut_checkpoint"]

_GENERATION = "generation_config.json"


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
    """What lies in the source and was not copied: other weights, its model card, folders with more than code (these end in
    `/`)."""


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
    about: Callable[[CutReport], Mapping[str, str]] | None = None,
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
        progress: told of the bytes copied.
        about: gives further files of text to write, name → text, such as a model card.

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
    # Before the new directory is there, which may lie in the source.
    beside = companions(folder, {"config.json", WEIGHTS, INDEX, *(each.file.name for each in tensors.values())})
    if dry_run:
        return _decide(folder, tensors, beside, dropped, max_shard_size, trust_remote_code).report(out)
    progress = progress or Silent()
    foreseen = _foreseen(tensors, dropped)
    needs = None if foreseen is None else sum(tensor.num_bytes for tensor in foreseen.values())
    with (
        new_directory(target, overwrite=overwrite, needs=needs) as directory,
        EarlyShards(directory, metadata) as writing,
    ):
        if foreseen is not None:
            progress.note(ahead(needs or 0, directory))
            writing.begin(_shards(foreseen, max_shard_size)[0])
        cut = _decide(folder, tensors, beside, dropped, max_shard_size, trust_remote_code)
        for name, text in cut.texts.items():
            (directory / name).write_text(text, encoding="utf-8")
        for name in cut.copied:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            copy_file(folder / name, directory / name)
        report = cut.report(out)
        for name, text in {} if about is None else about(report).items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(text, encoding="utf-8")
        if isinstance(dropped, PruningPlan):  # where `check` and `carry` find what was folded, and the numbers
            (directory / "secateur").mkdir(exist_ok=True)
            dropped.save(directory / "secateur" / "plan.json")
        if foreseen is None:
            progress.note(ahead(report.num_bytes, directory))
        with in_megabytes(progress, "copying the weights", report.num_bytes) as advance:
            writing.finish(cut.shards, advance)
        if len(cut.shards) > 1:
            write_json(directory / INDEX, cut.index)
    return report


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """What is to be written, verified."""

    dropped: tuple[int, ...]
    num_layers: int
    shards: Mapping[str, Mapping[str, Bytes]]  # the name of a file → its tensors
    index: dict[str, Any]
    computed: Collection[str]  # names of tensors
    dense_bytes: int
    texts: Mapping[str, str]  # the name of a file → what it says
    copied: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def num_tensors(self) -> int:
        return sum(map(len, self.shards.values()))

    def report(self, target: Path) -> CutReport:
        num_bytes = self.index["metadata"]["total_size"]
        return CutReport(
            target=target,
            dropped=self.dropped,
            num_layers=self.num_layers,
            num_tensors=self.num_tensors,
            num_folded=len(self.computed),
            num_bytes=num_bytes,
            removed_bytes=self.dense_bytes - num_bytes,
            weights=tuple(self.shards),
            copied=self.copied,
            left=self.left,
        )


def _decide(
    folder: Path,
    tensors: Mapping[str, StoredTensor],
    beside: tuple[tuple[str, ...], tuple[str, ...]],
    dropped: Collection[int] | PruningPlan,
    max_shard_size: int | str,
    trust_remote_code: bool,
) -> _Cut:
    """Everything that a cut writes, held to transformers' own loader."""
    from secateur.surgery.folding import folded
    from secateur.surgery.layout import check_told_by_files, cut_layout

    config = read_config(folder, len(tensors), trust_remote_code)
    check_told_by_files(folder, config)
    num_layers = layer_count(config)
    gone = PruningPlan.of_layers(dropped, num_layers).dropped
    layout = cut_layout(folder, config, tensors, gone, trust_remote_code)
    kept: Mapping[str, Bytes] = layout.tensors
    computed: Collection[str] = ()
    if isinstance(dropped, PruningPlan):
        kept, computed = folded(layout, tensors, dropped)
    shards, index = _shards(kept, max_shard_size)
    copied, left = beside
    settings = _quantizer_files(folder, copied, [layout.path, layout.prefix], new_numbers(num_layers, gone))
    copied = tuple(name for name in copied if name not in settings)
    return _Cut(
        dropped=gone,
        num_layers=num_layers,
        shards=shards,
        index=index,
        computed=computed,
        dense_bytes=sum(tensor.num_bytes for tensor in tensors.values()),
        texts=_texts(folder, layout.config, copied) | settings,
        copied=copied,
        left=left,
    )


def _foreseen(
    tensors: Mapping[str, StoredTensor], dropped: Collection[int] | PruningPlan
) -> Mapping[str, Bytes] | None:
    """What a cut keeps, as far as the names of the tensors say; None where they leave it open, or weights are computed."""
    found: dict[str, set[int]] = defaultdict(set)
    for name in tensors:
        prefix, layer = layer_in(name)
        if layer is not None:
            found[prefix].add(layer)
    stacks = {prefix: len(layers) for prefix, layers in found.items() if layers == set(range(len(layers)))}
    gone = set(dropped.dropped if isinstance(dropped, PruningPlan) else dropped)
    if isinstance(dropped, PruningPlan):
        stacks = {prefix: count for prefix, count in stacks.items() if count == dropped.num_layers}
    if len(stacks) != 1 or (isinstance(dropped, PruningPlan) and dropped.changes_weights):
        return None
    [(prefix, count)] = stacks.items()
    if not gone < set(range(count)):
        return None
    new_of = new_numbers(count, gone)
    moved = ((renumbered(name, [prefix], new_of), tensor) for name, tensor in tensors.items())
    return {
        name: tensor if layer_in(name)[0] == prefix else parts_foreseen(name, tensor, count, sorted(new_of))
        for name, tensor in moved
        if name is not None
    }


def ahead(num_bytes: int, place: Path) -> str:
    """One line on what is to be written, and the room that there is."""
    return f"{format_size(num_bytes)} of weights to write, where {format_size(free_space(place))} are free"


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

    from secateur.surgery.layout import explained
    from secateur.surgery.legacy import with_legacy_fields

    with explained(f"cannot write down the configuration of {folder}", "see the reason and mend its config.json"):
        texts = {"config.json": with_legacy_fields(cut_config.to_json_string(use_diff=True), type(cut_config))}
        if _GENERATION not in copied:  # older checkpoints have them in config.json, from where reading removes them
            found = GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True)
            texts[_GENERATION] = found.to_json_string(use_diff=True)
    return texts


def _quantizer_files(
    folder: Path, names: Collection[str], paths: Collection[str], new_of: Mapping[int, int]
) -> dict[str, str]:
    """What quantizers' own files say of the kept layers, such as GPTQ's quantize_config.json; nothing where none is named."""
    from secateur.surgery.quantization import is_of_quantizer, renumbered_settings

    texts = {}
    for name in names:
        if is_of_quantizer(name):
            settings, named = renumbered_settings(read_json(folder / name), f"{folder / name}'s rules", paths, new_of)
            if named:
                texts[name] = json.dumps(settings, indent=2) + "\n"
    return texts


def _shards(
    tensors: Mapping[str, Bytes], max_shard_size: int | str
) -> tuple[dict[str, dict[str, Bytes]], dict[str, Any]]:
    """The new files with their tensors, and the index over them."""
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
    return {name: {each: tensors[each] for each in names} for name, names in split.filename_to_tensors.items()}, {
        "metadata": split.metadata,
        "weight_map": dict(sorted(split.tensor_to_filename.items())),
    }
