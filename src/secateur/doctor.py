"""What this machine has for a run, and what is missing for which feature."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil
import torch

from secateur.loading import autocast_dtype

__all__ = ["Finding", "examine"]

State = Literal["ok", "missing", "warning"]

_FEATURES = {
    # module: package, what it is for, how it comes
    "gguf": ("gguf", "cut GGUF files, demo", "pip install 'secateur[gguf]'"),
    "lm_eval": ("lm-eval", "eval --tasks", "pip install 'secateur[eval]'"),
    "matplotlib": ("matplotlib", "plots of compare", "pip install 'secateur[plots]'"),
    "rouge_score": ("rouge-score", "tune --metric generation", "pip install 'secateur[generation]'"),
    "bert_score": ("bert-score", "BERTScore in tune --metric generation", "pip install 'secateur[generation]'"),
    "shtab": ("shtab", "completion of commands in a shell", "pip install 'secateur[completion]'"),
    "trl": ("trl", "IGIACallback inside trl's SFTTrainer", "pip install trl"),
    "bitsandbytes": ("bitsandbytes", "4-bit base models, 8-bit optimisers", "pip install bitsandbytes"),
    "tensorboard": ("tensorboard", "trainings that report_to tensorboard", "pip install tensorboard"),
    "wandb": ("wandb", "trainings that report_to wandb", "pip install wandb"),
    "mlflow": ("mlflow", "trainings that report_to mlflow", "pip install mlflow"),
    "deepspeed": ("deepspeed", "ZeRO through accelerate", "pip install deepspeed"),
}
_CORE = ("secateur", "torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "huggingface_hub")
_LITTLE = 10e9
"""Bytes of free disk below which a checkpoint of a few billion parameters does not fit."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: State
    says: str


def examine(*, online: bool = True, timeout: float = 3.0) -> list[Finding]:
    """Look at versions, devices, memory, disk, the hub, and what optional packages would add.

    Args:
        online: ask the hub whether it answers.
        timeout: seconds that it has.
    """
    return [
        Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}"),
        *(_package(name) for name in _CORE),
        _devices(),
        _memory(),
        _disk(),
        _hub(online, timeout),
        *(_feature(module, *about) for module, about in _FEATURES.items()),
        _converter(),
    ]


def _package(name: str) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        return Finding(name, "missing", "not installed: pip install secateur")


def _devices() -> Finding:
    if not torch.cuda.is_available():
        native = autocast_dtype("auto", torch.device("cpu")) is not None
        bfloat16 = "native" if native else "emulated: float32 is faster"
        return Finding("devices", "ok", f"{torch.get_num_threads()} CPU threads, no GPU; bfloat16 is {bfloat16}")
    cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return Finding("devices", "ok", ", ".join(f"{card.name} ({card.total_memory / 1e9:.0f} GB)" for card in cards))


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    return Finding("memory", "ok", f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free")


def _disk() -> Finding:
    """Free space where the hub's cache is, or will be."""
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    return Finding("disk", "warning" if free < _LITTLE else "ok", f"{free / 1e9:.0f} GB free at the hub's cache")


def _hub(online: bool, timeout: float) -> Finding:
    from huggingface_hub import HfApi, constants, get_token

    token = "a token is set" if get_token() else "no token: gated models cannot be read"
    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "warning", "offline by HF_HUB_OFFLINE: only what is in the cache can be read")
    if not online:
        return Finding("hub", "ok", f"not asked; {token}")
    try:
        HfApi().model_info("HuggingFaceTB/SmolLM2-135M", timeout=timeout)
    except Exception as error:  # of any type: no network, a proxy, a changed answer
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        return Finding("hub", "warning", f"does not answer ({reason}): give local checkpoints")
    return Finding("hub", "ok", f"answers; {token}")


def _feature(module: str, package: str, what: str, how: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(package, "missing", f"for {what}: {how}")
    try:
        return Finding(package, "ok", f"{version(package)}, for {what}")
    except PackageNotFoundError:
        return Finding(package, "ok", f"for {what}")


def _converter() -> Finding:
    from secateur.errors import RequestError
    from secateur.surgery.convert import find_converter

    try:
        words = find_converter(None)
    except RequestError:
        return Finding(
            "llama.cpp", "missing", "for --format gguf: its convert_hf_to_gguf.py, on the path or by --converter"
        )
    return Finding("llama.cpp", "ok", f"{Path(words[-1]).name}, for --format gguf")
