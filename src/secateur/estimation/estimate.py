"""Memory and time of a pruning run, phase by phase, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from secateur.data import TokenBatches
from secateur.estimation.dry_run import Footprint, dry_run, forward_flops
from secateur.estimation.hardware import Hardware
from secateur.methods import Cost
from secateur.step import Step

__all__ = ["Phase", "Setting", "estimated_peak", "estimated_phases"]

PROCESS_BYTES = 0.45e9
"""What Python, torch and transformers take before anything is loaded, and the libraries' working memory on top."""

_SIXTEEN_BITS = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """On what is estimated."""

    dtype: torch.dtype
    """Of the weights."""

    precision: torch.dtype | None = None
    """Autocast dtype; the weights' own if None."""

    devices: int = 1
    """Devices that work on it at once, each on its own rows."""

    sharded: bool = False
    """Whether weights, gradients and moments are shared out over the devices (FSDP), instead of copied to each (DDP)."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stage of a run."""

    name: str
    """What is done."""

    tokens: float
    """Through the whole dense model, forward; a backward pass counts as what it costs in forward passes."""

    flops: float
    """Floating-point operations, over all devices."""

    step: Footprint
    """Its heaviest step, on a device that holds everything."""

    memory_bytes: float
    """At the peak, on each device."""

    def seconds_on(self, hardware: Hardware, devices: int = 1) -> float:
        """How long it takes."""
        return self.flops / (hardware.flops_per_second * devices)


def estimated_phases(
    config: Any, cost: Cost, data: TokenBatches, held_out: TokenBatches, setting: Setting
) -> list[Phase]:
    """The phases of a run of `secateur prune`: measure, choose, prepare, recover, cut and prove.

    Args:
        config: of the model.
        cost: of the method and the recovery.
        data: calibration windows; only their number and length matter.
        held_out: the windows that perplexity is measured on, of the dense model, before and after the cut.
        setting: on what.

    Raises:
        ModelError: if the model cannot be run without data.
    """
    per_token = _flops_per_token(config, held_out)
    return [
        Phase(name=name, tokens=tokens, flops=tokens * per_token, step=step, memory_bytes=_on_device(step, setting))
        for name, tokens, step in _heaviest_steps(config, cost, data, held_out, setting)
    ]


def estimated_peak(config: Any, cost: Cost, data: TokenBatches, held_out: TokenBatches, setting: Setting) -> float:
    """The most memory of all phases, on each device, in bytes.

    Raises:
        ModelError: if the model cannot be run without data.
    """
    return max(_on_device(step, setting) for _, _, step in _heaviest_steps(config, cost, data, held_out, setting))


def _heaviest_steps(
    config: Any, cost: Cost, data: TokenBatches, held_out: TokenBatches, setting: Setting
) -> list[tuple[str, float, Footprint]]:
    """The name, tokens and heaviest step of each phase."""
    forward = _footprint(config, Step(), held_out, setting)
    choosing = _footprint(config, cost.choosing, data, setting)
    measured = (
        1 + (cost.preparing is not None) + (cost.recovering is not None)
    )  # dense; prepared; cut, before a recovery
    stages = [
        ("measure", float(measured * held_out.num_tokens), forward),
        ("choose", cost.choose_tokens, max(forward, choosing, key=lambda step: step.peak_bytes)),
    ]
    if cost.preparing is not None:
        stages.append(("prepare", cost.prepare_tokens, _footprint(config, cost.preparing, data, setting)))
    if cost.recovering is not None:
        stages.append(("recover", cost.recover_tokens, _footprint(config, cost.recovering, data, setting)))
    # Loaded again from disk, beside the dense model and, after a recovery, the one that was trained.
    proof = replace(forward, kept_bytes=(1 if cost.recovering is None else 2) * forward.weights_bytes)
    stages.append(("cut and prove", 1.0 * held_out.num_tokens, proof))
    return stages


def _on_device(step: Footprint, setting: Setting) -> float:
    """The peak on one device, with what the process takes.

    Sharded, each holds its share of all that is as large as weights, and two layers whole.
    """
    if not setting.sharded or setting.devices == 1:
        return step.peak_bytes + PROCESS_BYTES
    passing = max(0, step.peak_bytes - step.static_bytes)
    return step.static_bytes / setting.devices + passing + 2 * step.largest_layer_bytes + PROCESS_BYTES


_KNOWN: dict[tuple[Any, ...], Any] = {}
"""What was worked out before; it takes seconds."""


def _flops_per_token(config: Any, data: TokenBatches) -> float:
    """Of a forward pass."""
    key = (config.to_json_string(use_diff=False), data.sequence_length)
    if key not in _KNOWN:
        _KNOWN[key] = forward_flops(config, sequences=1, tokens=data.sequence_length) / data.sequence_length
    return float(_KNOWN[key])


def _footprint(config: Any, step: Step, data: TokenBatches, setting: Setting) -> Footprint:
    """Of one step. 16-bit weights that are trained are held in float32."""
    wide = step.trains in ("full", "partial") and step.optimizer and setting.dtype in _SIXTEEN_BITS
    how: dict[str, Any] = {
        "sequences": data.batch_size, "tokens": data.sequence_length,
        "dtype": torch.float32 if wide else setting.dtype, "precision": setting.precision,
    }  # fmt: skip
    key = (config.to_json_string(use_diff=False), step, *how.values())
    if key not in _KNOWN:
        _KNOWN[key] = dry_run(config, step, **how)
    found: Footprint = _KNOWN[key]
    return found
