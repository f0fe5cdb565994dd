"""The command line: each command is a typed function; jsonargparse turns its signature and docstring into options.

Results go to standard output, everything else to standard error. Exit codes: 0 done; 2 the request was wrong; 1 it failed
on the way; 130 interrupted. Heavy imports are inside the commands, so that `--help` is fast.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from secateur.errors import RequestError, SecateurError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["main"]

_COMMANDS = {
    "demo": "the whole thing on a sample model, in minutes, offline after the first fetch",
    "score": "decide only: a score for each layer, and which would go",
    "prune": "make a smaller checkpoint: choose layers, prepare, cut, prove, measure",
    "tune": "fine-tune on a task, pruned on the way: score, merge, cut, fine-tune, prove, measure",
    "cut": "remove layers from a checkpoint, file to file: weights only, streamed, any size",
    "carry": "carry a LoRA adapter of the dense model over to the pruned one",
    "eval": "measure the perplexity of one or more models on the same text",
}

_USAGE = {
    "demo": "[--out DIR] [OPTIONS]",
    "score": "MODEL --data SPEC [--method NAME] [--drop N] [OPTIONS]",
    "prune": "MODEL --data SPEC --out DIR (--drop N | --target-params SHARE | --layers LIST) [--method NAME] [OPTIONS]",
    "tune": "MODEL --data SPEC --out DIR (--drop N | --target-params SHARE | --layers LIST) [--train full|lora] [OPTIONS]",
    "cut": "CHECKPOINT --out DIR (--layers LIST | --plan FILE) [OPTIONS]",
    "carry": "ADAPTER --plan FILE --out DIR [OPTIONS]",
    "eval": "MODEL [MODEL ...] --data SPEC [OPTIONS]",
}

_MOST_LAYERS = 10_000  # in one range; more than any model has

_OPTION = re.compile(r"(?<![\w-])--[A-Za-z][\w.-]*")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the value is the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        words = ["--help"]
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return _run(words)
    except SystemExit as done:  # the parser's --help and --print-config
        return int(done.code or 0)
    except (KeyboardInterrupt, Exception) as error:
        return _failed(error, debug)


def _failed(error: BaseException, debug: bool) -> int:
    """Say in one line what happened; the exit code."""
    if isinstance(error, KeyboardInterrupt):
        kept = (
            _one_line(error) if error.args else "nothing half-written is left; run the same command again to start over"
        )
        _say(f"interrupted: {kept}")
        return 130
    if isinstance(error, BrokenPipeError):
        return 1
    if debug:
        traceback.print_exc()
    if isinstance(error, SecateurError):
        _say(f"error: {_one_line(error)}")
        return 2 if isinstance(error, RequestError) else 1
    where = "" if debug else f" (details in {_keep_traceback()}; please report it)"
    _say(f"error: {type(error).__name__}: {_one_line(error)[:300]}{where}")
    return 1


def _run(words: list[str]) -> int:
    import difflib

    if words[0] == "--help":
        print(_overview())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"secateur {version('secateur')}")
        return 0
    if words[0] not in _COMMANDS:
        near = difflib.get_close_matches(words[0], _COMMANDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(_COMMANDS)}"
        raise RequestError(f"unknown command '{words[0]}'; {hint}")
    parser = _parser(words[0])
    plain = [_with_underscores(word) for word in words[1:]]
    try:
        parsed = parser.parse_args(plain)
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("jsonargparse", "argparse", "yaml"):
            raise
        raise RequestError(_explained(error, parser, words[0])) from error
    _refuse_settings_of_others(plain, parsed.get("method"))
    instantiate = (
        getattr(parser, "instantiate", None) or parser.instantiate_classes
    )  # its name before jsonargparse 4.49
    values = instantiate(parsed)
    quiet, verbose = values.pop("quiet"), values.pop("verbose")
    values.pop("config", None)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr)
    if not verbose:
        warnings.simplefilter("ignore")
        for name in ("httpx", "huggingface_hub", "transformers", "datasets"):
            logging.getLogger(name).setLevel(logging.ERROR)
    from secateur.report.console import RichProgress

    command: Callable[..., None] = globals()[f"_{words[0]}"]
    command(vars(values), RichProgress(quiet=quiet), ["secateur", *words])
    return 0


def _overview() -> str:
    lines = ["usage: secateur COMMAND [OPTIONS]   (secateur COMMAND --help explains each option)", ""]
    lines += [f"  {name:<8}{what}" for name, what in _COMMANDS.items()]
    return "\n".join([*lines, "", "  --version, --debug (show the traceback of an error)"])


# ---- options -----------------------------------------------------------------------------------------------------------


def _parser(command: str) -> ArgumentParser:
    """The options of one command."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    class Parser(ArgumentParser):
        """Names of options are Python names inside, and are shown with dashes."""

        def format_help(self, formatter: Any = None) -> str:
            return _OPTION.sub(lambda found: found[0].replace("_", "-"), super().format_help(formatter))

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(
        prog=f"secateur {command}",
        usage=f"secateur {command} {_USAGE[command]}",
        description=_COMMANDS[command],
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="read options from a YAML file; --print-config writes one")
    if command == "demo":
        parser.add_argument("--out", type=str, default="secateur-demo", help="directory of the new checkpoint")
        parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that is there")
        parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    elif command in ("cut", "carry"):
        _add_file_to_file(parser, command)
    else:
        _add_common(parser, command)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--verbose", action="store_true", help="say more on standard error")
    return parser


