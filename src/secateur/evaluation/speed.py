"""How fast models read and write, measured in turn on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from secateur.errors import RequestError
from secateur.evaluation.inference import inference, input_device
from secateur.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["SpeedResult", "measure_speed"]

_SILENT = Silent()
_WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class SpeedResult:
    """Median speeds of one sequence (batch 1)."""

    prefill_tokens_per_second: float
    """Prompt tokens read a second."""

    decode_tokens_per_second: float
    """Tokens written a second, one after the other, from the cache."""

    prompt_tokens: int
    """Tokens of the prompt."""

    new_tokens: int
    """Tokens written after it."""

    repeats: int
    """Measurements the medians are taken over."""


def measure_speed(
    models: Mapping[str, PreTrainedModel],
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 24,
    repeats: int = 3,
    progress: Progress = _SILENT,
) -> dict[str, SpeedResult]:
    """Measure prefill and greedy decoding of each model, in turn (A B A B …), after one short warm-up each.

    In turn, because a machine slows down and speeds up over seconds: each model then meets the same weather. The
    prompt is the same made-up tokens for all; the end-of-text token does not stop the decoding.

    Args:
        models: the models by name.
        prompt_tokens: tokens of the prompt; fewer where a model's context is too short for them.
        new_tokens: tokens to decode.
        repeats: measurements a model.
        progress: told of each measurement.

    Raises:
        RequestError: if a number is below one, no model is given, or no model's context has room for the new tokens.
    """
    if not models or min(prompt_tokens, new_tokens, repeats) < 1:
        raise RequestError("cannot measure speed: give at least one model, prompt token, new token and repeat")
    prompt = _prompt(models, prompt_tokens, new_tokens)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    with progress.track("measuring speed", len(models) * (repeats + 1)) as advance:
        for turn in range(repeats + 1):
            for name, model in models.items():
                times = _time(model, prompt, new_tokens if turn else min(new_tokens, _WARM_UP_TOKENS))
                if turn:  # turn 0 warms up
                    seconds[name].append(times)
                advance(1)
    return {name: _result(times, prompt.shape[1], new_tokens) for name, times in seconds.items()}


def _prompt(models: Mapping[str, PreTrainedModel], prompt_tokens: int, new_tokens: int) -> Tensor:
    """Made-up token ids, (1, tokens), that every model knows and has room for."""
    configs = [model.config.get_text_config() for model in models.values()]
    room = min(getattr(config, "max_position_embeddings", None) or prompt_tokens + new_tokens for config in configs)
    if room <= new_tokens:
        raise RequestError(f"cannot decode {new_tokens} tokens in a context of {room}; choose 1..{room - 1} new tokens")
    vocabulary = min(config.vocab_size for config in configs)
    length = min(prompt_tokens, room - new_tokens)
    return torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(0))


def _time(model: PreTrainedModel, prompt: Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds to read the prompt, (1, tokens), and seconds to write `new_tokens` tokens after it."""
    device = input_device(model)
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
    with inference(model):
        input_ids = prompt.to(device)
        start = _clock(device)
        output = model(input_ids=input_ids, use_cache=True, **last_only)
        middle = _clock(device)
        for _ in range(new_tokens):
            output = _step(model, output, device)
        return middle - start, _clock(device) - middle


def _step(model: PreTrainedModel, output: Any, device: torch.device) -> Any:
    """Append the most likely token and run the model on it."""
    token = output.logits[:, -1:].argmax(dim=-1).to(device)  # (1, 1)
    return model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)


def _clock(device: torch.device) -> float:
    """Seconds, after the device has done all it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def _result(seconds: list[tuple[float, float]], prompt_tokens: int, new_tokens: int) -> SpeedResult:
    return SpeedResult(
        prefill_tokens_per_second=prompt_tokens / median(prefill for prefill, _ in seconds),
        decode_tokens_per_second=new_tokens / median(decode for _, decode in seconds),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=len(seconds),
    )
