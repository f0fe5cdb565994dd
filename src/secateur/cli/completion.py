"""`secateur completion`: a script by which a shell completes commands, options and their values.

It is made from the same options that `--help` explains, once; the shell asks nobody when the tab key is pressed.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, get_args

from secateur.cli.options import print_json
from secateur.cli.recipes import recipes_for
from secateur.errors import RequestError

if TYPE_CHECKING:
    from secateur.cli.parser import Parser

__all__ = ["SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "a script by which bash, zsh or fish completes commands, options and their values"
USAGE = "SHELL [OPTIONS]"

_WHERE = {
    "bash": "next: secateur completion bash > ~/.local/share/bash-completion/completions/secateur",
    "zsh": "next: secateur completion zsh > _secateur, in a directory of $fpath",
    "fish": "next: secateur completion fish > ~/.config/fish/completions/secateur.fish",
}
"""Shell → where its script goes."""

_EQUALS_SIGNS = """
# bash takes --method=sh for three words: without the middle one it is --method sh.
_secateur() {
  local index number=$COMP_CWORD
  local -a words=()
  for index in "${!COMP_WORDS[@]}"; do
    if [[ "${COMP_WORDS[$index]}" != "=" ]]; then
      words+=("${COMP_WORDS[$index]}")
    elif [[ $index -eq $COMP_CWORD ]]; then
      words+=("")
    elif [[ $index -lt $COMP_CWORD ]]; then
      number=$((number - 1))
    fi
  done
  local -a COMP_WORDS=("${words[@]}")
  local COMP_CWORD=$number
  _shtab_secateur
}
"""


def add_options(parser: Parser) -> None:
    """The options of this command."""
    parser.add_argument("shell", metavar="SHELL", choices=tuple(_WHERE), help=f"one of {', '.join(_WHERE)}")


def run(options: dict[str, Any], progress: Any, _: list[str]) -> None:
    """Do what was asked for."""
    try:
        import shtab
    except ImportError as error:
        raise RequestError("completion needs shtab; pip install 'secateur[completion]'") from error
    script = shtab.complete(_all_commands(), options["shell"])
    if options["shell"] == "bash":
        script = script.replace("-F _shtab_secateur secateur", "-F _secateur secateur") + _EQUALS_SIGNS
    if options["json"]:
        print_json({"script": script})
    else:
        print(script)
        progress.note(_WHERE[options["shell"]])


def _all_commands() -> argparse.ArgumentParser:
    """Every command with its options as they are typed, in one plain parser that nothing is parsed with."""
    from secateur.cli import COMMANDS, _module, _parser

    together = argparse.ArgumentParser(prog="secateur")
    together.add_argument("--version", action="store_true", help="print the version")
    together.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = together.add_subparsers()
    for name in COMMANDS:
        command = commands.add_parser(name, help=_module(name).SUMMARY)
        for action in _parser(name)._actions:
            if action.dest != "help" and action.help != argparse.SUPPRESS:
                _add(command, action, _named_texts_or_settings(name, action))
    return together


def _named_texts_or_settings(command: str, action: argparse.Action) -> list[str]:
    """The names that an option knows beside those of files."""
    if action.dest == "config":
        return recipes_for(command)
    if action.dest in ("data", "eval_data") and command != "tune":  # which takes tasks
        from secateur.data.text import HUB_TEXTS, PYTHON_DOCS

        return [PYTHON_DOCS, *HUB_TEXTS]
    return []


def _names_or_files(names: list[str]) -> dict[str, Any]:
    """How shtab completes one of a few names, or a file."""
    import shtab

    words = " ".join(names)
    function = f"_secateur_{'_'.join(names)}_or_files".replace("-", "_")
    return {
        "bash": function,
        "zsh": function,
        "fish": f"{words} {shtab.FILE['fish']}",
        "preamble": {
            "bash": f'{function}() {{\n  compgen -W "{words}" -- "$1"\n  compgen -f -- "$1"\n}}\n',
            "zsh": f"{function}() {{\n  _alternative 'names:name:({words})' 'files:file:_files'\n}}\n",
        },
    }


def _add(command: argparse.ArgumentParser, action: argparse.Action, named: list[str]) -> None:
    """One option or word of a command; where no values are known, files are completed."""
    import shtab

    names = [name.replace("_", "-") for name in action.option_strings] or [action.dest]
    described: dict[str, Any] = {"help": " ".join(str(action.help).split()).replace("%", "%%")}
    if action.option_strings and action.nargs == 0:
        command.add_argument(*names, action="store_true", **described)
        return
    choices = _choices(action)
    if choices:
        command.add_argument(*names, nargs=action.nargs, choices=choices, **described)
    else:
        placeholder = action.metavar or names[0].lstrip("-").rpartition(".")[2].upper()
        added: Any = command.add_argument(*names, nargs=action.nargs, metavar=placeholder, **described)
        added.complete = _names_or_files(named) if named else shtab.FILE


def _choices(action: argparse.Action) -> list[str] | None:
    """The values that an option can have, where they are words."""
    if action.dest == "method":
        from secateur.methods import METHODS

        return list(METHODS)
    if action.choices:
        return [str(choice) for choice in action.choices]
    hint = getattr(action, "_typehint", None)  # of jsonargparse: a type, a Literal, or one of them or None
    if hint is bool:
        return ["true", "false"]
    words = [word for part in (hint, *get_args(hint)) for word in get_args(part) if isinstance(word, str)]
    return words or None
