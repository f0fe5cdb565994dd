"""Running a pair of checkpoints against each other, whole or with the layers left on the disk."""

from __future__ import annotations

import gc
import math
import tempfile
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from secateur.decoder import Decoder
from secateur.depth import layer_count
from secateur.errors import ModelError
from secateur.loading import Placement, load_model
from secateur.progress import Progress
from secateur.surgery.checkpoint import bypassed_logits, cache_gap, dense_cache_gap, tolerance

__all__ = ["Outcome", "on_disk", "read_whole_", "run_pair"]

_COMMON_IDS = 1000
"""Token ids below this are text in every vocabulary; above there may be ids that stand for images."""

_NEW_TOKENS, _NEW_TOKENS_FROM_DISK = 24, 3  # each reads every layer once

_WORTH_READING = 16
"""Tokens that a layer in memory computes with in the time in which its weights are read, roughly (float32, one core)."""

_PROBE_TOKENS = 8

_ROOM = 1.3
"""Memory that running a model takes, as a multiple of its weights."""

_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the two models did."""

    layer_by_layer: bool
    """Whether their layers stayed on the disk."""

    refused: str | None = None
    """Why the pruned model cannot be loaded, if it cannot; then the rest says nothing."""

    tokens: int = 0
    """Tokens on which the logits were compared."""

    difference: float = math.nan
    """Largest absolute difference between logits."""

    tolerance: float = 0.0
    """The difference up to which rounding explains it."""

    generated_tokens: int = 0
    """Tokens generated with the cache and without."""

    cache_gap: float = math.nan
    """How far below the best uncached logit a token chosen with the cache was."""

    dense_cache_gap: float = math.nan
    """The same of the dense model; looked at only where that of the pruned one is more than rounding."""


def run_pair(
    dense: Path,
    pruned: Path,
    dropped: Collection[int] | None,
    *,
    path: str,
    config: Any,
    model: nn.Module,
    num_bytes: int,
    layer_by_layer: bool | None,
    prompt_tokens: int,
    trust_remote_code: bool,
    progress: Progress,
) -> Outcome:
    """Hold the pruned model to the dense one with layers bypassed, one after the other in memory.

    Args:
        dense: the dense checkpoint.
        pruned: the other.
        dropped: layers of the dense model; None if the pruned one is to run alone.
        path: where the models keep their list of layers.
        config: of the pruned model.
        model: the dense model, on the meta device.
        num_bytes: of the dense model's weights.
        layer_by_layer: leave the layers on the disk; None does where they do not fit.
        prompt_tokens: token ids to read.
        trust_remote_code: run code that comes with the models.
        progress: told of what is run.

    Raises:
        ModelError: if the dense model cannot be loaded.
    """
    from_disk = num_bytes * _ROOM > _free_memory() if layer_by_layer is None else layer_by_layer
    common: dict[str, Any] = {"trust_remote_code": trust_remote_code, "dtype": _NAMES.get(config.dtype, "auto")}
    input_ids = _prompt((model.config, config), prompt_tokens)
    gone = frozenset(dropped or ())
    work = _work(layer_count(config), prompt_tokens, with_dense=dropped is not None, from_disk=from_disk)
    progress.note(_to_run(prompt_tokens, from_disk=from_disk))
    with tempfile.TemporaryDirectory(prefix="secateur-") as scratch:

        def compared(whole_layers: bool) -> Outcome:
            with progress.track("running the models", work) as advance:

                def opened(folder: Path) -> Decoder:
                    where = on_disk(model, path, Path(scratch, folder.name)) if from_disk else None
                    loaded = load_model(folder, **common, placement=where)
                    layers: Any = loaded.get_submodule(path)
                    if whole_layers:
                        read_whole_(layers)
                    for number, layer in enumerate(layers):
                        if folder != dense or number not in gone:
                            layer.register_forward_hook(partial(_count, advance, from_disk))
                    return Decoder(loaded)

                return _compared(dense, pruned, dropped, opened, input_ids, from_disk)

        if from_disk:
            with suppress(ModelError):
                outcome = compared(whole_layers=False)
                if outcome.refused is None:
                    return outcome
            gc.collect()
        return compared(whole_layers=from_disk)


def _to_run(prompt_tokens: int, *, from_disk: bool) -> str:
    """One line on what is to be run."""
    new_tokens = _new_tokens(from_disk)
    where = ", each layer read from the disk whenever it runs" if from_disk else ""
    return f"{prompt_tokens} tokens to run through the models, and {new_tokens} to generate{where}"


def _work(num_layers: int, prompt_tokens: int, *, with_dense: bool, from_disk: bool) -> int:
    """What `_count` will have counted in the end, of so many layers in the pruned model, and as many in the dense one."""
    new_tokens, prompt = _new_tokens(from_disk), _prompt_length(prompt_tokens)
    for_logits = [
        _PROBE_TOKENS,
        prompt_tokens,
    ]  # the tokens of each pass: `Decoder`'s own look at the model is the first
    with_cache = [prompt, *[1] * (new_tokens - 1)]
    passes = [*for_logits * (1 + with_dense), *with_cache, prompt + new_tokens]
    return num_layers * sum(_cost(tokens, from_disk) for tokens in passes)


def _new_tokens(from_disk: bool) -> int:
    """How many tokens are generated."""
    return _NEW_TOKENS_FROM_DISK if from_disk else _NEW_TOKENS


def _prompt_length(prompt_tokens: int) -> int:
    """How many of the tokens that are read are generated after."""
    return max(1, prompt_tokens // 2)


def _cost(tokens: int, from_disk: bool) -> int:
    """What running a layer takes: reading its weights, and in memory, where that is fast, computing with more tokens."""
    return 1 if from_disk else max(tokens, _WORTH_READING)


def _count(advance: Callable[[int], None], from_disk: bool, layer: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
    hidden = output[0] if isinstance(output, tuple) else output
    advance(_cost(hidden.shape[-2], from_disk))


def _compared(
    dense: Path,
    pruned: Path,
    dropped: Collection[int] | None,
    opened: Callable[[Path], Decoder],
    input_ids: Tensor,
    from_disk: bool,
) -> Outcome:
    """The same, with models as they are opened."""
    expected = None
    if dropped is not None:
        try:
            expected = bypassed_logits(opened(dense), dropped, input_ids)
        except ModelError as error:
            raise ModelError(f"{error}; --files-only compares the files alone") from error
        except Exception as error:  # of any type: it comes from the model's own code
            raise ModelError(
                f"{dense} does not run here ({_said(error)}); --files-only compares the files alone"
            ) from error
        gc.collect()  # the dense model, before the other comes
    try:
        decoder = opened(pruned)
    except ModelError as error:
        return Outcome(layer_by_layer=from_disk, refused=str(error))
    new_tokens, prompt = _new_tokens(from_disk), input_ids[:1, : _prompt_length(input_ids.shape[1])]
    try:
        found = bypassed_logits(decoder, (), input_ids)
        gap = cache_gap(decoder, prompt, new_tokens)
    except Exception as error:  # of any type: it comes from the model's own code
        return Outcome(layer_by_layer=from_disk, refused=f"it is read, and does not run ({_said(error)})")
    difference = math.inf
    if expected is not None and found.shape == expected.shape:
        difference = (found - expected).abs().max().item()
    allowed = tolerance(decoder.model.dtype, found if expected is None else expected)
    del decoder  # the pruned model, before the other comes again
    gc.collect()
    dense_gap = math.nan
    if not gap <= allowed:
        dense_gap = dense_cache_gap(lambda: opened(dense), prompt, new_tokens)
    return Outcome(
        layer_by_layer=from_disk,
        tokens=input_ids.numel(),
        difference=difference,
        tolerance=allowed,
        generated_tokens=new_tokens,
        cache_gap=gap,
        dense_cache_gap=dense_gap,
    )


def on_disk(model: nn.Module, path: str, scratch: Path) -> Placement:
    """How `load_model` leaves the layers on the disk: each is read when it is its turn, and let go after it.

    Args:
        model: the model, or one with more layers, on any device.
        path: its list of layers.
        scratch: for weights that are not stored as the model has them, such as experts one by one.
    """
    places: dict[str, str] = {}
    parent, before = model, ""
    for part in path.split("."):
        beside = [
            *parent.named_children(),
            *parent.named_parameters(recurse=False),
            *(
                each
                for each in parent.named_buffers(recurse=False)
                if each[0] not in parent._non_persistent_buffers_set
            ),
        ]
        places |= {f"{before}{name}": "cpu" for name, _ in beside if name != part}
        parent, before = parent.get_submodule(part), f"{before}{part}."
    return Placement(device_map=places | {path: "disk"}, offload_folder=scratch)


def read_whole_(layers: Any) -> None:
    """Have all weights of a layer read when it is its turn, not each when the module runs that it is in.

    Some families need that, as one of their modules reads the weights of another, which it does not call.
    """
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_submodules
    from accelerate.utils import PrefixedDataset

    for layer in layers:
        hooks = {where: getattr(module, "_hf_hook", None) for where, module in layer.named_modules()}
        where = next(each for each, hook in hooks.items() if getattr(hook, "offload", False))
        hook: Any = hooks[where]
        root = hook.weights_map.prefix.removesuffix(f"{where}.")
        whole = AlignDevicesHook(
            execution_device=hook.execution_device,
            offload=True,
            weights_map=PrefixedDataset(hook.weights_map.dataset, root),
            offload_buffers=hook.offload_buffers,
            place_submodules=True,
            skip_keys=hook.skip_keys,
            tied_params_map=hook.tied_params_map,
        )
        remove_hook_from_submodules(layer)
        add_hook_to_module(layer, whole)


def _prompt(configs: Collection[Any], tokens: int) -> Tensor:
    """Token ids (1, tokens) that every vocabulary has, the same every time."""
    texts = [config.get_text_config(decoder=True) for config in configs]
    most = min(_COMMON_IDS, *(int(getattr(text, "vocab_size", 0) or _COMMON_IDS) for text in texts))
    return torch.randint(min(3, most - 1), most, (1, tokens), generator=torch.Generator().manual_seed(0))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _free_memory() -> int:
    free = int(psutil.virtual_memory().available)
    return min(free, torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else free
