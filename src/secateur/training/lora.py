"""LoRA on every linear sub-layer of the decoder layers, and nowhere else."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.decoder import Decoder, evaluating
from secateur.errors import RequestError
from secateur.surgery.names import renumbered

__all__ = [
    "adapters_of",
    "adapters_of_kept",
    "attach_lora",
    "gradient_checkpointing_quietly",
    "linear_weights",
    "lora_config",
    "take_over_",
]


def linear_weights(layer: nn.Module) -> list[str]:
    """The names of a layer's linear weights: of linear maps, fused or not, and of experts stacked in one parameter."""
    from transformers.pytorch_utils import Conv1D

    names = []
    for path, part in layer.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            linear = isinstance(part, (nn.Linear, Conv1D)) and name == "weight"
            stacked = parameter.dim() == 3 and not isinstance(part, nn.Conv1d)
            if linear or stacked:
                names.append(f"{path}.{name}" if path else name)
    return names


def lora_config(decoder: Decoder, *, rank: int, alpha: int, dropout: float = 0.0) -> Any:
    """The peft configuration: rank `rank`, scaled by `alpha / rank`.

    Modules are named by their last part where nothing outside the decoder layers (the language-model head aside, which
    peft leaves out by itself) is called so, and in full elsewhere.

    Raises:
        RequestError: if dropout is asked for where experts are stacked in one parameter.
    """
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    linear: set[str] = set()
    stacked: set[str] = set()
    for layer, module in enumerate(decoder.layers):
        for name in linear_weights(module):
            path, _, parameter = name.rpartition(".")
            if parameter == "weight" and isinstance(module.get_submodule(path), (nn.Linear, Conv1D)):
                linear.add(f"{decoder.path}.{layer}.{path}")
            else:
                stacked.add(name)
    linear -= _of_several_outputs(decoder, linear)
    suffixes = {name.rpartition(".")[2] for name in linear}
    head = decoder.model.get_output_embeddings()
    ambiguous = any(
        name.rpartition(".")[2] in suffixes and name not in linear and module is not head
        for name, module in decoder.model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=sorted(linear if ambiguous else suffixes),
        target_parameters=sorted(stacked) or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in decoder.layers.modules()),
        task_type="CAUSAL_LM",
    )
    lost = _taken_for_experts(config, decoder.model)
    if lost:  # the weights of these modules are named as such, which peft leaves alone
        last = {name.rpartition(".")[2] for name in lost}
        named = {f"{name}.weight" for name in linear if name.rpartition(".")[2] in last}
        config.target_modules -= lost
        config.target_parameters = sorted({*stacked, *named})
    if dropout and config.target_parameters:
        raise RequestError(
            f"peft has no dropout before adapters of stacked experts; choose lora_dropout=0, not {dropout:g}"
        )
    return config


def _of_several_outputs(decoder: Decoder, names: Collection[str]) -> set[str]:
    """Linear maps by class that return more than one tensor, as Llama 4's router: nothing can be added to that."""
    own = [name for name in names if type(decoder.model.get_submodule(name)).forward is not nn.Linear.forward]
    found: set[str] = set()

    def hook_of(name: str) -> Callable[..., None]:
        return lambda _module, _args, output: None if isinstance(output, Tensor) else found.add(name)

    with ExitStack() as stack:
        for name in own:
            stack.callback(decoder.model.get_submodule(name).register_forward_hook(hook_of(name)).remove)
        if own:
            stack.enter_context(evaluating(decoder.model))
            stack.enter_context(torch.no_grad())
            decoder.logits(decoder.probe_ids())
    return found


def _taken_for_experts(config: Any, model: nn.Module) -> set[str]:
    """The target modules that peft would take for the experts of an adapter made with transformers 4.

    Where a family's experts are stacked now and once were `gate_proj` and so on, so are its dense layers still.
    """
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # before peft 0.19
        return set()
    tried = copy.deepcopy(config)
    convert_peft_config_for_transformers(tried, model, None)
    return set(config.target_modules) - set(tried.target_modules)


def attach_lora(decoder: Decoder, *, rank: int, alpha: int, dropout: float = 0.0, seed: int = 0) -> Any:
    """Wrap the decoder's model with fresh adapters; `unload` or `merge_and_unload` of the result takes them off again.

    Raises:
        RequestError: as `lora_config` says; nothing was changed.
    """
    from peft import get_peft_model

    config = lora_config(decoder, rank=rank, alpha=alpha, dropout=dropout)
    torch.manual_seed(seed)
    with gradient_checkpointing_quietly():
        model = get_peft_model(decoder.model, config)
    model.peft_config["default"].base_model_name_or_path = ""  # whoever saves it would ask the Hub about that name
    return model


def adapters_of(model: nn.Module) -> dict[str, Tensor]:
    """The adapters of a model that `attach_lora` wrapped, by name, not copied."""
    return {name: weight.detach() for name, weight in model.named_parameters() if ".lora_" in name}


def adapters_of_kept(adapters: Mapping[str, Tensor], path: str, new_of: Mapping[int, int]) -> dict[str, Tensor]:
    """Adapters of the dense model as those of the pruned one: renumbered, without those of dropped layers.

    Args:
        adapters: by name in the wrapped model.
        path: where the model keeps its layers.
        new_of: kept layer → its new number.
    """
    moved = {name: renumbered(name, [f"base_model.model.{path}"], new_of) for name in adapters}
    return {new: adapters[name] for name, new in moved.items() if new is not None}


@torch.no_grad()
def take_over_(model: nn.Module, adapters: Mapping[str, Tensor]) -> None:
    """Give a model that `attach_lora` wrapped the adapters of another, of the same rank."""
    for name, weight in adapters_of(model).items():
        weight.copy_(adapters[name])


@contextmanager
def gradient_checkpointing_quietly() -> Iterator[None]:
    """Peft asks the model about checkpointing by a name that transformers is giving up."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield
