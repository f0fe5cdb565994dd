"""A model's weights as they are in memory, by their names there: for a run that goes on, to the bit.

`save_pretrained` is for handing over: it may rename, split and merge weights as a family's files have them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.errors import ModelError

__all__ = ["load_weights_", "num_bytes", "save_weights", "state", "write_weights"]


def save_weights(model: nn.Module, file: Path, *, only: Collection[str] | None = None) -> None:
    """Write parameters, each once however often it is tied, and buffers that belong to the model's state.

    Args:
        model: the model.
        file: a new safetensors file.
        only: names of parameters; all if None.
    """
    write_weights(state(model, only), file)


def write_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """Write weights that are kept elsewhere than in a model, by their names in it, for `load_weights_`."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, file)


def load_weights_(model: nn.Module, file: Path, *, only: Collection[str] | None = None) -> None:
    """Give a model of the same names, shapes and dtypes the weights that `save_weights` wrote, one by one.

    Raises:
        ModelError: if they are of another model; it is unchanged then.
    """
    from safetensors import safe_open

    ours = state(model, only)
    with safe_open(file, "pt") as weights, torch.no_grad():
        names = set(weights.keys())
        if names != ours.keys():
            first = min(names ^ ours.keys())
            raise ModelError(f"{file} is of another model: {first} is in one of them alone; remove it and start over")
        for name, tensor in ours.items():
            found = weights.get_tensor(name)
            if found.shape != tensor.shape or found.dtype != tensor.dtype:
                raise ModelError(
                    f"{file} is of another model: {name} differs in shape or dtype; remove it and start over"
                )
            tensor.copy_(found)


def num_bytes(model: nn.Module) -> int:
    """Bytes of the parameters, in memory and, about, on the disk."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def state(model: nn.Module, only: Collection[str] | None = None) -> dict[str, Tensor]:
    """Parameters, each once, and buffers that belong to the model's state, by their names in memory.

    Args:
        model: the model.
        only: names of parameters; all if None.
    """
    kept = model.state_dict(keep_vars=True)
    named = {name: weight for name, weight in model.named_parameters() if only is None or name in only}
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return {**named, **buffers}
