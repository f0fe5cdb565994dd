"""What the metadata of a GGUF file says of layers, for a model with fewer of them.

Arrays as long as the model has layers are found, not named. Named are the numbers that count layers from the front or
repeat. And named is what no file says: llama.cpp knows some architectures' layers by their number, or by how many there
are. So an architecture that was not looked up in its source (0.3.36 of llama-cpp-python carries it) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from secateur.errors import ModelError, UnsupportedModelError
from secateur.surgery.gguf_header import Entry, Header
from secateur.surgery.shards import quoted

__all__ = ["BLOCK", "count_layers", "cut_entries"]

BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,8})\.")
"""How the name of a block's tensor begins."""

_UNIFORM = {
    "apertus", "arcee", "arctic", "bailingmoe", "bailingmoe2", "bitnet", "bloom", "chameleon", "chatglm", "codeshell", "dbrx",
    "deci", "deepseek", "dots1", "ernie4_5", "ernie4_5-moe", "exaone", "falcon", "falcon-h1", "gemma", "glm4",
    "glm4moe", "gpt2", "gptneox", "granite", "granitehybrid", "granitemoe", "grok", "grovemoe", "hunyuan-dense",
    "hunyuan-moe", "internlm2", "jais", "jais2", "jamba", "kimi-linear", "lfm2", "lfm2moe", "llama", "maincoder",
    "mamba", "mamba2", "mimo2", "minimax-m2", "mistral3", "mpt", "nemotron", "nemotron_h", "nemotron_h_moe", "olmo",
    "olmoe", "openelm", "orion", "pangu-embedded", "phi2", "phi3", "phimoe", "plamo", "plamo2", "plm", "qwen",
    "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "refact", "seed_oss", "stablelm",
    "starcoder", "starcoder2", "step35", "xverse",
}  # fmt: skip
"""Architectures whose layers differ in nothing but what the file says."""

_PERIODS = {
    "afmoe": 4, "gemma2": 2, "llama4": 4, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "smallthinker": 4, "smollm3": 4,
}  # fmt: skip
"""Architectures in which llama.cpp treats every p-th layer in another way, whatever the file says."""

_SLIDING_PERIODS = {
    "cohere2": 4, "exaone-moe": 4, "exaone4": 4, "gemma3": 6, "gpt-oss": 2, "olmo2": 4, "plamo3": 8,
}  # fmt: skip
"""Those in which every p-th layer attends beyond the sliding window, unless the file lists which ones do."""

_DECIDED_BY_COUNT: dict[str, Callable[[int], Any]] = {
    "baichuan": lambda layers: layers,  # rotary positions or ALiBi, or neither
    "command-r": lambda layers: layers >= 64,  # norms of queries and keys
    "deepseek2": lambda layers: layers if layers in (26, 27, 47, 48) else 0,  # low-rank queries; gating
    "exaone4": lambda layers: layers == 64,  # a sliding window
    "gemma2": lambda layers: layers == 46,  # the scale of attention
    "gemma3": lambda layers: layers == 62,  # the same
    "minicpm": lambda layers: layers,  # the scale of residuals
    "minicpm3": lambda layers: layers,  # the same
    "smallthinker": lambda layers: layers == 4,  # rotary positions in all layers
}
"""Architectures of which llama.cpp computes something in another way if this changes with the number of layers."""

_KNOWN = _UNIFORM | set(_PERIODS) | set(_SLIDING_PERIODS) | set(_DECIDED_BY_COUNT)

_NOT_PER_LAYER = {"classifier.output_labels", "rope.dimension_sections"}
"""Arrays that never speak of layers, however long."""

_NOT_OF_THE_MODEL = ("general.", "tokenizer.", "split.", "quantize.", "imatrix.", "adapter.")
"""How the names of entries begin that never speak of layers."""

_THRESHOLDS = {"leading_dense_block_count"}
"""Numbers that say "the first k layers"."""

_FIRST = {"n_deepstack_layers"}
"""Numbers that give each of the first k layers a task of its own, so that these must stay."""

_NAMED_PERIODS = {"full_attention_interval", "interleave_moe_layer_step", "moe_every_n_layers"}
"""Numbers that say "every p-th layer"."""

_SPEAKS_OF_LAYERS = re.compile(r"(?<![a-z])(layers?|blocks?)(?![a-z])(?!_norm)")


def count_layers(path: Any, header: Header) -> tuple[int, int]:
    """The decoder layers of the model, and the blocks behind them that predict further tokens.

    Raises:
        ModelError: if the file does not hold a whole model, or its tensors are not those of as many blocks as it says.
        UnsupportedModelError: if its architecture's layers are not known.
    """
    kind, architecture = header.value("general.type", "model"), header.value("general.architecture")
    if kind != "model" or not isinstance(architecture, str):
        what = kind if isinstance(kind, str) and kind != "model" else "file without an architecture"
        raise ModelError(f"{path} holds no language model ({quoted(what)}); give the GGUF file of the model itself")
    if (parts := header.value("split.count", 0)) not in (0, 1):
        raise ModelError(
            f"{path} is one of {quoted(parts)} parts of a model; join them first: "
            "llama-gguf-split --merge FIRST-PART WHOLE.gguf"
        )
    if architecture not in _KNOWN:
        raise UnsupportedModelError(
            f"{path} is of the architecture {quoted(architecture)}, whose layers secateur does not know in GGUF files; "
            "cut the checkpoint it was made from, and convert that"
        )
    num_blocks, extra = (header.value(f"{architecture}.{name}", 0) for name in ("block_count", "nextn_predict_layers"))
    if not isinstance(num_blocks, int) or not isinstance(extra, int) or not 0 <= extra < num_blocks:
        raise ModelError(
            f"{path} says that its model has {quoted(num_blocks)} blocks, {quoted(extra)} of them beside its layers; "
            "copy or download it again"
        )
    _check_blocks(path, header, num_blocks)
    return num_blocks - extra, extra


