"""`secateur check`: is a checkpoint another one without some layers?"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from secateur.cli.options import add_checkpoint, print_json, say_next
from secateur.cli.words import number_or_text, parse_layers

if TYPE_CHECKING:
    from secateur.cli.parser import Parser

__all__ = ["SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "prove that a checkpoint is another one without some layers, whoever made it"
USAGE = "DENSE PRUNED [OPTIONS]"


def add_options(parser: Parser) -> None:
    """The options of this command."""
    parser.add_argument("model", metavar="DENSE", help="local directory or hub id of the dense model")
    parser.add_argument("pruned", metavar="PRUNED", help="the same of the pruned one")
    parser.add_argument(
        "--layers",
        type=number_or_text(),
        help="which layers went (3,7,20-27); found by comparing the files if not given",
    )
    parser.add_argument("--files_only", action="store_true", help="compare the files, and run nothing")
    parser.add_argument(
        "--layer_by_layer", action="store_true",
        help="leave the layers on the disk and read each when it is its turn; done unasked if the model does not fit",
    )  # fmt: skip
    parser.add_argument("--prompt_tokens", type=int, default=64, help="token ids that both models read")
    add_checkpoint(parser)


def run(options: dict[str, Any], progress: Any, _: list[str]) -> None:
    """Do what was asked for."""
    from secateur.errors import ProofError, RequestError
    from secateur.loading import local_checkpoint
    from secateur.report.check_table import show_check
    from secateur.report.console import results_console
    from secateur.surgery.check import check_pair

    if options["prompt_tokens"] < 2:
        raise RequestError(f"--prompt-tokens must be 2 or more, not {options['prompt_tokens']}")
    check = check_pair(
        local_checkpoint(options["model"], revision=options["revision"]),
        local_checkpoint(options["pruned"]),
        dropped=None if options["layers"] is None else parse_layers(options["layers"]),
        run=not options["files_only"],
        layer_by_layer=options["layer_by_layer"] or None,
        prompt_tokens=options["prompt_tokens"],
        trust_remote_code=options["trust_remote_code"],
        progress=progress,
    )
    if options["json"]:
        print_json({**dataclasses.asdict(check), "proven": check.proven, "difference": check.difference})
    else:
        show_check(check, results_console())
    if not check.proven:
        raise ProofError(f"{check.pruned} is not {check.dense} without some layers: {check.difference}")
    if not options["json"]:
        say_next(progress, "bench", options["model"], options["pruned"])