def _add_common(parser: ArgumentParser, command: str) -> None:
    from secateur.methods import METHODS
    from secateur.request import TextSettings

    if command == "eval":
        parser.add_argument("models", nargs="+", metavar="MODEL", help="hub id or local directory")
        parser.add_argument("--data", type=str, required=True, help="text to measure on: a data SPEC, see prune --help")
        parser.add_argument("--sequence_length", type=int, default=256, help="tokens per window")
        parser.add_argument("--num_sequences", type=int, default=128, help="windows: the first, in order")
        parser.add_argument("--batch_size", type=int, default=4, help="windows per forward pass")
    else:
        parser.add_argument("model", metavar="MODEL", help="hub id or local directory")
        default = "gradpruner" if command == "tune" else "elder"
        parser.add_argument("--method", type=str, default=default, help=f"one of {', '.join(METHODS)}")
        if command == "tune":
            _add_task(parser)
        else:
            parser.add_class_arguments(TextSettings, None)
        for name, method in METHODS.items():
            parser.add_class_arguments(method, name, help=f"settings of {name} ({method.paper})", skip=set())
        parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
        parser.add_argument(
            "--precision", choices=["auto", "fp32", "bf16"], default="auto",
            help="of the passes while choosing and preparing; auto is bf16 where the device has it natively",
        )  # fmt: skip
    if command in ("prune", "tune"):
        parser.add_argument("--drop", type=str, help="how many layers go: a count (8) or a share (25%)")
        parser.add_argument("--target_params", type=str, help="parameters to be left: a share (75%)")
        parser.add_argument("--layers", type=str, help="which layers go: numbers and ranges (3,7,20-27)")
        parser.add_argument("--out", type=str, required=True, help="directory of the new checkpoint")
        parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that is there")
    if command == "score":
        parser.add_argument("--drop", type=str, default="25%", help="how many layers to choose: a count or a share")
        parser.add_argument("--out", type=str, help="write the plan to this JSON file")
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="of the weights"
    )
    parser.add_argument("--revision", type=str, help="branch, tag or commit of a hub id")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")


def _add_file_to_file(parser: ArgumentParser, command: str) -> None:
    if command == "cut":
        parser.add_argument("model", metavar="CHECKPOINT", help="local directory or hub id")
        parser.add_argument("--layers", type=str, help="which layers go: numbers and ranges (3,7,20-27)")
        parser.add_argument("--plan", type=str, help="a plan.json written by secateur")
        parser.add_argument("--max_shard_size", type=str, default="5GB", help="size of a file of weights at most")
        parser.add_argument("--dry_run", action="store_true", help="say what would be written, and write nothing")
        parser.add_argument("--revision", type=str, help="branch, tag or commit of a hub id")
        parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    else:
        parser.add_argument("adapter", metavar="ADAPTER", help="directory of a LoRA adapter, as peft saves it")
        parser.add_argument(
            "--plan", type=str, required=True, help="the plan.json of the pruned model (in its secateur/)"
        )
        parser.add_argument("--base", type=str, help="where the pruned model is, for peft to find it")
    parser.add_argument("--out", type=str, required=True, help="the new directory")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def _add_task(parser: ArgumentParser) -> None:
    from secateur.data.task import TaskSettings
    from secateur.training.supervised import FineTuning

    parser.add_class_arguments(TaskSettings, None)
    parser.add_class_arguments(FineTuning, None)
    parser.add_argument(
        "--metric", choices=["auto", "accuracy", "perplexity", "generation"], default="auto",
        help="what is measured; auto is accuracy where there are options to choose among, else perplexity of the completion",
    )  # fmt: skip
    parser.add_argument("--merge_adapters", action="store_true", help="with --train lora, write one plain checkpoint")
    parser.add_argument("--tune_dense", action="store_true", help="fine-tune the dense model alike, for comparison")
    parser.add_argument("--resume", action="store_true", help="go on with the run to --out that was interrupted")


def _with_underscores(word: str) -> str:
    """The word as the parser knows it: `--elder-published.lambda-1=0` is `--elder-published.lambda_1=0`."""
    if not word.startswith("--"):
        return word
    from secateur.methods import METHODS

    option, equals, value = word[2:].partition("=")
    owner, dot, name = option.partition(".")
    if dot:
        name = name.replace("-", "_")
    elif owner not in METHODS:
        owner = owner.replace("-", "_")
    return f"--{owner}{dot}{name}{equals}{value}"


def _refuse_settings_of_others(words: Sequence[str], method: str | None) -> None:
    """A setting of a method that does not run would be without effect, and nobody would notice."""
    from secateur.methods import METHODS

    for word in words:
        owner, dot, _ = word.removeprefix("--").partition(".")
        if word.startswith("--") and dot and owner in METHODS and method in METHODS and owner != method:
            option = word.partition("=")[0].replace("_", "-")
            raise RequestError(
                f"{option} is a setting of {owner}, but the method is {method}; give --method {owner}, or leave it out"
            )


def _explained(error: Exception, parser: ArgumentParser, command: str) -> str:
    """What the parser has to say, with the names as they are typed and the nearest option where one is unknown."""
    import difflib

    message = _one_line(error)
    message = re.sub(r'^Parser key "([\w.-]+)": ', lambda found: f"--{found[1].replace('_', '-')}: ", message)
    message = re.sub(r"<class '(\w+)'>", r"\1", message).replace("typing.", "")
    message = re.sub(r"Expected an? (.+?)\. Got value: (.*)", r"expects \1, not '\2'", message)
    message = re.sub(
        r"Does not validate against any of the Union subtypes Subtypes: \[(.*?), NoneType\] .* Given value: (.*)",
        r"expects \1 or null, not '\2'",
        message,
    )
    message = message.replace("unrecognized arguments:", "unknown option")
    unknown = re.search(r"unknown option --([\w.-]+)|Option '([\w.-]+)' is not accepted", message)
    if unknown:
        known = {name[2:] for action in parser._actions for name in action.option_strings if name.startswith("--")}
        near = difflib.get_close_matches(_with_underscores(f"--{unknown[1] or unknown[2]}")[2:], known, n=1)
        if near:
            option = f"--{near[0].replace('_', '-')}" if unknown[1] else near[0]
            message += f"; did you mean {option}?"
    missing = re.search(r"arguments are required: ([\w, ]+)$", message)
    if missing:
        names = missing[1].split(", ")
        named = ["MODEL" if name.startswith("model") else f"--{name.replace('_', '-')}" for name in names]
        message = f"missing {', '.join(named)}"
    return f"{message} (see secateur {command} --help)"


def parse_amount(text: str, option: str) -> int | float:
    """A count (`8`) or a share (`25%`, `0.25`).

    Raises:
        RequestError: if it is neither.
    """
    try:
        if re.fullmatch(r"\s*[+-]?\d+\s*", text):
            return int(text)
        share = float(text.strip()[:-1]) / 100 if text.strip().endswith("%") else float(text)
    except ValueError:
        raise RequestError(f"{option} is a count such as 8 or a share such as 25%, not '{text}'") from None
    if not 0 < share < 1:
        raise RequestError(f"{option} as a share is more than 0% and less than 100%, not '{text}'")
    return share


