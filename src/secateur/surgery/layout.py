"""Which tensors of a checkpoint belong to which layer: found by their names, verified without memory for weights.

transformers itself loads tensors that have a shape and no data: those of the checkpoint into its model, and those that are
kept, renumbered, into a model of the cut configuration. The second must fit exactly as well as the first did. So names that
transformers rewrites while loading (a prefix too few, experts one by one) are understood as it understands them.
"""

from __future__ import annotations

import copy
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.decoder import Decoder
from secateur.depth import layer_count
from secateur.errors import ModelError, SecateurError, UnsupportedModelError
from secateur.loading import quiet_transformers
from secateur.surgery.config import remove_layers_from_config_
from secateur.surgery.names import layer_in, new_numbers, renumbered
from secateur.surgery.parts import parts_kept
from secateur.surgery.quantization import is_of_quantizer, renumbered_settings
from secateur.surgery.shards import Bytes, StoredTensor, quoted
from secateur.surgery.skeleton import SHARING, Changes, changes_between

__all__ = [
    "CutLayout",
    "check_told_by_files",
    "cut_layout",
    "explained",
    "layer_paths",
]

logger = logging.getLogger(__name__)

_REMEDY = "see the reason and mend the checkpoint"

_NOT_TOLD_BY_FILES = frozenset({"beam", "hy_v4", "minimax", "reformer", "zaya"})
"""Model types whose layers, or their caches, need more of each other than the hidden states, so that a cut whose tensors all
fit can compute something else. Found by cutting every family both ways (`tests/families`)."""


# ---- find, then verify ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CutLayout:
    """What a checkpoint is after a cut."""

    config: Any
    """Its configuration."""

    tensors: dict[str, Bytes]
    """The tensors that stay, under their new names; where their bytes are now."""

    prefix: str
    """What stands before the number of a layer in the names of the files: `model.layers`."""

    path: str
    """The list of layers in the model."""

    model: Any
    """The dense model, on the meta device."""

    unread: frozenset[str]
    """Of the tensors, those that the model has no place for."""


def cut_layout(
    folder: Path, config: Any, tensors: Mapping[str, StoredTensor], dropped: Collection[int], trust_remote_code: bool
) -> CutLayout:
    """What a checkpoint is after a cut: configuration and tensors, verified to fit each other.

    Args:
        folder: the checkpoint, for the messages.
        config: its configuration, which stays as it is.
        tensors: all its tensors.
        dropped: layers of the dense model, each once.
        trust_remote_code: run code that comes with the model.

    Raises:
        ModelError: if weights are missing, or the model cannot be built.
        UnsupportedModelError: if the layers are not found in the files, or what is left does not fit.
    """
    cut_config = copy.deepcopy(config)
    text = cut_config.get_text_config(decoder=True)
    num_layers = layer_count(config)
    prefixes = layer_paths(folder, tensors, num_layers)
    with explained(f"cannot cut the configuration of {folder}", _REMEDY):
        remove_layers_from_config_(text, sorted(dropped))

    quantized = getattr(config, "quantization_config", None) is not None
    load = _loader(folder, config, trust_remote_code)
    dense = load(config, tensors)
    Decoder(dense.model, verify=False)  # refuses what has no stack of layers, and says why
    if not quantized:
        dense.check_complete(folder)
    new_of = new_numbers(num_layers, dropped)
    reasons = []
    for prefix in prefixes:
        moved = ((renumbered(name, [prefix], new_of), tensor) for name, tensor in tensors.items())
        kept: dict[str, Bytes] = {name: tensor for name, tensor in moved if name is not None}
        cut = load(cut_config, kept, "drop other layers")
        path = _list_that_shrank(dense.model, cut.model, num_layers, len(new_of))
        wanted = dense.renumbered([path, prefix], new_of)
        if (cut.missing, cut.unexpected) == (wanted.missing, wanted.unexpected):
            changes = changes_between(
                dense.model, cut.model, path, sorted(new_of)
            )  # refuses what is built from its number
            _check_sharing(folder, changes)
            if changes.packed:
                kept |= parts_kept(kept, changes.packed, num_layers, sorted(new_of))
                cut = load(cut_config, kept, "drop other layers")
        if (reason := cut.differs_from(wanted)) is None:
            if quantized:
                settings, named = renumbered_settings(
                    cut_config.quantization_config, f"the quantization settings of {folder}", [path, prefix], new_of
                )
                cut_config.quantization_config = settings
                if not named:
                    _check_alike(folder, dense.model.get_submodule(path), tensors, prefix)
            return CutLayout(
                config=cut_config, tensors=kept, prefix=prefix, path=path, model=dense.model,
                unread=cut.unexpected | _known_as_unread(cut.model, kept),
            )  # fmt: skip
        reasons.append(f"without those under '{prefix}', {reason}")
    # Such as Inkling's `attn_res.attn_queries.0`, which is layer 1's.
    beside = [name for name in tensors if layer_in(name)[1] is None and layer_in(f"{name}.")[1] is not None]
    if beside:
        reasons.insert(
            0, f"{quoted(min(beside))} is numbered outside the layers, and nothing says of which layer it is"
        )
    raise UnsupportedModelError(
        f"the tensors of {folder} cannot be cut to {len(new_of)} layers: {reasons[0]}; prune the loaded model instead"
    )


