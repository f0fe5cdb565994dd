"""`secateur estimate`: memory and time of a run, from the configuration alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.cli.options import add_checkpoint, add_method, add_recovery, method_of, print_json, recovery_of, say_next
from secateur.cli.words import carried_over, number_or_text, parse_amount

if TYPE_CHECKING:
    from secateur.cli.parser import Parser

__all__ = ["SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "what prune would take: memory and time of each phase, from the configuration alone"
USAGE = "MODEL --drop N [--method NAME] [--recover KIND] [--hardware NAME] [--devices N] [OPTIONS]"


def add_options(parser: Parser) -> None:
    """The options of this command."""
    parser.add_argument("model", metavar="MODEL", help="hub id or local directory; config.json is enough")
    parser.add_argument(
        "--drop", type=number_or_text(), required=True, help="how many layers go: a count (8) or a share (25%)"
    )
    parser.add_argument("--sequence_length", type=int, default=256, help="tokens per window")
    parser.add_argument("--num_sequences", type=int, default=128, help="calibration windows")
    parser.add_argument("--num_eval_sequences", type=int, default=64, help="windows to measure perplexity on")
    parser.add_argument("--batch_size", type=int, default=4, help="windows per forward pass")
    parser.add_argument(
        "--hardware", type=str, default="here",
        help="this machine, where a few of the layers are timed (here), or a card by its data sheet: h100, a100-80gb, rtx4090, …",
    )  # fmt: skip
    parser.add_argument("--devices", type=int, default=1, help="devices that work on it at once")
    parser.add_argument(
        "--sharded", action="store_true",
        help="trainings share weights, gradients and moments out over the devices (FSDP); choosing has the whole model on each",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="of the weights"
    )
    add_method(parser, default="elder")
    add_recovery(parser)
    add_checkpoint(parser)


def run(options: dict[str, Any], progress: Any, words: list[str]) -> None:
    """Do what was asked for."""
    from secateur.forecast import forecast
    from secateur.report.console import results_console
    from secateur.report.estimate_table import show_estimate

    names = (
        "sequence_length", "num_sequences", "num_eval_sequences", "batch_size", "hardware", "devices", "sharded", "dtype",
        "precision", "revision", "trust_remote_code",
    )  # fmt: skip
    found = forecast(
        options["model"],
        method=method_of(options),
        recovery=recovery_of(options),
        drop=parse_amount(options["drop"], "--drop"),
        **{name: options[name] for name in names},
        progress=progress,
    )
    if options["json"]:
        print_json(found)
    else:
        show_estimate(found, results_console())
        typed = carried_over(words, without=("hardware", "devices"), flags=("sharded",))
        say_next(progress, "prune", *typed, "--data", "SPEC", "--out", "DIR")
