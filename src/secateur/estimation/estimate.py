"""Memory and time of a pruning run, phase by phase, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from secateur.data import TokenBatches
from secateur.estimation.dry_run import Footprint, dry_run, forward_flops
from secateur.estimation.hardware import Hardware
from secateur.methods import Cost
from secateur.step import Step

__all__ = ["Phase", "Setting", "estimated_peak", "estimated_phases", "flops_per_token", "footprint", "trained"]

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

    wide: bool = True
    """Whether 16-bit weights are trained in float32."""

    devices: int = 1
    """Devices that work on it at once, each on its own rows."""

    sharded: bool = False
    """Whether trainings share weights, gradients and moments out over the devices (FSDP), instead of copying them to each
    (DDP)."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stage of a run."""

    name: str
    """What is done."""

    tokens: float
    """Through the whole dense model, forward; a backward pass counts as what it costs in forward passes."""

    step: Footprint
    """Its heaviest step, on a device that holds everything."""

    flops: float = 0.0
    """Floating-point operations, over all devices."""

    trains: bool = False
    """Whether the Trainer trains the model in it, which is what FSDP can share out."""

    shards: int = 1
    """Devices that what is as large as weights is shared out over."""

    beside_bytes: float = 0.0
    """Of the weights, what the training knows nothing of, so that each device has it whole."""

    @property
    def weights_bytes(self) -> float:
        """Of the model, on each device."""
        return (self.step.weights_bytes - self.beside_bytes) / self.shards + self.beside_bytes

    @property
    def passing_bytes(self) -> float:
        """Of what is not as large as the trained weights, or not shared out: activations, logits, a teacher."""
        return max(0, self.step.peak_bytes - self.step.static_bytes)

    @property
    def memory_bytes(self) -> float:
        """At the peak, on each device, with what the process takes; of what is shared out two layers at a time are whole."""
        if self.shards == 1:
            return self.step.peak_bytes + PROCESS_BYTES
        shared = (self.step.static_bytes - self.step.weights_bytes) / self.shards
        return self.weights_bytes + shared + self.passing_bytes + 2 * self.step.largest_layer_bytes + PROCESS_BYTES

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
    per_token = flops_per_token(config, held_out.sequence_length)
    phases = _phases(config, cost, data, held_out, setting)
    return [replace(phase, flops=phase.tokens * per_token) for phase in phases]


def estimated_peak(config: Any, cost: Cost, data: TokenBatches, held_out: TokenBatches, setting: Setting) -> float:
    """The most memory of all phases, on each device, in bytes.

    Raises:
        ModelError: if the model cannot be run without data.
    """
    return max(phase.memory_bytes for phase in _phases(config, cost, data, held_out, setting))


def _phases(config: Any, cost: Cost, data: TokenBatches, held_out: TokenBatches, setting: Setting) -> Iterator[Phase]:
    """The phases with tokens and heaviest step, without their operations."""
    forward = footprint(config, Step(), held_out, setting)
    choosing = footprint(config, cost.choosing, data, setting)
    # The dense model; a prepared one; the cut one, before a recovery.
    measured = 1 + (cost.preparing is not None) + (cost.recovering is not None)
    yield Phase(name="measure", tokens=float(measured * held_out.num_tokens), step=forward)
    heaviest = max(forward, choosing, key=lambda step: step.peak_bytes)
    yield Phase(name="choose", tokens=cost.choose_tokens, step=heaviest)
    if cost.preparing is not None:
        step = footprint(config, cost.preparing, data, setting)
        yield trained(Phase(name="prepare", tokens=cost.prepare_tokens, step=step), cost.preparing, setting)
    if cost.recovering is not None:
        step = footprint(config, cost.recovering, data, setting)
        # Layers of the dense model that what is trained does not have.
        gone = cost.recovering.without * step.largest_layer_bytes
        phase = Phase(name="recover", tokens=cost.recover_tokens, step=step, beside_bytes=gone)
        yield trained(phase, cost.recovering, setting)
    # Loaded again from disk, beside the dense model and, after a recovery, the one that was trained.
    proof = replace(forward, kept_bytes=(1 if cost.recovering is None else 2) * forward.weights_bytes)
    yield Phase(name="cut and prove", tokens=1.0 * held_out.num_tokens, step=proof)


def trained(phase: Phase, step: Step, setting: Setting) -> Phase:
    """A phase with what the Trainer makes of it; a preparation that trains nothing, as a merge, is none of its own."""
    trains = step.trains != "nothing"
    return replace(phase, trains=trains, shards=setting.devices if trains and setting.sharded else 1)


_KNOWN: dict[tuple[Any, ...], Any] = {}
"""What was worked out before; it takes seconds."""


def flops_per_token(config: Any, tokens: int, logits: int | None = None) -> float:
    """Of a forward pass over a row.

    Args:
        config: of the model.
        tokens: of the row.
        logits: positions whose logits are made, where the model can leave the others out; all if None.
    """
    key = (config.to_json_string(use_diff=False), tokens, logits)
    if key not in _KNOWN:
        _KNOWN[key] = forward_flops(config, sequences=1, tokens=tokens, logits=logits) / tokens
    return float(_KNOWN[key])


def footprint(config: Any, step: Step, data: TokenBatches, setting: Setting) -> Footprint:
    """Of one step. 16-bit weights that are trained are held in float32, unless the setting says otherwise."""
    wide = setting.wide and step.trains in ("full", "partial") and step.optimizer and setting.dtype in _SIXTEEN_BITS
    how: dict[str, Any] = {
        "sequences": data.batch_size, "tokens": data.sequence_length,
        "dtype": torch.float32 if wide else setting.dtype, "precision": setting.precision,
    }  # fmt: skip
    key = (config.to_json_string(use_diff=False), step, *how.values())
    if key not in _KNOWN:
        _KNOWN[key] = dry_run(config, step, **how)
    found: Footprint = _KNOWN[key]
    return found