def parse_layers(text: str) -> tuple[int, ...]:
    """Layer numbers and inclusive ranges: `3,7,20-27`.

    Raises:
        RequestError: if it is something else.
    """
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise RequestError(f"--layers takes numbers and ranges such as 3,7,20-27, not '{text}'")
        if dash and int(last) < int(first):
            raise RequestError(f"--layers: the range {part.strip()} runs backwards; write {last}-{first}")
        layers += range(int(first), min(int(last or first), int(first) + _MOST_LAYERS) + 1)
    return tuple(layers)


# ---- commands ----------------------------------------------------------------------------------------------------------


def _prune(options: dict[str, Any], progress: Any, words: list[str]) -> None:
    from secateur.pipeline import prune

    result = prune(
        options["model"],
        method=_method(options),
        text=_text(options),
        target=_target(options),
        out=options["out"],
        overwrite=options["overwrite"],
        **_loading(options),
        progress=progress,
        command=words,
    )
    _report(result, as_json=options["json"])


def _tune(options: dict[str, Any], progress: Any, words: list[str]) -> None:
    from secateur.data.task import TaskSettings
    from secateur.report.console import results_console, show_tuned
    from secateur.training.supervised import FineTuning
    from secateur.tuning import tune

    result = tune(
        options["model"],
        task=_settings(TaskSettings, options),
        target=_target(options),
        out=options["out"],
        method=_method(options),
        tuning=_settings(FineTuning, options),
        metric=options["metric"],
        merge_adapters=options["merge_adapters"],
        tune_dense=options["tune_dense"],
        overwrite=options["overwrite"],
        resume=options["resume"],
        **_loading(options),
        progress=progress,
        command=words,
    )
    if options["json"]:
        _print_json({"out": str(result.path), **result.record})
    else:
        show_tuned(result.record, str(result.path), results_console())


def _demo(options: dict[str, Any], progress: Any, words: list[str]) -> None:
    from secateur.demo import demo

    result = demo(
        options["out"], overwrite=options["overwrite"], seed=options["seed"], progress=progress, command=words
    )
    _report(result, as_json=options["json"])


def _score(options: dict[str, Any], progress: Any, _: list[str]) -> None:
    from secateur.errors import OutputError
    from secateur.pipeline import score
    from secateur.report.console import results_console, score_bars

    out = options["out"]
    if out is not None and (Path(out).is_dir() or not Path(out).absolute().parent.is_dir()):
        raise OutputError(f"cannot write the plan to {out}; choose a file in a directory that exists")
    plan = score(
        options["model"],
        method=_method(options),
        text=_text(options),
        drop=parse_amount(options["drop"], "--drop"),
        **_loading(options),
        progress=progress,
    )
    if out is not None:
        try:
            plan.save(out)
        except OSError as error:
            raise OutputError(f"cannot write the plan to {out}: {error.strerror}; choose another file") from error
    if options["json"]:
        _print_json(
            {
                "method": plan.method,
                "scores": list(plan.scores or ()),
                "dropped": list(plan.dropped),
                "order": list(plan.order),
            }
        )
        return
    console = results_console()
    if plan.scores is not None:
        console.print(score_bars(plan.scores, plan.dropped))
    console.print(
        f"{plan.method} would drop layers {', '.join(map(str, plan.dropped))}, in the order {', '.join(map(str, plan.order))}",
        soft_wrap=True,
    )


