"""`secateur completion`: a script by which a shell completes commands, options and their values.

It is made from the same options that `--help` explains, once; the shell asks nobody when the tab key is pressed.
"""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any, get_args

from secateur.cli.options import print_json
from secateur.cli.recipes import recipes_for
from secateur.cli.words import NumberOrText
from secateur.errors import RequestError

if TYPE_CHECKING:
    from secateur.cli.parser import Parser

__all__ = ["EXAMPLES", "SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "a script by which bash, zsh or fish completes commands, options and their values"
USAGE = "SHELL [OPTIONS]"
EXAMPLES = ("source <(secateur completion bash)",)

_WHERE = {
    "bash": "next: source <(secateur completion bash), in ~/.bashrc to have it in every shell",
    "zsh": "next: source <(secateur completion zsh), in ~/.zshrc after compinit to have it in every shell",
    "fish": "next: secateur completion fish | source, in ~/.config/fish/config.fish to have it in every shell",
}
"""Shell → how it reads the script."""

_NUMBERS = (int, float, NumberOrText)

_NOT_FILES = ("repo_id", "push_to_hub", "revision")
"""Texts that are no names of files, and that only the hub could complete."""

_WORDS_OF_BASH = """
# bash takes --method=sh for three words, and a:b too: the first is --method sh here, the second one word.
_secateur() {
  local index last number=$COMP_CWORD glued=
  local -a words=()
  for index in "${!COMP_WORDS[@]}"; do
    last=$((${#words[@]} - 1))
    if [[ "${COMP_WORDS[$index]}" == ":" && $last -ge 0 || -n "$glued" ]]; then
      words[$last]+="${COMP_WORDS[$index]}"
      [[ $index -gt $COMP_CWORD ]] || number=$((number - 1))
      [[ "${COMP_WORDS[$index]}" == ":" ]] && glued=1 || glued=
    elif [[ "${COMP_WORDS[$index]}" != "=" ]]; then
      words+=("${COMP_WORDS[$index]}")
    elif [[ $index -eq $COMP_CWORD ]]; then
      words+=("")
    elif [[ $index -lt $COMP_CWORD ]]; then
      number=$((number - 1))
    fi
  done
  local broken="${COMP_WORDS[$COMP_CWORD]}"
  local -a COMP_WORDS=("${words[@]}")
  local COMP_CWORD=$number
  _shtab_secateur
  local typed="${COMP_WORDS[$COMP_CWORD]}"
  [[ "$broken" == ":" ]] && broken=
  local before="${typed%"$broken"}" # what bash leaves as it is
  if [[ "$before" == *: ]]; then
    for index in "${!COMPREPLY[@]}"; do
      [[ -d "${COMPREPLY[$index]}" ]] && COMPREPLY[$index]+="/" && compopt -o nospace 2>/dev/null
      COMPREPLY[$index]="${COMPREPLY[$index]#"$before"}"
    done
  fi
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
    script = _MENDED[options["shell"]](shtab.complete(_all_commands(options["shell"]), options["shell"]))
    if options["json"]:
        print_json({"script": script})
    else:
        print(script)
        progress.note(_WHERE[options["shell"]])


def _mended_for_bash(script: str) -> str:
    """The script with bash's own idea of a word undone."""
    return script.replace("-F _shtab_secateur secateur", "-F _secateur secateur") + _WORDS_OF_BASH


def _mended_for_zsh(script: str) -> str:
    """The script such that it can be sourced too, and completes every one of several models."""
    script = script.replace("if [[ $zsh_eval_context[-1] == eval ]]", "if [[ $funcstack[1] != _secateur ]]")
    return script.replace('\n  "(*):', '\n  "*:')


def _mended_for_fish(script: str) -> str:
    """The script with fish's own way to complete files: it knows --out=FILE, and names with spaces."""
    files = '"(__fish_complete_path (commandline -ct))"'
    script = script.replace(f"-xka {files}", "-rF").replace(f"-ka {files}", "-F")
    return re.sub(r'-xka "([^"()]+) \(__fish_complete_path \(commandline -ct\)\)"', r'-rFka "\1"', script)


_MENDED = {"bash": _mended_for_bash, "zsh": _mended_for_zsh, "fish": _mended_for_fish}
"""Shell → what shtab's script for it lacks."""


def _all_commands(shell: str) -> argparse.ArgumentParser:
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
                _add(command, action, _named_texts_or_settings(name, action), "=" if shell == "zsh" else "")
    asked = commands.add_parser("help", add_help=False, help="explain the options of a command")
    asked.add_argument("command", choices=COMMANDS, help="the command")
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


def _files() -> dict[str, Any]:
    """How shtab completes a file; in bash, unlike its own way, one with a space in its name too."""
    import shtab

    preamble = {"bash": '_secateur_files() {\n  compgen -f -- "$1"\n}\n'}
    return {**shtab.FILE, "bash": "_secateur_files", "preamble": preamble}


def _add(command: argparse.ArgumentParser, action: argparse.Action, named: list[str], equals: str) -> None:
    """One option or word of a command; where no values are known, files are completed.

    Args:
        command: what it is added to.
        action: the option, as jsonargparse has it.
        named: the names it knows beside those of files.
        equals: what stands behind the name of an option that takes a value: zsh then completes `--name=value` as well.
    """
    names = [name.replace("_", "-") for name in action.option_strings] or [action.dest]
    described: dict[str, Any] = {"help": " ".join(str(action.help).split()).replace("%", "%%")}
    if action.option_strings and (action.nargs == 0 or action.dest == "print_config"):
        command.add_argument(*names, action="store_true", **described)
        return
    if action.option_strings:
        names = [f"{name}{equals}" for name in names]
    choices = _choices(action)
    if choices:
        command.add_argument(*names, nargs=action.nargs, choices=choices, **described)
    else:
        placeholder = action.metavar or names[0].strip("-=").rpartition(".")[2].upper()
        added: Any = command.add_argument(*names, nargs=action.nargs, metavar=placeholder, **described)
        if named:
            added.complete = _names_or_files(named)
        elif not _is_no_file(action):
            added.complete = _files()


def _is_no_file(action: argparse.Action) -> bool:
    """Whether an option takes numbers, or a text that cannot be the name of a file."""
    hint = getattr(action, "_typehint", None)
    kinds = set(get_args(hint) or (hint,)) - {type(None)}
    return action.dest in _NOT_FILES or all(isinstance(kind, type) and issubclass(kind, _NUMBERS) for kind in kinds)


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
