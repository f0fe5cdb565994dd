"""Ready-made settings by name: files of `--config` that come with the package, in `secateur/recipes`."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from secateur.errors import RequestError

__all__ = ["recipes_for", "settings_file"]

_FOLDER = Path(__file__).parents[1] / "recipes"
_COMMAND = re.compile(r"^#   secateur (\w+) ", re.MULTILINE)


def recipes_for(command: str) -> list[str]:
    """The names of the settings that are made for a command."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml") if _command_of(file) == command)


def settings_file(named: str, command: str) -> str:
    """The file that `--config` means: one that is there, or else ready-made settings of that name.

    Raises:
        RequestError: if it is neither, or the settings are made for another command.
    """
    if Path(named).is_file() or not named:
        return named
    recipe, known = _FOLDER / f"{named}.yaml", recipes_for(command)
    if "/" in named or not recipe.is_file():
        near = difflib.get_close_matches(Path(named).stem, known, n=1)
        choice = f"did you mean {near[0]}?" if near else " or ".join(["give a YAML file of options", *_one_of(known)])
        raise RequestError(f"--config {named} is no file, and no ready-made settings; {choice}")
    if _command_of(recipe) != command:
        choice = "".join(f"choose {names}" for names in _one_of(known)) or "give a YAML file of options"
        raise RequestError(f"--config {named} is made for secateur {_command_of(recipe)}; {choice}")
    return str(recipe)


def _one_of(known: list[str]) -> list[str]:
    return [f"one of {', '.join(known)}"] if known else []


def _command_of(recipe: Path) -> str:
    """The command that a recipe says it is read by."""
    return str(_COMMAND.findall(recipe.read_text(encoding="utf-8"))[0])
