"""How long models take to read and to write, measured in turn on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from secateur.context import check_context
from secateur.errors import RequestError, RunError
from secateur.evaluation.graphs import recorded_step
from secateur.evaluation.inference import inference, input_device, read_prompt
from secateur.progress import Progress, Silent, duration
from secateur.settings import check_at_least

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["Laps", "SpeedSettings", "Workload", "check_room", "made_up_prompt", "measure_speed", "time_once"]

_SILENT = Silent()
_WARM_UP_TOKENS = 4


@dataclass(frozen=True, kw_only=True)
class SpeedSettings:
    """What is measured, and how often."""

    prompt_tokens: int = 128
    """Tokens of each prompt."""

    new_tokens: int = 32
    """Tokens written after each prompt and its first token, one after the other, from the cache."""

    batch_sizes: tuple[int, ...] = (1, 4, 16)
    """Sequences read and written at once; each size is measured."""

    repeats: int = 5
    """Turns; in each, every model is measured once at every batch size."""

    cuda_graphs: bool = False
    """Write with CUDA graphs too."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "prompt_tokens", "new_tokens", "repeats")
        if not self.batch_sizes:
            raise RequestError("there is no batch size to measure; give at least one, such as 1")
        for index, size in enumerate(self.batch_sizes):
            if size < 1:
                raise RequestError(f"a batch size must be 1 or more, not {size}")
            if size in self.batch_sizes[:index]:
                raise RequestError(f"the batch size {size} is given twice; give each once")
        if self.cuda_graphs and not torch.cuda.is_available():
            raise RequestError("CUDA graphs need a CUDA device, and torch sees none here; leave them out")

    def workloads(self) -> list[Workload]:
        """What every model is given to do in a turn, in order."""
        ways = (False, True) if self.cuda_graphs else (False,)
        return [Workload(batch_size=size, cuda_graphs=graphs) for size in self.batch_sizes for graphs in ways]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One way of reading and writing."""

    batch_size: int = 1
    """Sequences at once."""

    cuda_graphs: bool = False
    """Whether the steps of writing are replayed from a CUDA graph."""


@dataclass(frozen=True, kw_only=True)
class Laps:
    """What one measurement took, in seconds, for all sequences of the batch together."""

    prefill: float
    """Reading the prompts: one pass that fills the cache and ends with the logits of each prompt's last token."""

    first_token: float
    """The same, until the first token of each sequence is chosen and on the host."""

    decode: float
    """Writing the new tokens after that, until the last is on the host."""


def measure_speed(
    models: Mapping[str, PreTrainedModel],
    settings: SpeedSettings,
    *,
    progress: Progress = _SILENT,
    says_how_long: bool = False,
) -> dict[Workload, dict[str, tuple[Laps, ...]]]:
    """Measure greedy generation of each model, in turn (A B A B …), after one short warm-up turn.

    In turn, because a machine slows down and speeds up over seconds: what the models need for the same work is measured
    one right after the other, so that each meets the same weather, and can be compared turn by turn. The prompts are the same
    made-up tokens for all; an end-of-text token does not stop the writing.

    Args:
        models: the models by name, all in memory at once.
        settings: what is measured, and how often.
        progress: told of each measurement.
        says_how_long: after the first turn, how long the others will take.

    Returns:
        For each workload and model its laps, one a turn.

    Raises:
        RequestError: if no model is given, or a model's context is too short.
        RunError: if the memory of the device does not suffice, or CUDA graphs cannot be made of a model.
    """
    if not models:
        raise RequestError("there is no model to measure; give at least one")
    check_room({name: model.config for name, model in models.items()}, settings)
    workloads = settings.workloads()
    laps: dict[Workload, dict[str, list[Laps]]] = {load: {name: [] for name in models} for load in workloads}
    with progress.track("measuring speed", len(models) * len(workloads) * (settings.repeats + 1)) as advance:
        for turn in range(settings.repeats + 1):
            for load in workloads:
                prompt = made_up_prompt(models.values(), load.batch_size, settings.prompt_tokens)
                for name, model in models.items():
                    new_tokens = settings.new_tokens if turn else min(settings.new_tokens, _WARM_UP_TOKENS)
                    measured = time_once(model, prompt, new_tokens, cuda_graphs=load.cuda_graphs)
                    if turn:  # turn 0 warms up
                        laps[load][name].append(measured)
                    advance(1)
            if says_how_long and turn == 1 < settings.repeats:
                taken = sum(lap.first_token + lap.decode for named in laps.values() for (lap,) in named.values())
                left = settings.repeats - 1
                progress.note(
                    f"a turn takes about {duration(taken)}: about {duration(left * taken)} for the {left} to come"
                )
    return {load: {name: tuple(turns) for name, turns in by_name.items()} for load, by_name in laps.items()}


