"""A user's own options of `transformers.Trainer`, held to what it takes before anything runs; heavy imports are inside."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from secateur.errors import RequestError

__all__ = ["check_trainer_options", "for_another_machine", "options_as_named_here"]

_ELSEWHERE = {
    "push_to_hub": "that is --push-to-hub, when all is proven",
    "hub_token": "log in by hf auth login, or set HF_TOKEN",
    "seed": "that is --seed",
    "load_best_model_at_end": "the best epoch is taken wherever there is something to choose it by",
    "save_total_limit": "the last checkpoint is kept, and the best, until the run has ended",
    "deepspeed": "that is for accelerate's config, see docs/scaling.md",
    "fsdp": "that is for accelerate's config, see docs/scaling.md",
    "parallelism_config": "that is for accelerate's config, see docs/scaling.md",
}
"""Options of the Trainer that are asked for in another place, and where."""

_PLAIN = {bool, int, float, str, dict, list, NoneType}
_UNIONS = (Union, UnionType)

_OPTIMIZER = {
    "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "learning_rate", "lr_scheduler_type",
    "lr_scheduler_kwargs",
}  # fmt: skip
_NOT_NEGATIVE: tuple[Callable[[Any], bool], str] = (lambda value: value >= 0, "0 or more")
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "warmup_steps": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "dataloader_num_workers": _NOT_NEGATIVE,
    "label_smoothing_factor": (lambda value: 0 <= value < 1, "a share of 0 or more and less than 1"),
    "neftune_noise_alpha": (lambda value: value > 0, "above 0"),
    "logging_steps": (lambda value: value > 0, "above 0"),
}
"""Options that the Trainer itself does not hold to anything, and what they must be."""

_FOR_ANOTHER_MACHINE: ContextVar[bool] = ContextVar("for_another_machine", default=False)


@contextmanager
def for_another_machine() -> Iterator[None]:
    """Settings that are made in here are not for this machine: it need not have the packages and devices they ask for."""
    token = _FOR_ANOTHER_MACHINE.set(True)
    try:
        yield
    finally:
        _FOR_ANOTHER_MACHINE.reset(token)


def check_trainer_options(
    options: Mapping[str, Any], *, also: Collection[str] = (), elsewhere: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Hold further options of the Trainer to the names it knows, and those in `also`, but for those asked for `elsewhere`.

    Raises:
        RequestError: if one is unknown, or asks for what is not here: a package that is reported to or has the optimiser, a GPU.
    """
    if not options:  # and nothing heavy is imported
        return
    from transformers import TrainingArguments
    from transformers.integrations import get_available_reporting_integrations

    unknown = sorted(options_as_named_here(options).keys() - {*TrainingArguments.__dataclass_fields__, *also})
    if unknown:
        raise RequestError(f"trainer has no option '{unknown[0]}'; see transformers.TrainingArguments for what it has")
    _check_types(options, TrainingArguments)
    for name, where in {**_ELSEWHERE, **elsewhere}.items():
        if name in options:
            raise RequestError(f"trainer cannot set {name}: {where}")
    _check_ranges(options)
    if "optim" in options:
        _check_optimizer_name(options["optim"])
    if _FOR_ANOTHER_MACHINE.get():
        return
    if options.get("torch_compile_backend") is not None:
        _check_compiler(options["torch_compile_backend"])
    asked = options.get("report_to") or ()
    wanted = {asked} if isinstance(asked, str) else set(asked)
    missing = sorted(wanted - {"none", "all", *(get_available_reporting_integrations() if wanted else ())})
    if missing:
        raise RequestError(f"cannot report to '{missing[0]}', which is not installed here; pip install it, or say none")
    _check_optimizer({name: value for name, value in options.items() if name in _OPTIMIZER})
    _check_offload(options)


