"""The parser of a command: options with dashes, and help on what is asked for alone."""

from __future__ import annotations

import re
from argparse import SUPPRESS
from collections.abc import Collection, Sequence
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

__all__ = ["EVERYTHING", "Formatter", "Parser"]

EVERYTHING = ("--help", "--method=all")
"""The words that ask for help on all options."""

_OPTION = re.compile(r"(?<![\w-])--[A-Za-z][\w.-]*")
_METHOD = re.compile(r"(?<!\S)--method[= ](\S+)")

_MORE_HELP = (
    "--method NAME --help lists the settings of that method as well, such as --elder.learning-rate; "
    "--method all --help those of all."
)


class Formatter(DefaultHelpFormatter):
    """What an option does, and what it is if nobody says; types of Python are left out, for a refusal says what is expected."""

    def _get_help_string(self, action: Any) -> str:
        if action.dest == "print_config":  # in the parser's own words it is longer
            return "write all settings as YAML and exit; =skip_default: those alone that are not the defaults"
        if action.dest in ("help", "config"):
            return str(super()._get_help_string(action))
        said = str(action.help or "")
        if action.option_strings and action.required:
            return f"{said} (required)"
        nothing = action.default in (None, SUPPRESS, {}) or action.default is False
        return said if nothing else f"{said} (default: %(default)s)"


class Parser(ArgumentParser):
    """Names of options are Python names inside, and are shown with dashes."""

    examples: Sequence[str] = ()
    """Commands that people type, shown at the end of the help."""

    words: Sequence[str] = EVERYTHING
    """What was typed: docstrings are read of the options that it asks for help on, since that takes a third of all the time."""

    methods: Collection[str] = ()
    """The methods that the command takes."""

    @property
    def unexplained(self) -> Collection[str]:
        """The methods whose settings the help leaves out: there are hundreds of lines, and a run has one method.

        Raises:
            RequestError: if help is asked for on a method that is none; it says which is meant.
        """
        named = _METHOD.findall(" ".join(self.words))[-1:]
        if named == ["all"]:
            return ()
        if named and self.methods and self._asks_for_help():
            from secateur.methods import method_named

            method_named(named[0])
        return [method for method in self.methods if method not in named]

    def add_settings(self, of: type, group: str | None, explained: str | None, without: Collection[str] = ()) -> None:
        """The fields of a dataclass as options but some, with what its docstrings say where help on them is asked for."""
        wanted = self._asks_for_help() and group not in self.unexplained
        set_parsing_settings(docstring_parse_attribute_docstrings=wanted)
        self.add_class_arguments(of, group, help=explained, skip=set(without))

    def titled(self, title: str) -> Any:
        """The options under that title in the help; `parser.titled("…").add_argument(…)` adds one."""
        groups = [group for group in self._action_groups if group.title == title]
        return groups[0] if groups else self.add_argument_group(title)

    def format_help(self, formatter: Any = None) -> str:
        """The help, without the groups that are left out, and with the examples."""
        unexplained, groups = self.unexplained, self._action_groups
        self._action_groups = [group for group in groups if not _is_of(group, unexplained)]
        self.epilog = _MORE_HELP if unexplained else None
        try:
            said = _OPTION.sub(lambda found: found[0].replace("_", "-"), super().format_help(formatter))
            return "\n  ".join([f"{said}\nexamples:", *self.examples]) + "\n" if self.examples else said
        finally:
            self._action_groups = groups

    def _asks_for_help(self) -> bool:
        return any(word in ("-h", "--help") for word in self.words)


def _is_of(group: Any, methods: Collection[str]) -> bool:
    """Whether a group of options holds settings of these methods alone."""
    found = {action.dest.partition(".")[0].replace("_", "-") for action in group._group_actions}
    return bool(found) and found <= set(methods)