def _check_sharing(folder: Path, changes: Changes) -> None:
    """No layer begins to compute for others what one that goes did: what they would read then is something else."""
    for (layer, _, name), (before, after) in changes.in_layers.items():
        if name in SHARING and after and not before:
            raise UnsupportedModelError(
                f"layer {layer} of {folder} would hand its keys and values to later layers, in place of one that goes; "
                "drop other layers"
            )


def check_told_by_files(folder: Path, config: Any) -> None:
    """Make sure that the files of a model tell whether a cut is right.

    Raises:
        UnsupportedModelError: if only running the model does.
    """
    if getattr(config, "model_type", None) in _NOT_TOLD_BY_FILES:
        raise UnsupportedModelError(
            f"{folder} is a '{config.model_type}' model, whose layers need more of each other than the hidden states: whether a "
            "cut is right shows only when the model runs; secateur prune --layers cuts the loaded model, and refuses what "
            "would be wrong"
        )


def layer_paths(folder: Path, names: Collection[str], num_layers: int) -> list[str]:
    """Where the files may keep the layers: what stands before their number, in names such as `model.layers.3.`."""
    found: dict[str, set[int]] = defaultdict(set)
    for name in names:
        prefix, layer = layer_in(name)
        if layer is not None:
            found[prefix].add(layer)
    if not found:
        raise UnsupportedModelError(
            f"{folder} has no tensors whose names number layers, as 'model.layers.3.' does; give a checkpoint of transformers"
        )
    complete = [prefix for prefix, layers in found.items() if layers == set(range(num_layers))]
    if not complete:
        prefix, layers = max(found.items(), key=lambda item: len(item[1]))
        beyond, lacking = max(layers), min(set(range(num_layers)) - layers, default=None)
        what = (
            f"has tensors of layer {beyond} under {quoted(prefix)}, and its configuration has {num_layers} layers"
            if lacking is None or beyond >= num_layers
            else f"has no tensors of layer {lacking} under {quoted(prefix)}, and its configuration has {num_layers} layers"
        )
        raise UnsupportedModelError(f"{folder} {what}; only a checkpoint in which the two agree can be cut")
    for name in names:
        for prefix in complete:
            if name.startswith(f"{prefix}.") and layer_in(name)[0] != prefix:
                raise UnsupportedModelError(
                    f"{folder} has the tensor {quoted(name)} among the layers under '{prefix}', and it is of none; "
                    "such a checkpoint cannot be cut"
                )
    return complete


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """How tensors fit a model, as transformers' loader sees it."""

    model: Any
    """The model, on the meta device."""

    missing: frozenset[str]
    """Weights of the model that no tensor became."""

    unexpected: frozenset[str]
    """Tensors that the model has no place for."""

    unfit: frozenset[tuple[str, tuple[int, ...], tuple[int, ...]]]
    """Weights whose tensor has another shape: name, stored, needed."""

    def check_complete(self, folder: Path) -> None:
        """Each weight of the model is there, in its shape."""
        if self.missing:
            if of_quantizer := sorted(each.name for each in folder.iterdir() if is_of_quantizer(each.name)):
                raise ModelError(
                    f"{folder} lacks {quoted(min(self.missing))}, as its config.json does not say that it is quantised, and "
                    f"transformers does not read {of_quantizer[0]}; put what that says into config.json, as quantization_config"
                )
            raise ModelError(
                f"{folder} lacks {len(self.missing)} of the model's weights, {quoted(min(self.missing))} first; "
                "give a complete checkpoint"
            )
        if self.unfit:
            name, stored, needed = min(self.unfit)
            raise ModelError(
                f"{folder} holds {quoted(name)} in the shape {list(stored)}, and its configuration needs {list(needed)}; "
                "give a complete checkpoint"
            )

    def renumbered(self, paths: Collection[str], new_of: Mapping[int, int]) -> _Fit:
        """How the tensors that are kept must fit the cut model."""

        def new(names: Collection[str]) -> frozenset[str]:
            return frozenset(each for name in names if (each := renumbered(name, paths, new_of)) is not None)

        return _Fit(
            model=self.model,
            missing=new(self.missing),
            unexpected=new(self.unexpected),
            unfit=frozenset(
                (each, stored, needed)
                for name, stored, needed in self.unfit
                if (each := renumbered(name, paths, new_of)) is not None
            ),
        )

    def differs_from(self, wanted: _Fit) -> str | None:
        """The first difference, in words."""
        if different := self.missing ^ wanted.missing:
            return f"the shorter model lacks {quoted(min(different))}"
        if different := self.unexpected ^ wanted.unexpected:
            return f"the shorter model has no place for {quoted(min(different))}"
        if unfit := self.unfit ^ wanted.unfit:
            name, stored, needed = min(unfit)
            return f"{quoted(name)} has the shape {list(stored)}, and the shorter model needs {list(needed)}"
        return None


