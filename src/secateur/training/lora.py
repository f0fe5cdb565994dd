"""LoRA on every linear sub-layer of the decoder layers, and nowhere else."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from secateur.decoder import Decoder

__all__ = ["attach_lora", "gradient_checkpointing_quietly", "linear_weights", "lora_config"]


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
    suffixes = {name.rpartition(".")[2] for name in linear}
    head = decoder.model.get_output_embeddings()
    ambiguous = any(
        name.rpartition(".")[2] in suffixes and name not in linear and module is not head
        for name, module in decoder.model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    )
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=sorted(linear if ambiguous else suffixes),
        target_parameters=sorted(stacked) or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in decoder.layers.modules()),
        task_type="CAUSAL_LM",
    )


def attach_lora(decoder: Decoder, *, rank: int, alpha: int, dropout: float = 0.0, seed: int = 0) -> Any:
    """Wrap the decoder's model with fresh adapters; `unload` or `merge_and_unload` of the result takes them off again."""
    from peft import get_peft_model

    torch.manual_seed(seed)
    with gradient_checkpointing_quietly():
        model = get_peft_model(decoder.model, lora_config(decoder, rank=rank, alpha=alpha, dropout=dropout))
    model.peft_config["default"].base_model_name_or_path = ""  # whoever saves it would ask the Hub about that name
    return model


@contextmanager
def gradient_checkpointing_quietly() -> Iterator[None]:
    """Peft asks the model about checkpointing by a name that transformers is giving up."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield
