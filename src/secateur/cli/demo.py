"""`secateur demo`: the whole thing on the sample model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.cli.options import add_out, print_pruned

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "the whole thing on a sample model, in minutes, offline after the first fetch"
USAGE = "[--out DIR] [OPTIONS]"


def add_options(parser: ArgumentParser) -> None:
    """The options of this command."""
    add_out(parser, default="secateur-demo")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")


def run(options: dict[str, Any], progress: Any, words: list[str]) -> None:
    """Do what was asked for."""
    from secateur.demo import demo

    result = demo(
        options["out"], overwrite=options["overwrite"], seed=options["seed"], progress=progress, command=words
    )
    print_pruned(result, as_json=options["json"])
