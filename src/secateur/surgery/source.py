"""Reading what a checkpoint directory says of itself: its tensors by their headers, its configuration before anything is built.

Directories come from strangers. No name in one may lead out of it, no number may make transformers allocate for it, and no
code in one is run unasked.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from secateur.depth import count_field
from secateur.errors import ModelError
from secateur.surgery.shards import StoredTensor, quoted, read_header, read_json

__all__ = ["INDEX", "WEIGHTS", "check_is_checkpoint", "read_config", "read_weights"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_COUNT = re.compile(r"(?:^|_)(?:layers?|depth|blocks|stages|experts|labels|attention_types)$")
"""Configuration fields by which transformers builds that many objects."""

_PLAUSIBLE_COUNT = 1024
"""Objects that cost next to nothing, whatever the checkpoint."""

_SIZE = re.compile(r"(?:position_embeddings|n_positions|vocab_size(?:_base)?)$")
"""Fields by which it makes tables of that many rows, or looks for primes as large."""

_PLAUSIBLE_SIZE = 10**8
"""Of a table; ten times the longest context there is."""


def read_weights(folder: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
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


def check_is_checkpoint(folder: Path) -> None:
    """Make sure that there is a checkpoint at all, whatever state it is in.

    Raises:
        ModelError: if there is no directory, or nothing in it that is called as weights are.
    """
    if not folder.is_dir():
        what = "it is a file" if folder.is_file() else "no such directory"
        raise ModelError(f"cannot read {folder}: {what}; give a local checkpoint directory")
    if not any(os.path.lexists(folder / name) for name in (WEIGHTS, INDEX)):
        raise ModelError(f"{folder} holds neither {WEIGHTS} nor {INDEX}; give a checkpoint with safetensors weights")


def _weight_files(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The names of the files, and where the index places each tensor. One file goes before an index, as in transformers."""
    check_is_checkpoint(folder)
    if os.path.lexists(folder / "adapter_config.json"):
        raise ModelError(
            f"{folder} holds an adapter, which transformers would load with the model; move adapter_config.json away, "
            "and carry the adapter over by itself"
        )
    if os.path.lexists(folder / WEIGHTS):
        return [WEIGHTS], {}
    index = read_json(folder / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise ModelError(f"{folder / INDEX} is damaged: it has no weight_map; copy or download it again")
    for file in places.values():
        # A stranger chose the names: nothing outside the folder may be read.
        if not isinstance(file, str) or not re.fullmatch(r"[\w\-.]+\.safetensors", file):
            raise ModelError(
                f"{folder / INDEX} names the file {quoted(file)}, which is not a safetensors file beside it; "
                "copy or download the checkpoint again"
            )
    return sorted(set(places.values())), places


def read_config(folder: Path, num_tensors: int, trust_remote_code: bool) -> Any:
    """The configuration of a decoder-only causal language model."""
    from transformers import CONFIG_MAPPING, AutoConfig

    from secateur.loading import check_causal
    from secateur.surgery.layout import explained

    path = folder / "config.json"
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise ModelError(f"{path} is not a configuration; give a complete checkpoint")
    if raw.get("transformers_weights") is not None:
        raise ModelError(
            f"{path} sets transformers_weights={quoted(raw['transformers_weights'])}, another place for the weights, "
            f"which is not supported; name them {WEIGHTS} and remove the field"
        )
    if raw.get("auto_map") and str(raw.get("model_type")) not in CONFIG_MAPPING and not trust_remote_code:
        raise ModelError(f"{folder} needs code that comes with it; read that, and then allow it with trust_remote_code")
    # Before transformers builds as many objects as it says: no model has more layers than tensors.
    _check_counts(path, "", raw, max(num_tensors, _PLAUSIBLE_COUNT))
    with explained(f"cannot read {path}", "see the reason and mend it"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        check_causal(folder, config, trust_remote_code=trust_remote_code)
        text = config.get_text_config(decoder=True)
        count = getattr(text, count_field(text), None)
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
    elif isinstance(value, (int, float)) and value > _PLAUSIBLE_SIZE and _SIZE.search(name):
        raise ModelError(
            f"{path} sets {name}={quoted(value)}, more than any model has ({_PLAUSIBLE_SIZE} at most); mend it"
        )
