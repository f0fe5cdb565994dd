"""Cutting a model that is in memory."""

from __future__ import annotations

import copy
import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.decoder import Decoder, evaluating, unwrapped
from secateur.depth import count_field
from secateur.errors import UnsupportedModelError
from secateur.loading import quiet_transformers
from secateur.plan import PruningPlan
from secateur.surgery.checkpoint import bypassed_logits, tolerance
from secateur.surgery.config import remove_layers_from_config_
from secateur.surgery.skeleton import changes_between, empty_model

__all__ = ["remove_layers_"]

logger = logging.getLogger(__name__)

_NEW_TOKENS = 3


def remove_layers_(model: nn.Module, dropped: Collection[int]) -> None:
    """Remove decoder layers in place: modules, layer numbers inside the kept ones, and the configuration.

    The result is run on eight tokens, and held to the model with those layers bypassed.

    Args:
        model: a `transformers` causal language model.
        dropped: layers of the model as it is now, 0 the first; order and repetition do not matter.

    Raises:
        UnsupportedModelError: if the layers cannot be found, the family's configuration cannot describe the result, or
            a kept layer needs what a dropped one computes beside the hidden states.
        PlanError: if a layer does not exist, or none would be left.

    On any of these errors the model is unchanged.
    """
    decoder = Decoder(model)
    gone = PruningPlan.of_layers(dropped, decoder.num_layers).dropped
    _refuse_companions(decoder)
    expected = _bypassed(decoder, gone)
    cached = _check_cache(decoder) is None
    with _undone_on_error() as undo:
        _cut_(decoder, gone, undo)
        _check_logits(decoder, gone, expected)
        if cached and (reason := _check_cache(decoder)) is not None:
            raise UnsupportedModelError(
                f"{type(unwrapped(model)).__name__} without layers {list(gone)} cannot use its cache, as it could before: "
                f"{reason}; drop other layers"
            )


Undo = list[Callable[[], None]]


@contextmanager
def _undone_on_error() -> Iterator[Undo]:
    """A list to put functions on that give something back; they are called, the last first, if the block fails."""
    undo: Undo = []
    try:
        yield undo
    except BaseException:
        for each in reversed(undo):
            each()
        raise


def _cut_(decoder: Decoder, gone: Sequence[int], undo: Undo) -> None:
    model = unwrapped(decoder.model)
    layers: Any = decoder.layers
    kept = sorted(set(range(len(layers))) - set(gone))
    path = next(name for name, module in model.named_modules() if module is layers)

    before = copy.deepcopy(model.config)
    for config in _configs(decoder):
        undo.append(_restorer(config))
        remove_layers_from_config_(config, gone)
    blueprint = empty_model(type(model), before, "its configuration")
    shorter = empty_model(type(model), model.config, "the configuration of the layers that are kept")
    changes = changes_between(blueprint, shorter, path, kept)

    new_of = {layer: new for new, layer in enumerate(kept)}
    for (layer, where, name), values in changes.in_layers.items():
        _set_(layers[layer], where, name, *values, undo)
    for layer, module, name in list(_other_numbers(layers, blueprint.get_submodule(path))):
        if layer in new_of:
            value = vars(module)[name]
            undo.append(partial(setattr, module, name, value))
            setattr(module, name, value - layer + new_of[layer])
    for (where, name), values in changes.outside.items():
        _set_(model, where, name, *values, undo)
    for name, dim in changes.packed.items():
        _keep_parts_(model, name, dim, len(layers), kept, undo)
    whole = list(layers)
    undo.append(partial(_refill_, layers, whole))
    _refill_(layers, [whole[layer] for layer in kept])


def _configs(decoder: Decoder) -> list[Any]:
    """The text configuration, and copies of it that modules made for themselves."""
    found = {id(config): config for module in decoder.model.modules() if (config := getattr(module, "config", None))}
    copies = [config for config in found.values() if config is not decoder.config and _describes(config, decoder)]
    return [decoder.config, *copies]


def _describes(config: Any, decoder: Decoder) -> bool:
    return type(config) is type(decoder.config) and getattr(config, count_field(config)) == decoder.num_layers


def _restorer(config: Any) -> Callable[[], None]:
    saved = copy.deepcopy(vars(config))

    def restore() -> None:
        vars(config).clear()
        vars(config).update(saved)

    return restore


def _set_(root: nn.Module, where: str, name: str, before: Any, after: Any, undo: Undo) -> None:
    """Set an attribute that has the value it was built with; a number that was moved since is moved by as much."""
    module = dict(root.named_modules(remove_duplicate=False)).get(where)
    if module is None or name not in vars(module):
        return
    now = vars(module)[name]
    if now == before:
        new = copy.deepcopy(after)
    elif all(type(value) is int for value in (now, before, after)):
        new = now + after - before
    else:
        return
    undo.append(partial(setattr, module, name, now))
    setattr(module, name, new)


