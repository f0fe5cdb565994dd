"""`secateur check`: is a checkpoint another one without some layers?"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from secateur.cli.options import add_checkpoint, print_json, say_next
from secateur.cli.words import number_or_text, parse_layers, refuse_without_effect
from secateur.errors import RequestError

if TYPE_CHECKING:
    from secateur.cli.parser import Parser
    from secateur.surgery.findings import Check

__all__ = ["EXAMPLES", "SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "prove that a checkpoint is another one without some layers, whoever made it"
USAGE = "DENSE PRUNED [OPTIONS]"
EXAMPLES = (
    "secateur check DENSE PRUNED",
    "secateur check DENSE PRUNED --files-only",
)

_PROMPT_TOKENS = 64

_OF_RUNNING = {
    "layer_by_layer": False, "prompt_tokens": _PROMPT_TOKENS, "revision": None, "trust_remote_code": False,
    "allow_pickle": False,
}  # fmt: skip
"""Options of checkpoints that are run, and their defaults."""


def add_options(parser: Parser) -> None:
    """The options of this command."""
    parser.add_argument("model", metavar="DENSE", help="local directory, hub id or GGUF file of the dense model")
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
    parser.add_argument("--prompt_tokens", type=int, default=_PROMPT_TOKENS, help="token ids that both models read")
    add_checkpoint(parser)


def run(options: dict[str, Any], progress: Any, words: list[str]) -> None:
    """Do what was asked for."""
    from secateur.errors import ProofError
    from secateur.report.check_table import show_check
    from secateur.report.console import results_console
    from secateur.surgery.gguf_files import looks_like_gguf

    if options["prompt_tokens"] < 2:
        raise RequestError(f"--prompt-tokens must be 2 or more, not {options['prompt_tokens']}")
    in_one_file = [path for path in (options["model"], options["pruned"]) if looks_like_gguf(path)]
    if len(in_one_file) == 1:
        raise RequestError(
            f"{in_one_file[0]} is a GGUF file, and the other is none; give two checkpoints, or two GGUF files"
        )
    if in_one_file:
        why = "on GGUF files, which are compared and not run; leave it out"
        refuse_without_effect(options, _OF_RUNNING, words, why)
    check = (_of_gguf_files if in_one_file else _of_checkpoints)(options, progress)
    if options["json"]:
        print_json({**dataclasses.asdict(check), "proven": check.proven, "difference": check.difference})
    else:
        show_check(check, results_console())
    if not check.proven:
        raise ProofError(f"{check.pruned} is not {check.dense} without some layers: {check.difference}")
    if not options["json"] and not in_one_file:
        say_next(progress, "bench", options["model"], options["pruned"])


def _of_checkpoints(options: dict[str, Any], progress: Any) -> Check:
    from secateur.loading import local_checkpoint
    from secateur.surgery.check import check_pair

    return check_pair(
        local_checkpoint(options["model"], revision=options["revision"]),
        local_checkpoint(options["pruned"]),
        dropped=None if options["layers"] is None else parse_layers(options["layers"]),
        run=not options["files_only"],
        layer_by_layer=options["layer_by_layer"] or None,
        prompt_tokens=options["prompt_tokens"],
        trust_remote_code=options["trust_remote_code"],
        progress=progress,
    )


def _of_gguf_files(options: dict[str, Any], progress: Any) -> Check:
    from secateur.surgery.gguf_check import check_gguf_pair

    dropped = None if options["layers"] is None else parse_layers(options["layers"])
    return check_gguf_pair(options["model"], options["pruned"], dropped=dropped, progress=progress)