def _check_blocks(path: Any, header: Header, num_blocks: int) -> None:
    """Every block has tensors, and no other stack has."""
    found = set()
    for tensor in header.tensors:
        if block := BLOCK.match(tensor.name):
            found.add(int(block[1]))
        elif re.search(r"(?:^|\.)\d+(?:\.|$)", tensor.name):
            raise UnsupportedModelError(
                f"{path} has the tensor {quoted(tensor.name)}, of a stack other than the decoder's; "
                "cut the checkpoint it was made from, and convert that"
            )
    if len(found) != num_blocks or max(found) != num_blocks - 1:
        missing = next((block for block in range(num_blocks) if block not in found), max(found, default=0))
        what = "no tensor" if missing not in found else "tensors"
        raise ModelError(
            f"{path} says that its model has {num_blocks} blocks, and holds {what} of block {missing}; "
            "copy or download it again"
        )


def cut_entries(header: Header, num_layers: int, kept: list[int], blocks: list[int]) -> tuple[Entry, ...]:
    """The metadata of the model that has only some of its layers; what does not speak of layers stays as it was.

    Args:
        header: of the dense model.
        num_layers: its decoder layers.
        kept: those that stay, ascending.
        blocks: the blocks that stay: these, and the ones behind the layers.

    Raises:
        UnsupportedModelError: if something is said of layers that is not true of the kept ones, and cannot be said of them.
    """
    architecture = header.value("general.architecture")
    _check_unsaid(header, architecture, num_layers, kept)
    num_blocks = header.value(f"{architecture}.block_count")
    per_layer = {num_layers: kept, num_blocks: blocks}

    def cut(entry: Entry) -> Entry:
        if entry.name.startswith(f"{architecture}."):
            return _cut_entry(entry, entry.name.removeprefix(f"{architecture}."), per_layer, kept, len(blocks))
        if entry.length in per_layer and not entry.name.startswith(_NOT_OF_THE_MODEL):
            return entry.with_items(per_layer[entry.length])  # such as xielu.alpha_p, which names no architecture
        return entry

    return tuple(map(cut, header.entries))


def _cut_entry(entry: Entry, name: str, per_layer: dict[int, list[int]], kept: list[int], num_blocks: int) -> Entry:
    if entry.length is not None:
        return _cut_array(entry, name, per_layer)
    value = entry.value
    if not isinstance(value, int) or isinstance(value, bool):
        return entry
    if name == "block_count":
        return entry.with_number(num_blocks)
    if name in _THRESHOLDS:
        return entry.with_number(sum(layer < value for layer in kept))
    if name in _NAMED_PERIODS or name == "attention.sliding_window_pattern":
        _check_period(f"{quoted(entry.name)} = {value}", value, kept)
    elif name in _FIRST:
        if kept[:value] != list(range(value)):
            raise UnsupportedModelError(
                f"{quoted(entry.name)} = {value}: the first {value} layers must stay; drop later ones"
            )
    elif value and name != "nextn_predict_layers" and _SPEAKS_OF_LAYERS.search(name):
        raise UnsupportedModelError(
            f"{quoted(entry.name)} = {value} speaks of layers in a way that a cut of a GGUF file cannot keep true; "
            "cut the checkpoint it was made from, and convert that"
        )
    return entry


def _cut_array(entry: Entry, name: str, per_layer: dict[int, list[int]]) -> Entry:
    if name in _NOT_PER_LAYER or not entry.length:
        return entry
    if entry.length not in per_layer:
        raise UnsupportedModelError(
            f"{quoted(entry.name)} has {entry.length} items, one for each of what is not said; "
            "cut the checkpoint it was made from, and convert that"
        )
    return entry.with_items(per_layer[entry.length])


def _check_unsaid(header: Header, architecture: str, num_layers: int, kept: list[int]) -> None:
    """What llama.cpp does with a layer because of its number, or because of how many there are, must stay the same."""
    decided = _DECIDED_BY_COUNT.get(architecture)
    if decided is not None and decided(num_layers) != decided(len(kept)):
        raise UnsupportedModelError(
            f"llama.cpp tells by the number of layers how a model of the architecture {architecture} is computed, and "
            f"would take one of {len(kept)} for another than one of {num_layers}; nothing in the file can say so"
        )
    listed = isinstance(header.value(f"{architecture}.attention.sliding_window_pattern"), tuple)
    period = _PERIODS.get(architecture, 1)
    if header.value(f"{architecture}.attention.sliding_window") and not listed:
        period = _SLIDING_PERIODS.get(architecture, period)
    _check_period(f"llama.cpp treats one layer in {period} of {architecture} in another way", period, kept)


def _check_period(what: str, period: int, kept: list[int]) -> None:
    if period > 1 and any(new % period != layer % period for new, layer in enumerate(kept)):
        raise UnsupportedModelError(
            f"{what}, and the kept layers no longer repeat like that; drop whole periods of {period} consecutive layers"
        )
