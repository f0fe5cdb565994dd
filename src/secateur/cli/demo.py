"""`secateur demo`: the whole thing on the sample model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.cli.options import add_out, add_resume, add_seed, check_places, print_pruned, resume_of

if TYPE_CHECKING:
    from secateur.cli.parser import Parser

__all__ = ["EXAMPLES", "SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "the whole thing on a sample model, in minutes, offline after the first fetch"
USAGE = "[--out DIR] [OPTIONS]"
EXAMPLES = (
    "secateur demo",
    "secateur demo --resume",
)


def add_options(parser: Parser) -> None:
    """The options of this command."""
    add_out(parser, default="secateur-demo")
    add_resume(parser)
    add_seed(parser)


def run(options: dict[str, Any], progress: Any, words: list[str]) -> None:
    """Do what was asked for."""
    resume = resume_of(options)
    check_places(options)

    from secateur.demo import demo

    result = demo(
        options["out"],
        overwrite=options["overwrite"],
        **resume,
        seed=options["seed"],
        progress=progress,
        command=words,
    )
    print_pruned(result, progress, as_json=options["json"])
