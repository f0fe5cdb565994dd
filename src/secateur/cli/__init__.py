"""The command line: each command is a file here, its options typed settings that jsonargparse reads and explains.

Results go to standard output, everything else to standard error. Exit codes: 0 done; 2 the request was wrong; 1 it failed
on the way; 130 interrupted, 143 terminated. Heavy imports are inside the commands, so that `--help` is fast.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli.recipes import recipes_for, settings_file
from secateur.cli.words import (
    check_settings_files,
    explained,
    one_line,
    refuse_settings_of_others,
    with_underscores,
    without_files,
)
from secateur.errors import RequestError, SecateurError
from secateur.processes import apart, fails_first, is_first, is_of_another, joined, launched
from secateur.report.record import redacted_text
from secateur.signals import watched

if TYPE_CHECKING:
    from secateur.cli.parser import Parser

__all__ = ["main"]

COMMANDS = (
    "demo",
    "score",
    "prune",
    "tune",
    "cut",
    "check",
    "carry",
    "push",
    "eval",
    "bench",
    "compare",
    "estimate",
    "report",
    "doctor",
    "completion",
)
"""Each a module here, with `SUMMARY`, `USAGE`, `add_options` and `run`."""

_TOGETHER, _APART = ("score", "prune", "tune", "eval"), ("compare",)
"""Commands that several processes do together, and those where each does a part of its own."""

_OPTIONS_ALONE = ("--help", "--version", "--debug")
"""Those that stand before a command, or without one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the value is the exit code."""
    if arguments is None:  # a process of its own
        atexit.register(gc.freeze)  # looking through torch's objects for garbage, when all goes, takes most of a second
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    words = words or ["--help"]
    with watched(_say) as watch:
        try:
            return _run(words)
        except SystemExit as done:  # the parser's --help and --print-config
            return int(done.code or 0)
        except (KeyboardInterrupt, Exception) as error:
            said = _interrupt_behind(error) if watch.number else error
            code = _failed(said, debug)
            return 128 + watch.number if isinstance(said, KeyboardInterrupt) and watch.number else code


def _interrupt_behind(error: BaseException) -> BaseException:
    """The interrupt that an error came of, as Python wraps what a half-made class raises and libraries what a thread does."""
    cause: BaseException | None = error
    while not (cause is None or isinstance(cause, (KeyboardInterrupt, SecateurError))):
        cause = cause.__cause__ or cause.__context__
    return cause if isinstance(cause, KeyboardInterrupt) else error


def _failed(error: BaseException, debug: bool) -> int:
    """Say in one line what happened, once where several processes end for one reason; the exit code."""
    if not debug and not fails_first():
        return 1
    if isinstance(error, KeyboardInterrupt):
        kept = (
            one_line(error) if error.args else "nothing half-written is left; run the same command again to start over"
        )
        _say(f"interrupted: {kept}")
        return 130
    if isinstance(error, BrokenPipeError):
        return 1
    if debug:
        traceback.print_exc()
    if isinstance(error, SecateurError):
        _say(f"error: {one_line(error)}")
        return 2 if isinstance(error, RequestError) else 1
    if is_of_another(error):
        _say("error: another process ended; the report of the launcher says which, and how")
        return 1
    where = "" if debug else f" (details in {_keep_traceback()}; please report it)"
    _say(f"error: {type(error).__name__}: {one_line(error)[:300]}{where}")
    return 1


def _run(words: list[str]) -> int:
    if words[0] in ("-h", "--help", "help"):
        words = _asking_for_help(words[1:])
    if words[0] == "--help":
        print(_overview())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"secateur {version('secateur')}")
        return 0
    if words[0] not in COMMANDS:
        raise _unknown(words[0])
    if os.environ.get("SECATEUR_RETURN_MEMORY") == "1":
        from secateur.allocator import return_freed_memory

        return_freed_memory()
    parser = _parser(words[0], words[1:])
    methods = parser.methods
    files, others = without_files([with_underscores(word, methods) for word in words[1:]])
    files = [settings_file(file, words[0]) for file in files]
    plain = [*(f"--config={file}" for file in files), *others]  # what is typed counts, wherever a file stands
    check_settings_files(files, methods)
    try:
        parsed = parser.parse_args(plain)
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("jsonargparse", "argparse", "yaml"):
            raise
        raise RequestError(explained(error, parser, words[0], files, others)) from error
    refuse_settings_of_others(plain, parsed.get("method"))
    with _for_its_machine(parsed.get("hardware")):
        _do(words, parser.instantiate(parsed))
    return 0


def _asking_for_help(words: list[str]) -> list[str]:
    """The words after `help` as a command's own: `score elder` is `score --method elder --help`.

    Raises:
        RequestError: if there is a word that is no method of the command.
    """
    if not words:
        return ["--help"]
    command, *rest = words
    if command in COMMANDS and rest and not rest[0].startswith("-"):
        if rest[1:] or not _parser(command, []).methods:
            raise RequestError(f"help takes a command, and a method if it has some, not '{' '.join(words)}'")
        rest = ["--method", rest[0]]
    return [command, *rest, "--help"]


def _for_its_machine(hardware: str | None) -> AbstractContextManager[None]:
    """What a command is told is for this machine, or, as `estimate` can be asked for, for another one."""
    if hardware in (None, "here"):
        return nullcontext()
    from secateur.training.trainer_options import for_another_machine

    return for_another_machine()


def _unknown(word: str) -> RequestError:
    """What is said of a first word that is no command."""
    import difflib

    option = word.startswith("-")
    what, known = ("option", _OPTIONS_ALONE) if option else ("command", tuple(COMMANDS))
    near = difflib.get_close_matches(word, known, n=1)
    choice = "name the command before its options" if option else f"choose one of {', '.join(known)}"
    return RequestError(f"unknown {what} '{word}'; " + (f"did you mean '{near[0]}'?" if near else choice))


def _do(words: list[str], values: Any) -> None:
    """Run a command with the options that were read."""
    quiet, verbose = values.pop("quiet"), values.pop("verbose")
    values.pop("config", None)
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    if not verbose:
        warnings.simplefilter("ignore")
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # when it is imported, it sets its own level
        for name in ("httpx", "huggingface_hub", "transformers", "datasets", "accelerate"):
            logging.getLogger(name).setLevel(logging.ERROR)
    if quiet:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    from secateur.report.console import RichProgress
    from secateur.trust import pickle_allowed

    if values.get("trust_remote_code"):
        _say(  # whatever --quiet leaves out
            "warning: the Python code that comes with the model is run, with all that you may do here; pin it with --revision"
        )
    allowed = pickle_allowed(values.pop("allow_pickle", False))
    with allowed, _processes(words[0]), _only_the_first_prints():
        _module(words[0]).run(vars(values), RichProgress(quiet=quiet or not is_first()), ["secateur", *words])


def _processes(command: str) -> AbstractContextManager[None]:
    """The processes of a launcher, if there is one, as this command works in them."""
    if command in _TOGETHER:
        return joined()
    if command in _APART:
        return apart()
    if launched():
        raise RequestError(f"secateur {command} works in one process; run it without the launcher")
    return nullcontext()


@contextmanager
def _only_the_first_prints() -> Iterator[None]:
    if is_first():
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def _overview() -> str:
    lines = ["usage: secateur COMMAND [OPTIONS]   (secateur COMMAND --help explains each option)", ""]
    lines += [f"  {name:<12}{_module(name).SUMMARY}" for name in COMMANDS]
    return "\n".join([*lines, "", "  --version, --debug (show the traceback of an error)"])


def _parser(command: str, words: Sequence[str] | None = None) -> Parser:
    """The options of one command, explained as far as these words ask for that; all if None."""
    from secateur.cli.parser import EVERYTHING, Formatter, Parser

    module = _module(command)
    parser = Parser(
        formatter_class=Formatter,
        prog=f"secateur {command}",
        usage=f"secateur {command} {module.USAGE}",
        description=module.SUMMARY,
        exit_on_error=False,
        allow_abbrev=False,  # else a typing error could be taken for a longer option
    )
    parser.words = EVERYTHING if words is None else words
    parser.examples = module.EXAMPLES
    named = "".join(f", or ready-made settings: {', '.join(names)}" for names in [recipes_for(command)] if names)
    parser.add_argument(
        "--config", action="config", help=f"read options from a YAML file{named}; --print-config writes one"
    )
    module.add_options(parser)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument(
        "-q", "--quiet", action="store_true",
        help="no progress, and errors alone; the warning of --trust-remote-code stays",
    )  # fmt: skip
    parser.add_argument("-v", "--verbose", action="store_true", help="say more on standard error")
    return parser


def _module(command: str) -> Any:
    return import_module(f"secateur.cli.{command}")


def _say(message: str) -> None:
    print(redacted_text(message), file=sys.stderr)


def _keep_traceback() -> str:
    with tempfile.NamedTemporaryFile("w", prefix="secateur-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(redacted_text(traceback.format_exc()))
    return file.name


if __name__ == "__main__":
    sys.exit(main())