def _other_numbers(layers: Any, built: Any) -> Iterator[tuple[int, nn.Module, str]]:
    """Where modules that were put into the layers after they were built hold a layer's number.

    That is an attribute which, at the same place in every layer, is the layer's index plus one constant.
    """
    places: dict[tuple[str, str], dict[int, tuple[nn.Module, int]]] = defaultdict(dict)
    for layer, block in enumerate(layers):
        known = {where: type(module) for where, module in built[layer].named_modules()}
        for where, module in block.named_modules():
            if known.get(where) is not type(module):
                for name, value in vars(module).items():
                    if type(value) is int:
                        places[where, name][layer] = (module, value)
    for (_, name), found in places.items():
        if len(found) == len(layers) > 2 and len({value - layer for layer, (_, value) in found.items()}) == 1:
            yield from ((layer, module, name) for layer, (module, _) in found.items())


def _keep_parts_(model: nn.Module, name: str, dim: int, count: int, kept: Sequence[int], undo: Undo) -> None:
    """Of a tensor that holds an equal part for each layer, keep those of the kept layers."""
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    old: Tensor = getattr(module, last)
    size = old.shape[dim] // count
    index = torch.tensor([layer * size + part for layer in kept for part in range(size)], device=old.device)
    new = old.detach().index_select(dim, index)
    undo.append(partial(setattr, module, last, old))
    # Another tensor, not another content: a copy of the model may share the old one.
    setattr(module, last, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _refill_(layers: Any, modules: Sequence[nn.Module]) -> None:
    del layers[:]
    layers.extend(modules)


def _refuse_companions(decoder: Decoder) -> None:
    """A second list beside the layers, as long as they are, holds a part for each: the cut would tear them apart."""
    parent = decoder.model.get_submodule(decoder.path.rpartition(".")[0])
    for name, module in parent.named_children():
        if module is not decoder.layers and isinstance(module, nn.ModuleList) and len(module) == decoder.num_layers:
            raise UnsupportedModelError(
                f"{type(decoder.model).__name__} keeps a second list '{name}' with one module a layer; "
                "cutting such models is not supported"
            )


# ---- held to the bypass -----------------------------------------------------------------------------------------------


def _bypassed(decoder: Decoder, gone: Sequence[int]) -> Tensor:
    try:
        return bypassed_logits(decoder, gone, decoder.probe_ids())
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(decoder.model).__name__} does not run without layers {list(gone)}: a kept layer needs what one of "
            f"them computes ({_words(error)}); drop other layers"
        ) from error


def _check_cache(decoder: Decoder) -> str | None:
    """Why generation with the cache does not compute what it does without; None if it does."""
    try:
        with evaluating(decoder.model), torch.no_grad(), quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cached, plain = (_generated_logits(decoder, use_cache=use_cache) for use_cache in (True, False))
    except Exception as error:
        return _words(error)
    for with_cache, without in zip(cached, plain, strict=True):
        gap = (with_cache - without).abs().max().item()
        if not gap <= tolerance(decoder.model.dtype, without):
            return f"logits differ by {gap:.3g}"
        if with_cache.argmax() != without.argmax():  # a tie that rounding broke: what follows is another text
            break
    return None


def _generated_logits(decoder: Decoder, *, use_cache: bool) -> list[Tensor]:
    """The logits of each greedily generated token, (vocabulary) each."""
    ids = decoder.probe_ids().to(decoder.device)
    result = decoder.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=_NEW_TOKENS,
        min_new_tokens=_NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        use_cache=use_cache,
        pad_token_id=0,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return [logits[0].float() for logits in result.logits]


def _words(error: Exception) -> str:
    logger.debug("running the model failed", exc_info=error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _check_logits(decoder: Decoder, gone: Sequence[int], expected: Tensor) -> None:
    """The cut model computes what the model with the layers bypassed did."""
    what = f"{type(decoder.model).__name__} without layers {list(gone)}"
    try:
        found = bypassed_logits(decoder, (), decoder.probe_ids())
    except Exception as error:
        raise UnsupportedModelError(f"{what} does not run ({_words(error)}); drop other layers") from error
    difference = (found - expected).abs().max().item()
    if not (
        difference <= tolerance(decoder.model.dtype, expected)
        or (torch.equal(found.isnan(), expected.isnan()) and expected.isnan().any())
    ):
        raise UnsupportedModelError(
            f"{what} computes other logits (by {difference:.3g}) than with these layers bypassed: its layers depend on "
            "their numbers, or on each other beside the hidden states; drop other layers"
        )
