"""Trainings that keep a part of the weights in each process, of a model that is whole before and after.

accelerate (FSDP) takes a model apart for good, and DeepSpeed leaves its hooks in it and rounds its weights. They are therefore
given a stand-in: a copy of the modules around the same tensors, which wait in the CPU's memory meanwhile. What was trained is
gathered from the processes, a weight at a time, into each one's own model. Under ZeRO 1 and 2 each process has all of the weights
to run with, and a part of those that are updated, which are in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import TrainingDivergedError
from secateur.processes import sharded, zero_stage

__all__ = ["back_in_parts_", "in_parts", "own_part", "whole"]

_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")
"""What activation checkpointing and compilation put into the names of weights."""

_ZERO_PART = "_hp_mapping"
"""Where DeepSpeed notes at a weight which part of it, in float32, this process updates; None if it updates another's."""


@contextmanager
def in_parts(model: Any) -> Iterator[Any]:
    """What the Trainer is to train: the model, or its stand-in, whose weights the model has at the end.

    It has them also where the training gave up with its last good weights, which all processes do together.
    """
    if not (sharded() or zero_stage()):
        yield model
        return
    device = next(model.parameters()).device
    model.to("cpu")  # in place: the parameters stay who they are
    weights = {id(weight): nn.Parameter(weight.data, weight.requires_grad) for weight in model.parameters()}
    stand_in = copy.deepcopy(model, {**weights, **{id(buffer): buffer for buffer in model.buffers()}})
    del weights
    try:
        yield stand_in
    except TrainingDivergedError:
        _take_over_(model, stand_in)
        raise
    else:
        _take_over_(model, stand_in)
    finally:
        model.to(device)


@torch.no_grad()
def _take_over_(model: nn.Module, stand_in: nn.Module) -> None:
    back_in_parts_(stand_in)
    for name, weight in stand_in.named_parameters():
        if weight.requires_grad:
            for wrapper in _WRAPPERS:
                name = name.replace(wrapper, "")  # noqa: PLW2901
            model.get_parameter(name).copy_(whole(weight))


def back_in_parts_(model: nn.Module) -> None:
    """Give up copies of others' parts, so that the parameters of a model in parts are the parts and no longer the whole."""
    for module in model.modules():
        give_up = getattr(module, "reshard", None)
        if give_up is not None:
            give_up()


def own_part(weight: Tensor) -> Tensor:
    """What this process keeps of a weight: all of it, where the model is not in parts; under ZeRO of what is updated."""
    if hasattr(weight, _ZERO_PART):
        fragment = getattr(weight, _ZERO_PART)
        kept: Tensor = weight.new_empty(0) if fragment is None else fragment.get_hp_fragment()
        return kept
    local = getattr(weight, "to_local", None)
    part: Tensor = weight if local is None else local()
    return part


def whole(weight: Tensor) -> Tensor:
    """All of a weight or gradient; every process has to ask for it."""
    gather = getattr(weight, "get_full_hp_param" if hasattr(weight, _ZERO_PART) else "full_tensor", None)
    result: Tensor = weight if gather is None else gather()
    return result
