"""The words of a command line: options with dashes, Python names inside, and what to say where they are wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.depth import MOST_LAYERS
from secateur.errors import RequestError
from secateur.values import yaml_problem

if TYPE_CHECKING:
    from secateur.cli.parser import Parser

__all__ = [
    "carried_over",
    "check_settings_files",
    "explained",
    "is_typed",
    "number_or_text",
    "one_line",
    "parse_amount",
    "parse_increase",
    "parse_layers",
    "parse_memory",
    "parse_names",
    "parse_ratio",
    "parse_sizes",
    "refuse_settings_of_others",
    "refuse_without_effect",
    "with_underscores",
    "without_files",
]


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def with_underscores(word: str, methods: Collection[str] = ()) -> str:
    """The word as the parser knows it: `--elder-published.lambda-1=0` is `--elder-published.lambda_1=0`.

    Args:
        word: as it was typed.
        methods: names of methods that are options of the command, and keep their dashes.
    """
    if not word.startswith("--"):
        return word
    option, equals, value = word[2:].partition("=")
    owner, dot, name = option.partition(".")
    if dot:
        name = name.replace("-", "_")
    elif owner not in methods:
        owner = owner.replace("-", "_")
    return f"--{owner}{dot}{name}{equals}{value}"


def carried_over(words: Sequence[str], *, without: Collection[str], flags: Collection[str] = ()) -> list[str]:
    """What was typed after the name of a command, for another that does not know some of its options.

    Args:
        words: as they were typed, `secateur` and the command's name first.
        without: options that take a value, by their Python names, to leave out.
        flags: options that take none, to leave out.
    """
    kept: list[str] = []
    following = iter(words[2:])
    for word in following:
        option, equals, _ = with_underscores(word).removeprefix("--").partition("=")
        if word.startswith("--") and option in without:
            if not equals:
                next(following, None)
        elif not (word.startswith("--") and option in flags):
            kept.append(word)
    return kept


def is_typed(words: Sequence[str], option: str) -> bool:
    """Whether an option is among the words of a command, not in a file that `--config` names."""
    return any(with_underscores(word).partition("=")[0] == f"--{option}" for word in words)


def refuse_without_effect(
    options: Mapping[str, Any], defaults: Mapping[str, Any], words: Sequence[str], why: str
) -> None:
    """Refuse options that change nothing, typed with their defaults too, since nobody would notice.

    Args:
        options: what is asked for.
        defaults: option → what it is where nobody asks for anything.
        words: of the command.
        why: it has none, and what to do.

    Raises:
        RequestError: if there is one.
    """
    for name, default in defaults.items():
        if options.get(name, default) != default or is_typed(words, name):
            raise RequestError(f"--{name.replace('_', '-')} has no effect {why}")


def without_files(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files that `--config` names, and the other words."""
    files: list[str] = []
    others: list[str] = []
    following = iter(words)
    for word in following:
        option, equals, value = word.partition("=")
        named = (value if equals else next(following, None)) if option == "--config" else None
        if named is None:
            others.append(word)
        else:
            files.append(named)
    return files, others


def check_settings_files(files: Sequence[str], methods: Collection[str]) -> None:
    """What the parser would take for a failure of its own in a file that `--config` names.

    Raises:
        RequestError: if the file cannot be read as text, or has a value where a method's settings belong.
    """
    import yaml

    for file in files:
        try:
            settings = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise RequestError(f"--config {file} is no text in UTF-8; give a YAML file of options") from None
        except yaml.YAMLError as error:
            raise RequestError(f"--config {file} is not YAML: {yaml_problem(error)}; mend it") from error
        except (OSError, ValueError):
            continue  # the parser says what is wrong
        if settings is not None and not isinstance(settings, dict):  # whatever it is, it is not shown
            raise RequestError(f"--config {file} holds no options by name; --print-config shows what it can")
        for name, given in (settings or {}).items():
            if name in methods and not isinstance(given, dict):
                raise RequestError(
                    f"--config {file}: {name} takes settings by name, not '{given}'; --print-config shows how"
                )


