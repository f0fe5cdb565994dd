"""What several commands ask for alike, as options of a parser and as what those options mean."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from secateur.cli.words import number_or_text, parse_amount, parse_increase, parse_layers, parse_memory, parse_ratio
from secateur.errors import OutputError, RequestError

if TYPE_CHECKING:
    from secateur.cli.parser import Parser

__all__ = [
    "add_checkpoint",
    "add_format",
    "add_loading",
    "add_method",
    "add_out",
    "add_placement",
    "add_push",
    "add_recovery",
    "add_resume",
    "add_seed",
    "add_settings",
    "add_target",
    "check_file",
    "check_places",
    "converter_of",
    "loading_of",
    "method_of",
    "placement_of",
    "print_json",
    "print_pruned",
    "push_finished",
    "recovery_of",
    "resume_of",
    "say_next",
    "settings_of",
    "target_of",
    "text_of",
    "upload_of",
]


def add_checkpoint(parser: Parser) -> None:
    """Where a model comes from, beside its name."""
    options = parser.titled("How the model is read")
    options.add_argument("--revision", type=str, help="branch, tag or commit of a hub id")
    options.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    options.add_argument(
        "--allow_pickle", action="store_true", help="read weights that are in .bin files alone: tensors, no code"
    )


def add_loading(parser: Parser) -> None:
    """How a model is loaded."""
    options = parser.titled("How the model is read")
    options.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="of the weights"
    )
    add_checkpoint(parser)


def add_placement(parser: Parser) -> None:
    """Where a model goes that is larger than one device."""
    options = parser.titled("How the model is read")
    options.add_argument(
        "--device_map", choices=["auto"], help="auto: fill all GPUs, then the CPU's memory, then the disk (one process)"
    )
    options.add_argument("--max_memory", type=str, help="with --device-map, the most of each: 0=70GB,cpu=200GB")
    options.add_argument(
        "--offload_folder", type=str, help="with --device-map, where weights go that are kept on the disk"
    )


def placement_of(options: dict[str, Any]) -> Any:
    """Where the model goes; None for one device.

    Raises:
        RequestError: if that makes no sense.
    """
    from secateur.loading import Placement
    from secateur.processes import launched, sharded, zero_stage

    if options["device_map"] is None:
        for name in ("max_memory", "offload_folder"):
            if options[name] is not None:
                raise RequestError(f"--{name.replace('_', '-')} has no effect without --device-map auto; add that")
        return None
    if launched() or sharded() or zero_stage():
        raise RequestError("--device-map spreads one process over all devices; run it without the launcher")
    most = None if options["max_memory"] is None else parse_memory(options["max_memory"], "--max-memory")
    return Placement(max_memory=most, offload_folder=options["offload_folder"])


def add_method(parser: Parser, *, default: str | None, meant: str | None = None) -> None:
    """The method, the settings of each, and what surrounds its work; `add_text` or a task stands before it.

    Args:
        parser: of the command.
        default: the method if none is named.
        meant: what is said where that depends on other options.
    """
    from secateur.methods import METHODS

    parser.methods = METHODS
    for name, method in METHODS.items():
        add_settings(parser, method, name, explained=f"settings of {name} ({method.paper})")
    parser.add_argument(
        "--method", type=str, default=default, help="; ".join(filter(None, [f"one of {', '.join(METHODS)}", meant]))
    )
    add_seed(parser)
    parser.add_argument(
        "--precision", choices=["auto", "fp32", "bf16"], default="auto",
        help="of the passes while choosing and preparing; auto is bf16 where the device has it natively",
    )  # fmt: skip


def add_settings(
    parser: Parser,
    of: type,
    group: str | None = None,
    *,
    explained: str | None = None,
    without: Collection[str] = (),
) -> None:
    """The fields of a dataclass of settings as options, with what it says of each, in a group of their own if that has a name.

    Those in `without` are left out, for the command to add itself.

    Types that are written as text are read here: to read them itself the parser would import what type checkers import, torch.
    """
    of.__init__.__annotations__.update(get_type_hints(of))  # type: ignore[misc]
    parser.add_settings(of, group, explained, without)


def add_seed(parser: Parser, of: str = "everything random") -> None:
    """The seed; numpy takes none below 0 and none of more than 32 bits."""
    from jsonargparse.typing import restricted_number_type

    seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])
    parser.add_argument("--seed", type=seed, default=0, help=f"seed of {of}")


def add_target(parser: Parser, *, budgets: bool = False) -> None:
    """How much goes; budgets are for commands that can search for it."""
    options = parser.titled("How much goes")
    options.add_argument("--drop", type=number_or_text(), help="how many layers go: a count (8) or a share (25%)")
    options.add_argument("--target_params", type=number_or_text(), help="parameters to be left: a share (75%)")
    options.add_argument("--layers", type=number_or_text(), help="which layers go: numbers and ranges (3,7,20-27)")
    if budgets:
        options.add_argument(
            "--max_ppl_increase", type=number_or_text(),
            help="as many layers go as this rise of the perplexity allows: a share (10%), measured with the layers bypassed",
        )  # fmt: skip
        options.add_argument(
            "--target_speedup", type=number_or_text(),
            help="as few layers go as this speed takes: a ratio (1.3), measured here, of prefill and decoding the smaller",
        )  # fmt: skip


def add_recovery(parser: Parser) -> None:
    """Training after the cut."""
    from secateur.training.recovery import Recovery

    add_settings(parser, Recovery)


def add_out(parser: Parser, *, what: str = "directory of the new checkpoint", default: str | None = None) -> None:
    """The new directory."""
    options = parser.titled("Where the result goes")
    options.add_argument("--out", type=str, required=default is None, default=default, help=what)
    options.add_argument("--overwrite", action="store_true", help="replace what is there, if it is a checkpoint")


def add_push(parser: Parser) -> None:
    """Uploading what was made."""
    options = parser.titled("Where the result goes")
    options.add_argument(
        "--push_to_hub", type=str, metavar="REPO_ID",
        help="when all is proven, upload all of --out to this repository (owner/name), the command in its record among it; "
        "log in by hf auth login or HF_TOKEN",
    )  # fmt: skip
    options.add_argument("--private", action="store_true", help="with --push-to-hub, make the repository a private one")


def upload_of(options: dict[str, Any]) -> Any:
    """Where the result is to be uploaded, held to what the hub allows; None if nowhere.

    Raises:
        RequestError: if it could not be.
    """
    from secateur.hub import Upload, checked
    from secateur.processes import by_first

    repo_id, private = options["push_to_hub"], options["private"]
    if repo_id is None:
        if private:
            raise RequestError("--private has no effect without --push-to-hub; add that, or leave it out")
        return None
    return by_first(lambda: checked(Upload(repo_id=repo_id, private=private)))


def push_finished(folder: Path, upload: Any, progress: Any) -> None:
    """Upload a result, if that was asked for; it is printed by then, so that a failure here takes nothing away."""
    from secateur.hub import not_told, push
    from secateur.processes import by_first

    if upload is not None:
        if (gap := not_told(folder)) is not None:
            progress.note(gap)
        progress.note(f"pushing {folder} to {upload.repo_id}")
        progress.note(f"pushed to {by_first(lambda: push(folder, upload))}")


def add_resume(parser: Parser) -> None:
    """Going on with a run that was interrupted, and what is kept for that."""
    options = parser.titled("Going on after an interruption")
    options.add_argument("--resume", action="store_true", help="go on with the run to --out that was interrupted")
    options.add_argument(
        "--checkpoint_minutes", type=float, default=5.0,
        help="weights are kept, to go on from, where so many minutes of work would be lost otherwise; 0 after every step",
    )  # fmt: skip


def resume_of(options: dict[str, Any]) -> dict[str, Any]:
    """The same, as `prune` and `tune` take it.

    Raises:
        RequestError: if the time is less than none.
    """
    minutes = options["checkpoint_minutes"]
    if not minutes >= 0:
        raise RequestError(f"--checkpoint-minutes is a time of 0 minutes or more, not {minutes:g}")
    return {"resume": options["resume"], "checkpoint_minutes": minutes}


def add_format(parser: Parser) -> None:
    """A GGUF file as well."""
    options = parser.titled("Where the result goes")
    options.add_argument(
        "--format", choices=["checkpoint", "gguf"], default="checkpoint",
        help="gguf: llama.cpp's converter makes a model.gguf in the new checkpoint as well",
    )  # fmt: skip
    options.add_argument("--converter", type=str, help="the command that runs llama.cpp's convert_hf_to_gguf.py")


def converter_of(options: dict[str, Any]) -> Sequence[str] | None:
    """The words that run the converter, if a GGUF file is asked for.

    Raises:
        RequestError: if there is none, or it would not be run.
    """
    from secateur.surgery.convert import find_converter

    if options["format"] == "gguf":
        return find_converter(options["converter"])
    if options["converter"] is not None:
        raise RequestError("--converter has no effect without --format gguf; add that, or leave it out")
    return None


def method_of(options: dict[str, Any]) -> Any:
    """The method that was asked for, with its settings."""
    from secateur.methods import method_named

    method_named(options["method"])
    return options[options["method"].replace("-", "_")]  # as the parser stores it


def text_of(options: dict[str, Any]) -> Any:
    """The calibration and evaluation text."""
    from secateur.request import TextSettings

    return settings_of(TextSettings, options)


def recovery_of(options: dict[str, Any]) -> Any:
    """The training after the cut; an option that would be without effect is refused, since nobody would notice.

    Raises:
        RequestError: if there is one, or a value makes no sense.
    """
    from secateur.training.recovery import Recovery, without_effect

    recovery: Recovery = settings_of(Recovery, options)
    if idle := without_effect(recovery):
        name, kinds = idle
        raise RequestError(
            f"--{name.replace('_', '-')} has no effect with --recover {recovery.recover}; add --recover "
            f"{' or '.join(kinds)}, or leave it out"
        )
    return recovery


def settings_of(of: Any, options: dict[str, Any]) -> Any:
    """A dataclass of settings from the options that are called like its fields."""
    return of(**{field.name: options[field.name] for field in dataclasses.fields(of)})


def loading_of(options: dict[str, Any]) -> dict[str, Any]:
    """How models are loaded and run, alike in all commands."""
    return {name: options[name] for name in ("dtype", "precision", "revision", "trust_remote_code", "seed")}


def target_of(options: dict[str, Any]) -> Any:
    """How much goes."""
    from secateur.request import Target

    share, increase, speedup = (options.get(name) for name in ("target_params", "max_ppl_increase", "target_speedup"))
    return Target(
        drop=None if options["drop"] is None else parse_amount(options["drop"], "--drop"),
        target_params=None if share is None else _share(share),
        layers=None if options["layers"] is None else parse_layers(options["layers"]),
        max_ppl_increase=None if increase is None else parse_increase(increase, "--max-ppl-increase"),
        target_speedup=None if speedup is None else parse_ratio(speedup, "--target-speedup"),
    )


def _share(text: str) -> float:
    amount = parse_amount(text, "--target-params")
    if not isinstance(amount, float):
        raise RequestError(f"--target-params is a share such as 75%, not '{text}'")
    return amount


def check_file(out: str | None, what: str) -> None:
    """Make sure, before anything expensive, that a file can be written to `out`, if one is asked for.

    Raises:
        OutputError: if it is a directory, or would lie in none.
    """
    if out is not None and (Path(out).is_dir() or not Path(out).absolute().parent.is_dir()):
        raise OutputError(f"cannot write {what} to {out}; choose a file in a directory that exists")


def check_places(options: dict[str, Any]) -> None:
    """Make sure, before anything heavy is imported, that what is read is there, and that `--out` can be written to.

    Raises:
        DataError: if data is not there.
        OutputError: if there is something else; a run that goes on may have its result there.
    """
    from secateur.data.text import check_there
    from secateur.surgery.output import check_output

    for name in ("data", "eval_data", "validation_data", "test_data"):
        if options.get(name) is not None:
            check_there(options[name])
    if not options.get("resume", True):
        check_output(options["out"], overwrite=options["overwrite"])


def print_pruned(result: Any, progress: Any, *, as_json: bool) -> None:
    """The result of a pruning, for people or as JSON."""
    if as_json:
        print_json({"out": str(result.path), **result.record})
        return
    from secateur.report.console import results_console, show_pruned

    show_pruned(result.record, str(result.path), results_console())
    say_next(progress, "eval", result.record["model"]["id"], str(result.path), "--data", "SPEC")


def say_next(progress: Any, *words: str) -> None:
    """The next sensible command, on standard error: what stands on standard output is the result."""
    progress.note(f"next: secateur {shlex.join(words)}")


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on standard output; what is not finite is null."""
    from secateur.values import finite

    print(json.dumps(finite(value), ensure_ascii=False, allow_nan=False))