def _loader(folder: Path, config: Any, trust_remote_code: bool) -> Callable[..., _Fit]:
    """A function that lets transformers load tensors of a shape and no data into the model of a configuration."""
    from transformers import AutoModelForCausalLM

    # What the configuration prefers may not run here; the names and shapes are the same.
    common = {"dtype": torch.float32, "attn_implementation": "eager"}

    def plain(config: Any) -> Any:
        """Without a quantizer, which may need a GPU and would look at values."""
        copied = copy.deepcopy(config)
        for each in (copied, copied.get_text_config(decoder=True)):
            vars(each).pop("quantization_config", None)
        return copied

    with explained(f"cannot build the model of {folder}", _REMEDY), torch.device("meta"):
        built = AutoModelForCausalLM.from_config(plain(config), trust_remote_code=trust_remote_code, **common)

    def load(config: Any, tensors: Mapping[str, Bytes], remedy: str = _REMEDY) -> _Fit:
        with explained(f"cannot lay out the tensors of {folder}", remedy), torch.device("meta"):
            model, report = type(built).from_pretrained(
                None,
                config=plain(config),
                state_dict={name: _without_data(tensor.shape) for name, tensor in tensors.items()},
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **common,
            )
        return _Fit(
            model=model,
            missing=frozenset(report["missing_keys"]),
            unexpected=frozenset(report["unexpected_keys"]),
            unfit=frozenset((name, tuple(stored), tuple(needed)) for name, stored, needed in report["mismatched_keys"]),
        )

    return load


class _NoData(torch.Tensor):
    """A tensor on the meta device that stays there.

    transformers puts together on the CPU what is too large for any other device, and a tensor without data cannot go there.
    """

    def to(self, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> torch.Tensor:
        """The same shape without data, wherever it is asked for."""
        return torch.empty(self.shape, dtype=dtype or self.dtype, device="meta")


def _without_data(shape: Sequence[int]) -> torch.Tensor:
    return torch.empty(shape, device="meta").as_subclass(_NoData)


def _known_as_unread(model: Any, names: Collection[str]) -> frozenset[str]:
    """Tensors of older checkpoints that a family knows it has no place for, and does not report."""
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq"]
    return frozenset(name for name in names if any(re.search(pattern, name) for pattern in patterns))


def _list_that_shrank(dense: nn.Module, cut: nn.Module, before: int, after: int) -> str:
    """The model's list of layers: the one that the cut configuration makes shorter."""
    lengths = {name: len(module) for name, module in cut.named_modules() if isinstance(module, nn.ModuleList)}
    paths: list[str] = [
        name
        for name, module in dense.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == before and lengths.get(name) == after
    ]
    if len(paths) != 1:
        raise UnsupportedModelError(
            f"{type(dense).__name__} keeps {len(paths)} lists with one module a layer ({', '.join(paths) or 'none'}); "
            "cutting such models is not supported"
        )
    return paths[0]


@contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever transformers or peft raises, of any type, into one line; they are quiet and draw nothing at random."""
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            yield
    except SecateurError:
        raise
    except Exception as error:
        logger.debug("%s", what, exc_info=True)
        reason = " ".join(str(error).split())
        raise ModelError(f"{what}; {remedy} (reason: {reason[:300]})") from error


# ---- quantized checkpoints: what a quantizer stores cannot be held to the model's own names ---------------------------


def _check_alike(folder: Path, layers: Any, names: Collection[str], prefix: str) -> None:
    """Layers of the same kind have tensors of the same names."""
    stored: dict[int, set[str]] = defaultdict(set)
    for name in names:
        found, layer = layer_in(name)
        if layer is not None and found == prefix:
            stored[layer].add(name.removeprefix(f"{prefix}.{layer}."))
    first_of: dict[frozenset[str], int] = {}
    for layer, module in enumerate(layers):
        first = first_of.setdefault(frozenset(module.state_dict()), layer)
        if different := stored[layer] ^ stored[first]:
            raise ModelError(
                f"{folder} holds {quoted(min(different))} in only one of the layers {first} and {layer}, which are of the "
                "same kind; give a complete checkpoint"
            )