def refuse_settings_of_others(words: Sequence[str], method: str | None) -> None:
    """A setting of a method that does not run would be without effect, and nobody would notice."""
    if method is None:
        return
    from secateur.methods import METHODS

    for word in words:
        owner, dot, _ = word.removeprefix("--").partition(".")
        if word.startswith("--") and dot and owner in METHODS and method in METHODS and owner != method:
            option = word.partition("=")[0].replace("_", "-")
            raise RequestError(
                f"{option} is a setting of {owner}, but the method is {method}; give --method {owner}, or leave it out"
            )


def explained(
    error: Exception, parser: Parser, command: str, files: Sequence[str] = (), typed: Sequence[str] = ()
) -> str:
    """What the parser has to say, with the names as they are typed and the nearest option where one is unknown.

    Args:
        error: the parser's.
        parser: of the command.
        command: its name.
        files: that `--config` names; the one that holds the option is said.
        typed: the other words.
    """
    message = one_line(error)
    message = re.sub(r'^Parser key "([\w.-]+)": ', lambda found: f"--{found[1].replace('_', '-')}: ", message)
    message = re.sub(r"<class '(\w+)'>", r"\1", message).replace("typing.", "")
    message = re.sub(r"Literal\[([^\]]*)\]", lambda found: "one of " + found[1].replace("'", ""), message)
    message = re.sub(r"invalid choice: (.*) \(choose from (.*)\)", _expects_one_of, message)
    message = re.sub(r"Expected an? (.+?)\. Got value: (.*)", r"expects \1, not '\2'", message)
    message = re.sub(
        r"Does not validate against any of the Union subtypes Subtypes: \[(.*?), NoneType\] .* Given value: (.*)",
        r"expects \1 or null, not '\2'",
        message,
    )
    message = re.sub(
        r"Not of type Seed: (?:.*: '(.*)'|(\S+) does not conform.*)",
        lambda found: f"expects int of 0 or more and below 2**32, not '{found[1] or found[2]}'",
        message,
    )
    message = message.replace("unrecognized arguments:", "unknown option")
    message = re.sub(r"unknown option --[\w.-]+", lambda found: found[0].replace("_", "-"), message)
    message = re.sub(r"Group '([\w-]+)' does not accept option '([\w.-]+)'", r"Option '\1.\2' is not accepted", message)
    message = re.sub(r"expects one of ([^']*?)(?: or null)?, not '([^']*)'", _with_nearest, message)
    unknown = re.search(r"unknown option --([\w.-]+)|Option '([\w.-]+)' is not accepted", message)
    if unknown:
        known = {name[2:] for action in parser._actions for name in action.option_strings if name.startswith("--")}
        message += _suggested(unknown[1] or unknown[2], known, "--" if unknown[1] else "")
        owner, dot, _ = (unknown[1] or unknown[2]).partition(".")
        if dot and not any(name.startswith(f"{owner}.") for name in known):
            message += f"; {owner} has no settings"
        if command == "compare" and unknown[1]:
            message += "; compare takes a CONFIG.yaml that says what to compare, as examples/compare.yaml does"
    missing = re.search(r"arguments are required: ([\w, ]+)$", message)
    if missing:
        names = missing[1].split(", ")
        placed = {
            action.dest: f"{action.metavar} ({', '.join(action.choices)})" if action.choices else str(action.metavar)
            for action in parser._actions
            if not action.option_strings
        }
        named = [placed.get(name) or f"--{name.replace('_', '-')}" for name in names]
        message = f"missing {', '.join(named)}"
    return f"{_file_of(message, files, typed)}{message} (see secateur {command} --help)"


def _file_of(message: str, files: Sequence[str], typed: Sequence[str]) -> str:
    """Which file of `--config` has the option that a message begins with; nothing if it is typed, or in none."""
    import yaml

    named = re.match(r"(?:--([\w.-]+):|Option '([\w.-]+)' )", message)
    option = named and (named[1] or named[2]).replace("-", "_")
    if option and not is_typed(typed, option):
        for file in files:
            if not Path(file).is_file():
                continue
            settings = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
            if isinstance(settings, dict) and option.partition(".")[0] in {
                str(name).replace("-", "_") for name in settings
            }:
                return f"--config {file}: "
    return ""


