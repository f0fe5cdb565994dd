"""What a device can do: from its data sheet, or measured on this machine with two layers of the model."""

from __future__ import annotations

import copy
import difflib
import time
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from secateur.decoder import layer_count
from secateur.errors import RequestError, SecateurError
from secateur.evaluation.flops import flop_counter
from secateur.loading import quiet_transformers
from secateur.surgery.config import remove_layers_from_config_

__all__ = ["CARDS", "HERE", "Hardware", "hardware_here", "hardware_named"]

HERE = "here"

_EFFICIENCY = 0.4
"""Share of a card's peak that a pass reaches where nothing was measured."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device."""

    name: str

    memory_bytes: float
    """Of the device."""

    flops_per_second: float
    """Floating-point operations a second that a pass of the model reaches."""

    measured: bool = False
    """On this machine; assumed from a data sheet otherwise."""


def _card(name: str, gigabytes: float, teraflops: float) -> Hardware:
    return Hardware(name=name, memory_bytes=gigabytes * 1e9, flops_per_second=_EFFICIENCY * teraflops * 1e12)


CARDS = {
    card.name: card
    for card in (
        # Memory in GB and dense bfloat16 TFLOP/s of the vendors' data sheets, without sparsity.
        _card("a10", 24, 125),
        _card("a100-40gb", 40, 312),
        _card("a100-80gb", 80, 312),
        _card("h100", 80, 989),
        _card("h200", 141, 989),
        _card("b200", 180, 2250),
        _card("l4", 24, 121),
        _card("l40s", 48, 362),
        _card("rtx3090", 24, 71),
        _card("rtx4090", 24, 165),
        _card("mi300x", 192, 1307),
    )
}


def hardware_named(name: str) -> Hardware:
    """A card of the list.

    Raises:
        RequestError: if there is none of that name; the message suggests the nearest.
    """
    if name in CARDS:
        return CARDS[name]
    near = difflib.get_close_matches(name.lower().replace(" ", ""), CARDS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"choose {HERE} or one of {', '.join(CARDS)}"
    raise RequestError(f"unknown hardware '{name}'; {hint}")


def hardware_here(
    config: Any, *, sequences: int, tokens: int, dtype: torch.dtype, precision: torch.dtype | None = None
) -> Hardware:
    """This machine, timed on forward passes of the model's first two layers with random weights.

    Args:
        config: of the model.
        sequences: rows of a pass.
        tokens: tokens of a row.
        dtype: of the weights.
        precision: autocast dtype; the weights' own if None.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(_first_layers(config), dtype=dtype).to(device).eval()
        ids = torch.zeros(sequences, tokens, dtype=torch.long, device=device)
        autocast = torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None)
        with torch.no_grad(), autocast, flop_counter() as counter:
            model(input_ids=ids, use_cache=False)  # warms up, too
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            with torch.no_grad(), autocast:
                model(input_ids=ids, use_cache=False).logits[0, -1, 0].item()
            seconds.append(time.perf_counter() - start)
    memory = (
        torch.cuda.get_device_properties(device).total_memory
        if device.type == "cuda"
        else psutil.virtual_memory().total
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return Hardware(
        name=name,
        memory_bytes=memory,
        flops_per_second=counter.get_total_flops() / sorted(seconds)[1],
        measured=True,
    )


def _first_layers(config: Any) -> Any:
    """The configuration with two layers, where layers can be taken from it; all of them otherwise."""
    text = (few := copy.deepcopy(config)).get_text_config(decoder=True)
    try:
        remove_layers_from_config_(text, range(2, layer_count(config)))
    except SecateurError:
        return config
    return few
