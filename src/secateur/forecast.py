"""What `secateur prune` would take, before anything is loaded: memory and time of each phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from secateur.context import check_window
from secateur.data import TokenBatches
from secateur.depth import layer_count
from secateur.errors import RequestError
from secateur.estimation.estimate import Phase, Setting, estimated_phases
from secateur.estimation.hardware import HERE, Hardware, hardware_here, hardware_named
from secateur.loading import autocast_dtype, dtype_named, load_config
from secateur.methods import Method, method_named
from secateur.plan import count_to_drop
from secateur.progress import Progress, Silent, in_one_step
from secateur.stages import with_recovery
from secateur.training.recovery import Recovery
from secateur.training.settings import check_equal_shares

__all__ = ["forecast"]


def forecast(
    source: str | Path,
    *,
    method: Method | str,
    drop: int | float,
    recovery: Recovery | None = None,
    sequence_length: int = 256,
    num_sequences: int = 128,
    num_eval_sequences: int = 64,
    batch_size: int = 4,
    hardware: str = HERE,
    devices: int = 1,
    sharded: bool = False,
    dtype: str = "auto",
    precision: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Estimate memory and time of a run of `secateur prune`, from the model's configuration alone.

    Args:
        source: a hub id or a local directory with a config.json.
        method: a method with its settings, or its name.
        drop: how many layers go, or which share of them.
        recovery: training after the cut; none if None.
        sequence_length: tokens per window.
        num_sequences: calibration windows.
        num_eval_sequences: windows that perplexity is measured on.
        batch_size: windows per forward pass.
        hardware: `here`, where a few layers of the model are timed, or a card of `secateur.estimation.hardware.CARDS`.
        devices: how many of them.
        sharded: share weights, gradients and moments out over them where the model is trained, after layers were chosen.
        dtype: of the weights; `auto` as the configuration says.
        precision: autocast dtype of the passes: `auto`, `fp32`, `bf16`.
        revision: the branch, tag or commit of a hub id.
        trust_remote_code: run code that comes with the model.
        progress: who watches.

    Returns:
        `model`, `method`, `drop`, `hardware`, `devices`, `fits`, `memory_bytes` and `seconds` in all, and `phases`, a mapping
        each. Bytes are those of one device.

    Raises:
        RequestError: if something asked for cannot be.
        ModelError: if the model cannot be run without data.
    """
    method = method_named(method)() if isinstance(method, str) else method
    progress = progress or Silent()
    for name, value in {
        "--sequence-length": sequence_length, "--num-sequences": num_sequences, "--num-eval-sequences": num_eval_sequences,
        "--batch-size": batch_size, "--devices": devices,
    }.items():  # fmt: skip
        if value < 1:
            raise RequestError(f"{name} must be 1 or more, not {value}")
    recovery = recovery or Recovery()
    for rows in _rows_of_steps(method, recovery):
        check_equal_shares(rows, devices)
    card = None if hardware == HERE else hardware_named(hardware)
    config = load_config(source, revision=revision, trust_remote_code=trust_remote_code)
    check_window(source, config, sequence_length)
    num_layers = layer_count(config)
    count = count_to_drop(drop, num_layers)
    weights = dtype_named(dtype)
    if weights == "auto":
        weights = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    setting = Setting(dtype=weights, precision=_precision(precision, card), devices=devices, sharded=sharded)
    data, held_out = (
        TokenBatches(torch.zeros(windows, sequence_length, dtype=torch.long), batch_size, "estimated")
        for windows in (num_sequences, num_eval_sequences)
    )
    cost = with_recovery(method.cost(num_layers, count, data), recovery, num_layers, count, data)
    with in_one_step(progress, "running the phases without data"):
        phases = estimated_phases(config, cost, data, held_out, setting)
    if card is None:
        with in_one_step(progress, "timing a few layers here"):
            card = hardware_here(
                config, sequences=batch_size, tokens=sequence_length, dtype=setting.dtype, precision=setting.precision
            )
    memory = max(phase.memory_bytes for phase in phases)
    return {
        "model": str(source),
        "num_layers": num_layers,
        "method": method.name,
        "drop": count,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "hardware": vars(card),
        "devices": devices,
        "sharded": sharded,
        "memory_bytes": round(memory),
        "fits": memory <= card.memory_bytes,
        "seconds": sum(phase.seconds_on(card, devices) for phase in phases),
        "phases": [_described(phase, card, setting) for phase in phases],
    }


def _rows_of_steps(method: Method, recovery: Recovery) -> list[int]:
    """Of the optimiser steps that a run may take."""
    found = [getattr(method, name) for name in ("sequences_per_step", "scoring_batch") if hasattr(method, name)]
    return [*found, recovery.recover_batch] if recovery.recover != "none" else found


def _precision(precision: str, card: Hardware | None) -> torch.dtype | None:
    """A card of the list multiplies bfloat16 natively; of this machine torch says so."""
    if card is not None:
        return None if precision == "fp32" else torch.bfloat16
    return autocast_dtype(precision, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _described(phase: Phase, card: Hardware, setting: Setting) -> dict[str, Any]:
    step = phase.step
    return {
        "phase": phase.name,
        "trains": phase.trains,
        "shards": phase.shards,
        "tokens": round(phase.tokens),
        "flops": round(phase.flops),
        "weights_bytes": round(phase.weights_bytes),
        "gradients_bytes": round(step.trained_bytes / phase.shards),
        "moments_bytes": round(step.moments_bytes / phase.shards),
        "kept_bytes": round(step.kept_bytes / phase.shards),
        "activations_bytes": round(phase.passing_bytes),
        "memory_bytes": round(phase.memory_bytes),
        "seconds": phase.seconds_on(card, setting.devices),
    }