def _suggested(unknown: str, known: Collection[str], dashes: str) -> str:
    """What may have been meant: what an option that is none begins, or is nearest to; nothing if nothing is near."""
    import difflib

    name = with_underscores(f"--{unknown}")[2:]
    longer = sorted((option for option in known if option.startswith(name)), key=lambda option: (len(option), option))
    near = longer[:3] or difflib.get_close_matches(name, known, n=1)
    options = " or ".join(f"{dashes}{option.replace('_', '-') if dashes else option}" for option in near)
    return f"; did you mean {options}?" if near else ""


def _expects_one_of(found: re.Match[str]) -> str:
    """What argparse says of a choice, as jsonargparse's types are said."""
    choices = found[2].replace("'", "")
    return f"expects one of {choices}, not {found[1]}"


def _with_nearest(found: re.Match[str]) -> str:
    """A choice that is none, with the nearest that is."""
    import difflib

    near = difflib.get_close_matches(found[2], found[1].split(", "), n=1)
    return f"{found[0]}; did you mean {near[0]}?" if near else found[0]


class NumberOrText(str):
    """What is a word on the command line, and may be a number or a list of numbers in a file: `3`, `25%`, `[3, 7]`."""

    __slots__ = ()

    def __new__(cls, value: Any) -> NumberOrText:
        words = value if isinstance(value, list) else [value]
        if any(isinstance(word, (list, dict)) for word in words):
            raise ValueError(f"a number, a word, or a list of them, not {value}")
        return super().__new__(cls, ",".join(map(str, words)))


def number_or_text() -> type[NumberOrText]:
    """The type, for an option of a parser."""
    from jsonargparse.typing import register_type

    register_type(NumberOrText, serializer=str, deserializer=NumberOrText, fail_already_registered=False)
    return NumberOrText


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


def parse_increase(text: str, option: str) -> float:
    """A share that may be above one whole (`10%`, `0.1`, `150%`); a bare whole number could mean either.

    Raises:
        RequestError: if it is something else.
    """
    word = text.strip()
    try:
        if re.fullmatch(r"[+-]?\d+", word):
            raise ValueError
        increase = float(word[:-1]) / 100 if word.endswith("%") else float(word)
    except ValueError:
        raise RequestError(f"{option} is a share such as 10%, not '{text}'") from None
    if not (increase > 0 and math.isfinite(increase)):
        raise RequestError(f"{option} is more than 0%, such as 10%, not '{text}'")
    return increase


def parse_ratio(text: str, option: str) -> float:
    """How many times as much (`1.3`, `1.3x`), more than once.

    Raises:
        RequestError: if it is something else.
    """
    try:
        ratio = float(text.strip().removesuffix("x"))
    except ValueError:
        ratio = math.nan
    if not (ratio > 1 and math.isfinite(ratio)):
        raise RequestError(f"{option} is a ratio above 1 such as 1.3, not '{text}'")
    return ratio


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
        layers += range(int(first), min(int(last or first), int(first) + MOST_LAYERS) + 1)
    return tuple(layers)


def parse_sizes(text: str, option: str) -> tuple[int, ...]:
    """Numbers with commas between them: `1,4,16`.

    Raises:
        RequestError: if it is something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"-?[0-9]+", part) for part in parts):
        raise RequestError(f"{option} takes numbers such as 1,4,16, not '{text}'")
    return tuple(int(part) for part in parts)


def parse_memory(text: str, option: str) -> dict[int | str, str]:
    """Device → the most of its memory: `0=70GB,cpu=200GB`.

    Raises:
        RequestError: if the text is no such list.
    """
    found: dict[int | str, str] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+|cpu|mps)\s*=\s*(\d+(?:\.\d+)?\s*[KMGT]i?B)\s*", part, re.IGNORECASE)
        if match is None:
            raise RequestError(f"{option} is a list such as 0=70GB,cpu=200GB; '{part}' is not part of one")
        device = match[1].lower()
        found[int(device) if device.isdecimal() else device] = match[2].upper().replace("IB", "iB").replace(" ", "")
    return found


def parse_names(text: str, option: str) -> list[str]:
    """Names with commas between them: `piqa,arc_easy`.

    Raises:
        RequestError: if there is no name before, between or after commas.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise RequestError(f"{option} takes names with commas between them, not '{text}'")
    return names
