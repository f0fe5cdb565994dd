"""`secateur report`: one page of a run, or of several beside each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli.options import check_file, print_json, say_next

if TYPE_CHECKING:
    from secateur.cli.parser import Parser

__all__ = ["EXAMPLES", "SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "one page of a run, or of several beside each other, that opens in any browser"
USAGE = "RUN [RUN …] [OPTIONS]"
EXAMPLES = ("secateur report smaller smaller-too --out report.html",)


def add_options(parser: Parser) -> None:
    """The options of this command."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="directories that prune or tune made")
    parser.add_argument("--out", type=str, default="report.html", help="the page")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there and no page of a report")


def run(options: dict[str, Any], progress: Any, _: list[str]) -> None:
    """Do what was asked for."""
    from secateur.errors import OutputError
    from secateur.report.comparability import measured_alike
    from secateur.report.page import distinct_names, is_page, load_run, report_page
    from secateur.values import write_text

    out = Path(options["out"])
    check_file(options["out"], "the report")
    if out.is_file() and not options["overwrite"] and not is_page(out):
        raise OutputError(f"{out} is there, and is no page of a report; choose another --out, or add --overwrite")
    names = distinct_names(options["runs"])
    runs = [replace(load_run(run), name=name) for run, name in zip(options["runs"], names, strict=True)]
    for other, reason in measured_alike(runs).why_not if len(runs) > 1 else ():
        progress.note(
            f"{other.name} cannot be compared with the others ({reason}): it is in the table, not in the plot"
        )
    write_text(options["out"], report_page(runs))
    if options["json"]:
        print_json({"out": options["out"]})
    else:
        print(f"the report is in {options['out']}; open it in any browser")
        say_next(progress, "eval", *options["runs"], "--data", "SPEC")
