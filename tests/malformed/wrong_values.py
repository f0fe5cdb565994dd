"""Every option of every command with values that it cannot have, made from the parsers themselves."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

from secateur.cli import COMMANDS, _parser
from secateur.methods import METHODS

WRONG: dict[Any, tuple[str, ...]] = {
    int: ("x", "1.5", "-1"),
    float: ("x", "nan", "inf", "-1"),
    bool: ("maybe",),
    dict: ("x", '{"no_such_setting": 1}', "[1]"),
}
NO_CHOICE = "no-such"
RIGHT = {("--laco.threshold", "-1")}
"""Values that look wrong and are not: a cosine may be -1."""

NEEDS = {"--limit": ["--tasks", "made_up"], "--num_fewshot": ["--tasks", "made_up"]}
"""Options that another one must come with."""


def wrong_values() -> Iterator[tuple[str, list[str], str]]:
    """(command, words after its base, the wrong value); settings of methods are tried with `prune` alone."""
    for command in COMMANDS:
        for action in _parser(command)._actions:
            option = next(iter(action.option_strings), "")
            owner, dot, setting = option.removeprefix("--").partition(".")
            of_method = bool(dot) and owner in METHODS
            if not option or (of_method and command != "prune"):
                continue
            spelt = option.replace("_", "-") if not dot else f"--{owner}.{setting.replace('_', '-')}"
            needs = ["--method", owner] if of_method else NEEDS.get(option, [])
            for value in _wrong(getattr(action, "_typehint", action.type), action.choices):
                if (spelt, value) not in RIGHT:
                    yield command, [*needs, f"{spelt}={value}"], value


def _wrong(hint: Any, choices: Any) -> tuple[str, ...]:
    """What a type does not hold; nothing for text, which holds everything."""
    if choices or typing.get_origin(hint) is typing.Literal:
        return (NO_CHOICE,)
    if isinstance(hint, type) and issubclass(hint, int) and hint is not bool:
        return WRONG[int]
    if hint in WRONG:
        return WRONG[hint]
    if typing.get_origin(hint) is dict:
        return WRONG[dict]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        return WRONG[float] if float in parts else _wrong(parts[0], None)
    return ()
