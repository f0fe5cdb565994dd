"""What pruning buys: speed, memory and size of models side by side, and how much of the ideal that is.

`bench` is what the command line runs; `compare` is the same for models that are in memory already.
"""

from __future__ import annotations

import gc
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from secateur.decoder import Decoder
from secateur.errors import RequestError
from secateur.evaluation.flops import Work, count_work
from secateur.evaluation.footprint import peak_memory
from secateur.evaluation.inference import input_device
from secateur.evaluation.speed import Laps, SpeedSettings, Workload, check_room, measure_speed
from secateur.evaluation.speedup import speedups
from secateur.loading import load_config, load_model, local_checkpoint
from secateur.progress import Progress, Silent
from secateur.report.record import circumstances, count_parameters, revision_of, weights_size

__all__ = ["bench", "compare"]


def bench(
    dense: str | Path,
    pruned: Sequence[str | Path],
    *,
    settings: SpeedSettings | None = None,
    memory: bool = True,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measure checkpoints side by side, all in memory at once.

    Args:
        dense: the model that the others are held to, a hub id or a local checkpoint.
        pruned: the others.
        settings: what is measured, and how often.
        memory: measure the peak memory of each too, for which it is loaded once more in a process of its own.
        dtype: of the weights: `auto` (as stored), `float32`, `bfloat16`, `float16`.
        revision: the branch, tag or commit of hub ids.
        trust_remote_code: run code that comes with the models.
        progress: who watches.
        command: the command line, for the record.

    Returns:
        The record of `compare`, with `disk_bytes` and `peak_memory_bytes` of each model (None if not measured), and
        `secateur.report.record.circumstances`.

    Raises:
        RequestError: if something asked for cannot be; nothing was measured.
        RunError: if it failed on the way.
    """
    settings = settings or SpeedSettings()
    progress = progress or Silent()
    sources = [str(source) for source in (dense, *pruned)]
    loading: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    _check(sources, settings, loading, progress)
    disk = [weights_size(local_checkpoint(source, revision=revision)) for source in sources]
    _warn_of_memory(sum(disk), progress)
    loading["dtype"] = dtype
    compared = compare({source: load_model(source, **loading) for source in sources}, settings, progress=progress)
    _give_back_memory()  # the models are gone; the processes below may want their room
    with progress.track("measuring memory", len(sources)) as advance:
        for about, source, size in zip(compared["models"], sources, disk, strict=True):
            about["disk_bytes"] = size
            about["peak_memory_bytes"] = peak_memory(source, settings, **loading) if memory else None
            if memory and about["peak_memory_bytes"] is None:
                progress.note(f"the memory of {source} could not be measured (--verbose says why)")
            advance(1)
    return {
        **circumstances(command=command or sys.argv, seed=None),
        **compared,
    }


def compare(models: Mapping[str, Any], settings: SpeedSettings, *, progress: Progress | None = None) -> dict[str, Any]:
    """Measure models in memory side by side.

    Args:
        models: by name; the first is the dense one, to which the others are held.
        settings: what is measured, and how often.
        progress: who watches.

    Returns:
        `settings`; `machine`; `models`, a mapping each with its size, its `Work` and its median `speeds`; `speedups`, for
        each further model and phase the fields of `Speedup`.

    Raises:
        RequestError: if a model's context is too short.
        RunError: if it failed on the way.
    """
    progress = progress or Silent()
    load, cores = psutil.getloadavg()[0], psutil.cpu_count() or 1
    if load > cores / 2:
        progress.note(f"this machine is busy (load {load:.1f} on {cores} cores): the figures will be uncertain")
    laps = measure_speed(models, settings, progress=progress, says_how_long=True)
    work = {name: count_work(model, settings) for name, model in models.items()}
    of = {name: {load: by_name[name] for load, by_name in laps.items()} for name in models}
    dense, *others = models
    device = input_device(models[dense])
    return {
        "settings": asdict(settings),
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processor": platform.machine(),
            "cores": cores,
            "threads": torch.get_num_threads(),
            "load_before": load,
        },
        "models": [_about(name, model, work[name], of[name], settings) for name, model in models.items()],
        "speedups": [
            {"model": name, **asdict(row)}
            for name in others
            for row in speedups(of[dense], of[name], (work[dense], work[name]))
        ],
    }


def _about(
    name: str, model: Any, work: Work, laps: Mapping[Workload, Sequence[Laps]], settings: SpeedSettings
) -> dict[str, Any]:
    """One model's part of the record."""
    return {
        "model": name,
        "revision": revision_of(model),
        "num_layers": Decoder(model, verify=False).num_layers,
        "num_parameters": count_parameters(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        **asdict(work),
        "speeds": [_speeds(load, turns, settings) for load, turns in laps.items()],
    }


def _speeds(load: Workload, turns: Sequence[Laps], settings: SpeedSettings) -> dict[str, Any]:
    """The medians of one workload: seconds of all sequences together, and tokens a second."""
    prefill, decode = (median(getattr(laps, phase) for laps in turns) for phase in ("prefill", "decode"))
    return {
        **asdict(load),
        "prefill_seconds": prefill,
        "first_token_seconds": median(laps.first_token for laps in turns),
        "decode_seconds": decode,
        "prefill_tokens_per_second": load.batch_size * settings.prompt_tokens / prefill,
        "decode_tokens_per_second": load.batch_size * settings.new_tokens / decode,
    }


# ---- before the first expensive step -------------------------------------------------------------------------------------


def _check(sources: Sequence[str], settings: SpeedSettings, loading: Mapping[str, Any], progress: Progress) -> None:
    """Refuse what cannot be measured, and say what is not comparable; reads the configurations only."""
    if len(sources) < 2:
        raise RequestError("there is nothing to compare the dense model with; give a pruned model as well")
    twice = next((source for source in sources if sources.count(source) > 1), None)
    if twice is not None:
        raise RequestError(f"{twice} is given twice; give different models")
    configs = {source: load_config(source, **loading) for source in sources}
    check_room(configs, settings)
    dense, *others = (configs[source].get_text_config() for source in sources)
    for source, other in zip(sources[1:], others, strict=True):
        for name, what in (("vocab_size", "vocabulary"), ("hidden_size", "hidden size")):
            mine, theirs = getattr(dense, name, None), getattr(other, name, None)
            if mine != theirs:
                progress.note(
                    f"{source} has a {what} of {theirs}, {sources[0]} of {mine}: fewer layers are not all that differs"
                )


def _warn_of_memory(weights: int, progress: Progress) -> None:
    """Say so if the weights, bytes as stored, are more than what is free."""
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available
    if weights > free:
        progress.note(
            f"the weights of all models are {weights / 1e9:.1f} GB and only {free / 1e9:.1f} GB are free: if it fails, bench "
            "fewer models at once, or give --dtype bfloat16"
        )


def _give_back_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