def _cut(options: dict[str, Any], progress: Any, _: list[str]) -> None:
    from secateur.loading import local_checkpoint
    from secateur.plan import PruningPlan
    from secateur.report.comparison import format_bytes
    from secateur.surgery.files import cut_checkpoint

    if (options["layers"] is None) == (options["plan"] is None):
        raise RequestError("say which layers go with one of --layers and --plan")
    dropped = parse_layers(options["layers"]) if options["plan"] is None else PruningPlan.load(options["plan"])
    report = cut_checkpoint(
        local_checkpoint(options["model"], revision=options["revision"]),
        options["out"],
        dropped,
        overwrite=options["overwrite"],
        max_shard_size=options["max_shard_size"],
        dry_run=options["dry_run"],
        trust_remote_code=options["trust_remote_code"],
        progress=progress,
    )
    if options["json"]:
        _print_json({**dataclasses.asdict(report), "target": str(report.target)})
        return
    print(
        f"{'would drop' if options['dry_run'] else 'dropped'} layers {', '.join(map(str, report.dropped))} of "
        f"{report.num_layers}: {report.num_tensors} tensors, {format_bytes(report.num_bytes)} of weights kept, "
        f"{format_bytes(report.removed_bytes)} removed"
    )
    for name, files in (("weights", report.weights), ("copied", report.copied), ("left out", report.left)):
        if files:
            print(f"{name}: {', '.join(files)}")
    if not options["dry_run"]:
        print(f"the pruned checkpoint is in {options['out']}; next: secateur eval {options['out']} --data SPEC")


def _carry(options: dict[str, Any], _: Any, __: list[str]) -> None:
    from secateur.plan import PruningPlan
    from secateur.surgery.adapters import carry_adapter

    carried = carry_adapter(
        options["adapter"],
        options["out"],
        PruningPlan.load(options["plan"]),
        base=options["base"],
        overwrite=options["overwrite"],
    )
    if options["json"]:
        _print_json({**dataclasses.asdict(carried), "target": str(carried.target)})
    else:
        print(f"the adapter of the pruned model is in {options['out']}: {carried.num_tensors} tensors")


def _eval(options: dict[str, Any], progress: Any, _: list[str]) -> None:
    from secateur.pipeline import evaluate
    from secateur.report.console import perplexity_table, results_console

    rows = evaluate(
        options["models"],
        data=options["data"],
        sequence_length=options["sequence_length"],
        num_sequences=options["num_sequences"],
        batch_size=options["batch_size"],
        dtype=options["dtype"],
        revision=options["revision"],
        trust_remote_code=options["trust_remote_code"],
        progress=progress,
    )
    if options["json"]:
        _print_json({"models": rows})
    else:
        results_console().print(perplexity_table(rows))


def _report(result: Any, *, as_json: bool) -> None:
    if as_json:
        _print_json({"out": str(result.path), **result.record})
        return
    from secateur.report.console import results_console, show_pruned

    show_pruned(result.record, str(result.path), results_console())


def _method(options: dict[str, Any]) -> Any:
    from secateur.methods import method_named

    method_named(options["method"])
    return options[options["method"].replace("-", "_")]  # as the parser stores it


def _text(options: dict[str, Any]) -> Any:
    from secateur.request import TextSettings

    return _settings(TextSettings, options)


def _settings(of: Any, options: dict[str, Any]) -> Any:
    """A dataclass of settings from the options that are called like its fields."""
    return of(**{field.name: options[field.name] for field in dataclasses.fields(of)})


def _loading(options: dict[str, Any]) -> dict[str, Any]:
    """How models are loaded and run, alike in all commands."""
    return {name: options[name] for name in ("dtype", "precision", "revision", "trust_remote_code", "seed")}


def _target(options: dict[str, Any]) -> Any:
    from secateur.request import Target

    share = options["target_params"]
    return Target(
        drop=None if options["drop"] is None else parse_amount(options["drop"], "--drop"),
        target_params=None if share is None else _share(share),
        layers=None if options["layers"] is None else parse_layers(options["layers"]),
    )


def _share(text: str) -> float:
    amount = parse_amount(text, "--target-params")
    if not isinstance(amount, float):
        raise RequestError(f"--target-params is a share such as 75%, not '{text}'")
    return amount


def _print_json(value: dict[str, Any]) -> None:
    from secateur.plan import finite

    print(json.dumps(finite(value), ensure_ascii=False, allow_nan=False))


# ---- errors ------------------------------------------------------------------------------------------------------------


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _keep_traceback() -> str:
    with tempfile.NamedTemporaryFile("w", prefix="secateur-", suffix=".log", delete=False, encoding="utf-8") as file:
        traceback.print_exc(file=file)
    return file.name


def _terminated(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
