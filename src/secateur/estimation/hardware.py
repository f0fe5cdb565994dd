"""What a device can do: from its data sheet, or measured on this machine with a few layers of the model."""

from __future__ import annotations

import copy
import difflib
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import psutil
import torch

from secateur.depth import layer_count
from secateur.errors import RequestError, SecateurError
from secateur.estimation.dry_run import last_logits
from secateur.evaluation.flops import flop_counter
from secateur.loading import quiet_transformers
from secateur.surgery.config import remove_layers_from_config_

__all__ = ["CARDS", "HERE", "Hardware", "hardware_here", "hardware_named"]

HERE = "here"

_EFFICIENCY = 0.4
"""Share of a card's peak that a pass reaches where nothing was measured."""


_TIMED_LAYERS = (2, 4)
_ROUNDS = 5
_WEIGHT = 0.02


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device."""

    name: str

    memory_bytes: int
    """Of the device."""

    flops_per_second: float
    """Floating-point operations a second that a pass of the model reaches."""

    measured: bool = False
    """On this machine; assumed from a data sheet otherwise."""


def _card(name: str, gigabytes: float, teraflops: float) -> Hardware:
    return Hardware(name=name, memory_bytes=round(gigabytes * 1e9), flops_per_second=_EFFICIENCY * teraflops * 1e12)


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
    config: Any,
    *,
    sequences: int,
    tokens: int,
    dtype: torch.dtype,
    precision: torch.dtype | None = None,
    logits: int | None = None,
) -> Hardware:
    """This machine, timed on forward passes of the model's first two and four layers, with random weights.

    The head of a small model is much of its work and runs at another rate than a layer: the two timings tell them apart, and
    the rate is that of a pass of the whole model, a + b · (its layers).

    Args:
        config: of the model.
        sequences: rows of a pass.
        tokens: tokens of a row.
        dtype: of the weights.
        precision: autocast dtype; the weights' own if None.
        logits: positions of a row whose logits are made, where the model can leave the others out; all if None.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ids = torch.zeros(sequences, tokens, dtype=torch.long, device=device)
    autocast = torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None)
    with torch.no_grad(), autocast:
        few = [_first_layers(config, min(count, layer_count(config))) for count in _TIMED_LAYERS]
        models = {layer_count(each): _model_on(each, dtype, device) for each in few}  # one if it cannot be cut
        how = {"use_cache": False, **last_logits(next(iter(models.values())), logits, tokens)}
        flops = {count: _flops(model, ids, how) for count, model in models.items()}  # warms up, too
        laps: dict[int, list[float]] = {count: [] for count in models}
        for _ in range(_ROUNDS):
            for count, model in models.items():
                start = time.perf_counter()
                model(input_ids=ids, **how).logits[0, -1, 0].item()
                laps[count].append(time.perf_counter() - start)
    num_layers = layer_count(config)
    seconds = _extrapolated({count: median(times) for count, times in laps.items()}, num_layers)
    memory = (
        torch.cuda.get_device_properties(device).total_memory
        if device.type == "cuda"
        else psutil.virtual_memory().total
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return Hardware(
        name=name,
        memory_bytes=memory,
        flops_per_second=_extrapolated(flops, num_layers) / seconds,
        measured=True,
    )


def _extrapolated(of_layers: dict[int, float], num_layers: int) -> float:
    """What a model of `num_layers` takes, from what a few and more layers take; never less than the larger of these."""
    (few, least), (more, most) = min(of_layers.items()), max(of_layers.items())
    if few == more:
        return most
    return most + max(0.0, most - least) / (more - few) * (num_layers - more)


def _flops(model: Any, ids: torch.Tensor, how: dict[str, Any]) -> float:
    with flop_counter() as counter:
        model(input_ids=ids, **how)
    return float(counter.get_total_flops())


def _model_on(config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Made on the device, each weight drawn once: initialising billions of them on a CPU would take longer than what is timed."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with quiet_transformers(), torch.random.fork_rng(devices=[]), torch.device(device), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    random = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.uniform_(-_WEIGHT, _WEIGHT, generator=random)
    return model


def _first_layers(config: Any, num_layers: int) -> Any:
    """The configuration with the first layers alone, where layers can be taken from it; all of them otherwise."""
    text = (few := copy.deepcopy(config)).get_text_config(decoder=True)
    try:
        remove_layers_from_config_(text, range(num_layers, layer_count(config)))
    except SecateurError:
        return config
    return few
