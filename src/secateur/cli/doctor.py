"""`secateur doctor`: what this machine has, and what is missing for which feature."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from secateur.cli.options import print_json, say_next

if TYPE_CHECKING:
    from secateur.cli.parser import Parser

__all__ = ["EXAMPLES", "SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "what this machine has for a run, and what is missing for which feature"
USAGE = "[OPTIONS]"
EXAMPLES = ("secateur doctor --no-network",)


def add_options(parser: Parser) -> None:
    """The options of this command."""
    parser.add_argument("--no_network", action="store_true", help="do not ask whether the hub answers")


def run(options: dict[str, Any], progress: Any, _: list[str]) -> None:
    """Do what was asked for."""
    from secateur.doctor import examine
    from secateur.report.console import results_console
    from secateur.report.findings_table import findings_table

    found = examine(online=not options["no_network"])
    if options["json"]:
        print_json({"findings": [dataclasses.asdict(finding) for finding in found]})
    else:
        results_console().print(findings_table([(each.what, each.state, each.says) for each in found]))
        say_next(progress, "demo")
