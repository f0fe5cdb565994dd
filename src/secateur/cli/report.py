"""`secateur report`: one page of a run, or of several beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.cli.options import check_file, print_json

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "one page of a run, or of several beside each other, that opens in any browser"
USAGE = "RUN [RUN …] [OPTIONS]"


def add_options(parser: ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="directories that prune or tune made")
    parser.add_argument("--out", type=str, default="report.html", help="the page")


def run(options: dict[str, Any], _progress: Any, _: list[str]) -> None:
    """Do what was asked for."""
    from secateur.plan import write_text
    from secateur.report.page import load_run, report_page

    check_file(options["out"], "the report")
    write_text(options["out"], report_page([load_run(directory) for directory in options["runs"]]))
    if options["json"]:
        print_json({"out": options["out"]})
    else:
        print(f"the report is in {options['out']}; open it in any browser")
