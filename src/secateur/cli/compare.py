"""`secateur compare`: methods × drops × recoveries × seeds × models on one protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.cli.options import print_json, say_next
from secateur.errors import RequestError, RunError

if TYPE_CHECKING:
    from secateur.cli.parser import Parser

__all__ = ["EXAMPLES", "SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "compare methods, numbers of layers and recoveries on one protocol: tables and plots"
USAGE = "CONFIG.yaml --out DIR [OPTIONS] | --tables DIR"
EXAMPLES = (
    "secateur compare comparison.yaml --out results --dry-run",
    "secateur compare --tables results",
)


def add_options(parser: Parser) -> None:
    """The options of this command."""
    parser.add_argument("comparison", nargs="?", metavar="CONFIG.yaml", help="what to compare; see docs/comparing.md")
    parser.add_argument("--out", type=str, help="folder of the results; what is done there already is not done again")
    parser.add_argument("--only", type=str, help="leave other cells alone than those with such an id (*--elder--*)")
    parser.add_argument("--max_minutes", type=float, help="start no cell that would not be done within so many minutes")
    parser.add_argument("--dry_run", action="store_true", help="list the cells and how far each is, and do nothing")
    parser.add_argument("--remake", action="store_true", help="make cells anew whose settings have changed")
    parser.add_argument("--tables", type=str, metavar="DIR", help="only write tables and plots of the results in DIR")


def run(options: dict[str, Any], progress: Any, words: list[str]) -> None:
    """Do what was asked for."""
    if options["tables"] is not None:
        _tables(options, progress)
        return
    missing = [
        name for key, name in (("comparison", "CONFIG.yaml"), ("out", "--out")) if options[key] is None
    ]  # fmt: skip
    if missing:
        raise RequestError(f"missing {', '.join(missing)} (see secateur compare --help)")
    from secateur.compare.results import STATES
    from secateur.compare.run import compare
    from secateur.report.record import redacted_command

    outcome = compare(
        options["comparison"],
        options["out"],
        only=options["only"],
        max_minutes=options["max_minutes"],
        dry_run=options["dry_run"],
        remake=options["remake"],
        progress=progress,
        command=redacted_command(words),
    )
    counts: dict[str, int] = {state: outcome.count(state) for state in STATES}
    if options["json"]:
        print_json(
            {
                "out": options["out"], **counts, "cells": outcome.states, "errors": outcome.errors,
                "seconds_left": outcome.seconds_left,
            }
        )  # fmt: skip
    else:
        _show(outcome, counts, dry_run=options["dry_run"], out=options["out"])
        if not options["dry_run"]:
            say_next(progress, *["prune", "MODEL", "--data", "SPEC", "--method", "NAME", "--drop", "N", "--out", "DIR"])
    if outcome.errors and not options["dry_run"]:
        first, error = next(iter(outcome.errors.items()))
        raise RunError(
            f"{len(outcome.errors)} of {len(outcome.states)} cells failed, {first} first: {error} (each says why in "
            f"{options['out']}/cells/ID.failed.json; run the same command to try them again)"
        )


def _show(outcome: Any, counts: dict[str, int], *, dry_run: bool, out: str) -> None:
    from secateur.progress import duration

    if dry_run:
        for name, state in outcome.states.items():
            print(f"{state:<8} {name}")
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    if outcome.seconds_left and counts["left"]:
        said += f"; about {duration(outcome.seconds_left)} to go"
    print(f"{len(outcome.states)} cells: {said}")
    if not dry_run:
        table = outcome.folder / "table.md"
        print(f"\n{table.read_text(encoding='utf-8')}\nthe tables are in {out}/table.md, plots in {out}/plots")


def _tables(options: dict[str, Any], progress: Any) -> None:
    from secateur.compare.run import make_tables

    if options["comparison"] is not None or options["out"] is not None:
        raise RequestError("--tables only makes tables of results that are there; leave CONFIG.yaml and --out away")
    written = [str(file) for file in make_tables(options["tables"], progress=progress)]
    if options["json"]:
        print_json({"written": written})
    else:
        print("\n".join(written))