def options_as_named_here(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the Trainer by the names it has here: `activation_checkpointing` is `gradient_checkpointing` before 5.23."""
    from transformers import TrainingArguments

    known = TrainingArguments.__dataclass_fields__
    older = {name: name.replace("activation_", "gradient_", 1) for name in options.keys() - known.keys()}
    return {older[name] if older.get(name) in known else name: value for name, value in options.items()}


def _check_types(options: Mapping[str, Any], arguments: type) -> None:
    """Hold plain values to the types that the Trainer states for them; what has other types it reads itself."""
    hints = get_type_hints(arguments)
    for name, value in options.items():
        (here,) = options_as_named_here({name: value})
        stated = hints.get(here)
        allowed = {
            get_origin(each) or each for each in (get_args(stated) if get_origin(stated) in _UNIONS else (stated,))
        }
        if not allowed <= _PLAIN or type(value) in allowed or (type(value) is int and float in allowed):
            continue
        wanted = " or ".join(sorted("null" if each is NoneType else each.__name__ for each in allowed))
        raise RequestError(f"trainer: {name} is of type {wanted}, not '{value}'")


def _check_optimizer_name(name: Any) -> None:
    from transformers.training_args import OptimizerNames

    try:
        OptimizerNames(name)
    except ValueError:
        raise RequestError(
            f"the Trainer has no optim '{name}'; choose adamw_torch, or another of its OptimizerNames"
        ) from None


def _check_ranges(options: Mapping[str, Any]) -> None:
    """What the Trainer takes without a word and fails of once it trains, or trains with as nobody means."""
    for name, (holds, words) in _RANGES.items():
        if options.get(name) is not None and not holds(options[name]):
            raise RequestError(f"trainer: {name} is {words}, not {options[name]}")


def _check_compiler(backend: Any) -> None:
    from torch._dynamo import list_backends

    known = list_backends(exclude_tags=None)
    if backend not in known:
        raise RequestError(f"trainer: torch_compile_backend is one of {', '.join(known)}, not '{backend}'")


def _check_optimizer(named: Mapping[str, Any]) -> None:
    """Have the Trainer make the optimiser and the schedule, which it would do when the layers are chosen."""
    if not named:
        return
    import torch
    from transformers import SchedulerType, Trainer, TrainingArguments, get_scheduler

    class Arguments(TrainingArguments):  # type: ignore[misc]
        """Those of the Trainer, without the devices and processes that are set up for a training."""

        def __post_init__(self) -> None:
            pass

    try:
        schedule = SchedulerType(named.get("lr_scheduler_type", "linear"))
    except ValueError:
        known = ", ".join(kind.value for kind in SchedulerType)
        raise RequestError(
            f"trainer: lr_scheduler_type is one of {known}, not '{named['lr_scheduler_type']}'"
        ) from None
    arguments, kind = Arguments(output_dir="unused", **named), None
    try:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer = kind([torch.nn.Parameter(torch.zeros(2, 2))], **settings)
        more = arguments.lr_scheduler_kwargs or {}
        more = json.loads(more) if isinstance(more, str) else more
        get_scheduler(schedule, optimizer, 1, 10, scheduler_specific_kwargs=more)
    except ImportError as error:
        raise RequestError(
            f"trainer cannot use optim '{named['optim']}' here: {' '.join(str(error).split())}; or choose adamw_torch"
        ) from error
    except (ValueError, TypeError) as error:
        if kind is not None and kind.__module__.startswith("torch."):  # others may ask for the model, and say it then
            said = ", ".join(f"{name} {value}" for name, value in named.items())
            raise RequestError(f"trainer cannot train with {said}: {' '.join(str(error).split())}") from error
    except Exception:  # noqa: S110  # of any type, of an optimiser that asks for more than a weight
        pass


def _check_offload(options: Mapping[str, Any]) -> None:
    """Activations are offloaded to memory that is pinned for a GPU."""
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        asked = options.get(name)
        if isinstance(asked, Mapping) and asked.get("offload"):
            import torch

            if not torch.cuda.is_available():
                raise RequestError(
                    f"trainer cannot offload activations here, where there is no GPU to offload from; leave offload out of {name}"
                )
