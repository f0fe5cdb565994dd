"""`secateur eval`: models on the same text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.cli.options import add_loading, print_json

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "measure the perplexity of one or more models on the same text"
USAGE = "MODEL [MODEL ...] --data SPEC [OPTIONS]"


def add_options(parser: ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="hub id or local directory")
    parser.add_argument("--data", type=str, required=True, help="text to measure on: a data SPEC, see prune --help")
    parser.add_argument("--sequence_length", type=int, default=256, help="tokens per window")
    parser.add_argument("--num_sequences", type=int, default=128, help="windows: the first, in order")
    parser.add_argument("--batch_size", type=int, default=4, help="windows per forward pass")
    add_loading(parser)


def run(options: dict[str, Any], progress: Any, _: list[str]) -> None:
    """Do what was asked for."""
    from secateur.pipeline import evaluate
    from secateur.report.console import perplexity_table, results_console

    rows = evaluate(
        options["models"],
        data=options["data"],
        sequence_length=options["sequence_length"],
        num_sequences=options["num_sequences"],
        batch_size=options["batch_size"],
        dtype=options["dtype"],
        revision=options["revision"],
        trust_remote_code=options["trust_remote_code"],
        progress=progress,
    )
    if options["json"]:
        print_json({"models": rows})
    else:
        results_console().print(perplexity_table(rows))
