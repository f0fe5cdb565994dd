"""`secateur estimate`: memory and time of a run, from the configuration alone."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from secateur.cli.options import (
    add_checkpoint,
    add_method,
    add_recovery,
    add_settings,
    method_of,
    print_json,
    recovery_of,
    say_next,
    settings_of,
)
from secateur.cli.words import (
    carried_over,
    number_or_text,
    parse_amount,
    refuse_settings_of_others,
    refuse_without_effect,
)

if TYPE_CHECKING:
    from secateur.cli.parser import Parser
    from secateur.estimation.task_size import TaskSize
    from secateur.training.settings import FineTuning

__all__ = ["EXAMPLES", "SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "what prune or tune would take: memory and time of each phase, from the configuration alone"
USAGE = "MODEL --drop N [--method NAME] [--recover KIND | --num-train N] [--hardware NAME] [--devices N] [OPTIONS]"
EXAMPLES = (
    "secateur estimate MODEL --drop 25% --hardware h100",
    "secateur estimate MODEL --drop 25% --num-train 5000",
)

_WINDOWS = {"sequence_length": 256, "num_sequences": 128, "num_eval_sequences": 64}
"""Options of text, which `tune` has none of, and their defaults."""

_BATCH_SIZE = 4
"""Windows per forward pass; `tune` has a batch size of its own."""

_ALONE = "without --num-train; add that, or leave it out"
"""Why an option of `tune` has no effect."""

_OF_BOTH = ("hardware", "devices", "sharded", "dtype", "precision", "revision", "trust_remote_code")


def add_options(parser: Parser) -> None:
    """The options of this command."""
    from secateur.estimation.task_size import TaskSize
    from secateur.training.settings import FineTuning

    parser.add_argument("model", metavar="MODEL", help="hub id or local directory; config.json is enough")
    parser.add_argument(
        "--drop", type=number_or_text(), required=True, help="how many layers go: a count (8) or a share (25%)"
    )
    explained = ("tokens per window", "calibration windows", "windows to measure perplexity on")
    for (name, default), what in zip(_WINDOWS.items(), explained, strict=True):
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    parser.add_argument(
        "--batch_size", type=int,
        help="windows per forward pass (4 if null), or with --num-train examples per optimiser step (16 if null)",
    )  # fmt: skip
    parser.add_argument(
        "--hardware", type=str, default="here",
        help="this machine, where a few of the layers are timed (here), or a card by its data sheet: h100, a100-80gb, rtx4090, …",
    )  # fmt: skip
    parser.add_argument("--devices", type=int, default=1, help="devices that work on it at once")
    parser.add_argument(
        "--sharded", action="store_true",
        help="trainings share weights, gradients and moments out over the devices (FSDP); choosing has the whole model on each",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="of the weights"
    )
    add_method(parser, default=None, meant="elder, or with --num-train gradpruner, if null")
    add_recovery(parser)
    parser.add_argument("--num_train", type=int, help="training examples of a task; what tune would take is estimated")
    add_settings(parser, TaskSize, without={"num_train"})
    add_settings(parser, FineTuning, without={"batch_size"})
    parser.add_argument(
        "--tune_dense", action="store_true", help="with --num-train, the dense model is fine-tuned alike"
    )
    add_checkpoint(parser)


def run(options: dict[str, Any], progress: Any, words: list[str]) -> None:
    """Do what was asked for."""
    from secateur.report.console import results_console
    from secateur.report.estimate_table import show_estimate

    of_tune = options["num_train"] is not None
    options["method"] = options["method"] or ("gradpruner" if of_tune else "elder")
    refuse_settings_of_others(words, options["method"])
    found = (_of_tune if of_tune else _of_prune)(options, progress, words)
    if options["json"]:
        print_json(found)
        return
    show_estimate(found, results_console())
    alone = ("hardware", "devices", "mean_tokens", "completion_tokens", "num_options")
    typed = carried_over(words, without=alone, flags=("sharded",))
    say_next(progress, found["command"], *typed, "--data", "SPEC", "--out", "DIR")


def _of_prune(options: dict[str, Any], progress: Any, words: list[str]) -> dict[str, Any]:
    recovery, method, drop = recovery_of(options), method_of(options), parse_amount(options["drop"], "--drop")
    task, tuning = _fine_tuning_of({**options, "num_train": 1, "batch_size": None})  # holds values to their bounds
    for settings in (task, tuning):
        refuse_without_effect(options, _defaults(settings), words, _ALONE)
    refuse_without_effect(options, {"tune_dense": False}, words, _ALONE)
    batch_size = _BATCH_SIZE if options["batch_size"] is None else options["batch_size"]

    from secateur.forecast import forecast

    return forecast(
        options["model"], method=method, recovery=recovery, drop=drop,
        batch_size=batch_size, **{name: options[name] for name in (*_WINDOWS, *_OF_BOTH)}, progress=progress,
    )  # fmt: skip


def _of_tune(options: dict[str, Any], progress: Any, words: list[str]) -> dict[str, Any]:
    from secateur.training.recovery import Recovery

    of_prune = {**_WINDOWS, **_defaults(Recovery())}
    refuse_without_effect(options, of_prune, words, "beside --num-train; leave it out")
    task, tuning = _fine_tuning_of(options)
    method, drop = method_of(options), parse_amount(options["drop"], "--drop")

    from secateur.forecast import forecast_tuning

    return forecast_tuning(
        options["model"], method=method, task=task, tuning=tuning, tune_dense=options["tune_dense"], drop=drop,
        **{name: options[name] for name in _OF_BOTH}, progress=progress,
    )  # fmt: skip


def _fine_tuning_of(options: dict[str, Any]) -> tuple[TaskSize, FineTuning]:
    """The task and how to fine-tune on it."""
    from secateur.estimation.task_size import TaskSize
    from secateur.training.settings import FineTuning

    size = FineTuning.batch_size if options["batch_size"] is None else options["batch_size"]
    return settings_of(TaskSize, options), settings_of(FineTuning, {**options, "batch_size": size})


def _defaults(settings: Any) -> dict[str, Any]:
    """Option → what it is where nobody asks for anything."""
    own = ("num_train", "batch_size")
    fields = [field for field in dataclasses.fields(settings) if field.name not in own]
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in fields
    }
