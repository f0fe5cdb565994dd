"""Partial training: the last layers, and what runs behind them."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack

import torch
from torch import nn

from secateur.decoder import Decoder, evaluating

__all__ = ["train_last_"]


def train_last_(decoder: Decoder, dropped: Collection[int], count: int) -> None:
    """Mark as trainable, alone, the last `count` layers that stay, the final norm and the head."""
    decoder.model.requires_grad_(False)
    stay = [layer for layer in range(decoder.num_layers) if layer not in dropped]
    last = [decoder.layers[layer] for layer in stay[-count:]]
    for module in [*last, *_behind_the_layers(decoder)]:
        module.requires_grad_(True)


def _behind_the_layers(decoder: Decoder) -> list[nn.Module]:
    """The modules with weights that run after the last layer, found by running the model: the final norm and the head.

    A head that is tied to the embedding has the embedding's weight, so that is what is then trained.
    """
    found: list[nn.Module] = []
    passed: list[bool] = []
    inside = set(decoder.layers.modules())
    with ExitStack() as stack:
        stack.callback(decoder.layers[-1].register_forward_hook(lambda *_: passed.append(True)).remove)
        for module in set(decoder.model.modules()) - inside:
            if any(True for _ in module.parameters(recurse=False)):
                see = module.register_forward_pre_hook(lambda seen, _: found.append(seen) if passed else None)
                stack.callback(see.remove)
        with evaluating(decoder.model), torch.no_grad():
            decoder.logits(decoder.probe_ids())
    return found