def check_room(configs: Mapping[str, PretrainedConfig], settings: SpeedSettings) -> None:
    """Make sure that prompt and new tokens fit into the context of each model.

    Raises:
        RequestError: naming the model and its context.
    """
    wanted = {"prompt tokens": settings.prompt_tokens, "new tokens": settings.new_tokens}
    for name, config in configs.items():
        check_context(name, config, wanted)


def made_up_prompt(models: Iterable[PreTrainedModel], batch_size: int, tokens: int) -> Tensor:
    """Token ids (batch, tokens) that every model knows, the same each time."""
    vocabulary = min(model.config.get_text_config().vocab_size for model in models)
    return torch.randint(vocabulary, (batch_size, tokens), generator=torch.Generator().manual_seed(0))


def time_once(model: PreTrainedModel, prompt: Tensor, new_tokens: int, *, cuda_graphs: bool = False) -> Laps:
    """Read the prompts, (batch, tokens), write `new_tokens` tokens after each and its first token, and take the time.

    Raises:
        RunError: if the memory of the device does not suffice, or CUDA graphs cannot be made of the model.
    """
    watch = _stopwatch(input_device(model))
    try:
        with inference(model):
            return _timed(model, prompt.to(input_device(model)), new_tokens, cuda_graphs, watch)
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"the models and a batch of {len(prompt)} do not fit into the memory of the device together; choose smaller "
            "batch sizes, fewer prompt tokens or a dtype of 16 bits"
        ) from error


def _timed(model: Any, input_ids: Tensor, new_tokens: int, cuda_graphs: bool, watch: _Stopwatch) -> Laps:
    replay, cache = recorded_step(model, input_ids, new_tokens) if cuda_graphs else (None, None)
    watch.mark()
    output = read_prompt(model, input_ids, cache)
    watch.mark()
    token = _likeliest(output, input_ids.device)
    token.cpu()
    watch.mark()
    for _ in range(new_tokens):
        output = replay(token) if replay else _step(model, token, output.past_key_values)
        token = _likeliest(output, input_ids.device)
    token.cpu()
    watch.mark()
    prefill, choice, decode = watch.laps()
    return Laps(prefill=prefill, first_token=prefill + choice, decode=decode)


def _step(model: Any, token: Tensor, cache: Any) -> Any:
    """One pass over the last token of each sequence, (batch, 1)."""
    return model(input_ids=token, past_key_values=cache, use_cache=True)


def _likeliest(output: Any, device: torch.device) -> Tensor:
    """The most likely next token of each sequence, (batch, 1)."""
    token: Tensor = output.logits[:, -1:].argmax(dim=-1)
    return token.to(device)


# ---- taking the time -----------------------------------------------------------------------------------------------------


class _Stopwatch(Protocol):
    """Marks moments in the work of a device."""

    def mark(self) -> None:
        """Now: after all that the device was told to do so far, before all that it is told next."""
        ...

    def laps(self) -> list[float]:
        """The seconds between each two marks."""
        ...


class _HostStopwatch:
    """The clock of this machine, read when the device has done all it was told to do."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._moments: list[float] = []

    def mark(self) -> None:
        if self._device.type == "mps":
            torch.mps.synchronize()
        self._moments.append(time.perf_counter())

    def laps(self) -> list[float]:
        return [end - start for start, end in zip(self._moments, self._moments[1:], strict=False)]


class _CudaStopwatch:
    """Events in the stream of a CUDA device: marking does not make the host wait."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[Any] = []

    def mark(self) -> None:
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._events.append(event)

    def laps(self) -> list[float]:
        torch.cuda.synchronize(self._device)
        return [start.elapsed_time(end) / 1000 for start, end in zip(self._events, self._events[1:], strict=False)]


def _stopwatch(device: torch.device) -> _Stopwatch:
    return _CudaStopwatch(device) if device.type == "cuda" else _HostStopwatch(device)
