"""What `secateur prune` or `secateur tune` would take, before anything is loaded: memory and time of each phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from secateur.context import check_window, context_of
from secateur.data import TokenBatches
from secateur.depth import layer_count
from secateur.errors import RequestError
from secateur.estimation.estimate import Phase, Setting, estimated_phases
from secateur.estimation.hardware import HERE, Hardware, hardware_here, hardware_named
from secateur.estimation.task_size import TaskSize
from secateur.estimation.tuning import TuningCost, tuning_phases
from secateur.loading import autocast_dtype, dtype_named, load_config
from secateur.methods import Method, method_named
from secateur.plan import count_to_drop
from secateur.processes import supposed
from secateur.progress import Progress, Silent, in_one_step
from secateur.stages import with_recovery
from secateur.training.recovery import Recovery
from secateur.training.settings import FineTuning, check_equal_shares

__all__ = ["forecast", "forecast_tuning"]


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
        `command` (`prune`), `model`, `method`, `drop`, `hardware`, `devices`, `fits`, `memory_bytes` and `seconds` in all, and
        `phases`, a mapping each. Bytes are those of one device.

    Raises:
        RequestError: if something asked for cannot be.
        ModelError: if the model cannot be run without data.
    """
    method = method_named(method)() if isinstance(method, str) else method
    progress = progress or Silent()
    _check_counts({
        "--sequence-length": sequence_length, "--num-sequences": num_sequences, "--num-eval-sequences": num_eval_sequences,
        "--batch-size": batch_size, "--devices": devices,
    })  # fmt: skip
    recovery = recovery or Recovery()
    for rows in _rows_of_steps(method, recovery):
        check_equal_shares(rows, devices)
    card = None if hardware == HERE else hardware_named(hardware)
    config = load_config(source, revision=revision, trust_remote_code=trust_remote_code)
    check_window(source, config, sequence_length)
    num_layers = layer_count(config)
    count = count_to_drop(drop, num_layers)
    setting = _setting(config, card, dtype=dtype, precision=precision, devices=devices, sharded=sharded)
    data, held_out = (
        TokenBatches(torch.zeros(windows, sequence_length, dtype=torch.long), batch_size, "estimated")
        for windows in (num_sequences, num_eval_sequences)
    )
    with supposed(devices), in_one_step(progress, "running the phases without data"):
        cost = with_recovery(method.cost(num_layers, count, data), recovery, num_layers, count, data)
        phases = estimated_phases(config, cost, data, held_out, setting)
    if card is None:
        with in_one_step(progress, "timing a few layers here"):
            card = hardware_here(
                config, sequences=batch_size, tokens=sequence_length, dtype=setting.dtype, precision=setting.precision
            )
    return _described("prune", source, method, config, count, card, setting, phases)


def forecast_tuning(
    source: str | Path,
    *,
    task: TaskSize,
    drop: int | float,
    method: Method | str = "gradpruner",
    tuning: FineTuning | None = None,
    tune_dense: bool = False,
    speed: bool = True,
    hardware: str = HERE,
    devices: int = 1,
    sharded: bool = False,
    dtype: str = "auto",
    precision: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Estimate memory and time of a run of `secateur tune`, from the model's configuration alone.

    Args:
        source: a hub id or a local directory with a config.json.
        task: how many examples there are, and how long they are.
        drop: how many layers go, or which share of them.
        method: a method with its settings, or its name.
        tuning: how to fine-tune.
        tune_dense: the dense model is fine-tuned alike, for comparison.
        speed: tokens per second of both are measured in the end, with the dense model read again; only its memory counts.
        hardware: as for `forecast`; here a few layers are timed on examples of average length.
        devices: how many of them.
        sharded: share weights, gradients and moments out over them while the model is fine-tuned.
        dtype: of the weights; `auto` as the configuration says, and 16-bit weights that are all trained in float32.
        precision: autocast dtype of the passes: `auto`, `fp32`, `bf16`.
        revision: the branch, tag or commit of a hub id.
        trust_remote_code: run code that comes with the model.
        progress: who watches.

    Returns:
        What `forecast` returns, of `tune`.

    Raises:
        RequestError: if something asked for cannot be.
        ModelError: if the model cannot be run without data.
    """
    method = method_named(method)() if isinstance(method, str) else method
    tuning = tuning or FineTuning()
    progress = progress or Silent()
    _check_counts({"--devices": devices})
    for rows_of_step in (*_rows_of_steps(method, Recovery()), tuning.batch_size):
        check_equal_shares(rows_of_step, devices)
    card = None if hardware == HERE else hardware_named(hardware)
    config = load_config(source, revision=revision, trust_remote_code=trust_remote_code)
    count = count_to_drop(drop, layer_count(config))
    setting = _setting(config, card, dtype=dtype, precision=precision, devices=devices, sharded=sharded)
    rows = task.rows(tuning.max_length, context_of(config))
    cost = TuningCost(
        config=config,
        method=method,
        drop=count,
        tuning=tuning,
        task=task,
        rows=rows,
        tune_dense=tune_dense,
        speed=speed,
    )
    with supposed(devices), in_one_step(progress, "running the phases without data"):
        phases = tuning_phases(cost, setting)
    if card is None:
        at_once = tuning.at_once
        with in_one_step(progress, "timing a few layers here"):
            card = hardware_here(
                config, sequences=at_once, tokens=max(1, round(rows.padded(at_once))), dtype=setting.dtype,
                precision=setting.precision, logits=rows.logits(at_once),
            )  # fmt: skip
    return _described("tune", source, method, config, count, card, setting, phases)


def _check_counts(counts: Mapping[str, int]) -> None:
    """Hold what is counted to 1 or more."""
    for name, value in counts.items():
        if value < 1:
            raise RequestError(f"{name} must be 1 or more, not {value}")


def _setting(config: Any, card: Hardware | None, *, dtype: str, precision: str, devices: int, sharded: bool) -> Setting:
    weights = dtype_named(dtype)
    if weights == "auto":
        weights = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    return Setting(
        dtype=weights, precision=_precision(precision, card), wide=dtype == "auto", devices=devices, sharded=sharded
    )


def _described(
    command: str,
    source: str | Path,
    method: Method,
    config: Any,
    drop: int,
    card: Hardware,
    setting: Setting,
    phases: Sequence[Phase],
) -> dict[str, Any]:
    """All of an estimate, as plain values."""
    memory = max(phase.memory_bytes for phase in phases)
    return {
        "command": command,
        "model": str(source),
        "num_layers": layer_count(config),
        "method": method.name,
        "drop": drop,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "hardware": vars(card),
        "devices": setting.devices,
        "sharded": setting.sharded,
        "memory_bytes": round(memory),
        "fits": memory <= card.memory_bytes,
        "seconds": sum(phase.seconds_on(card, setting.devices) for phase in phases),
        "phases": [_row(phase, card, setting) for phase in phases],
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


def _row(phase: Phase, card: Hardware, setting: Setting) -> dict[str, Any]:
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
