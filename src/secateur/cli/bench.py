"""`secateur bench`: what pruning buys, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.cli.options import add_loading, check_file, print_json, say_next
from secateur.cli.words import number_or_text, parse_sizes

if TYPE_CHECKING:
    from secateur.cli.parser import Parser

__all__ = ["EXAMPLES", "SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "measure what pruning buys: speed, memory and size of models side by side, and of the ideal"
USAGE = "DENSE PRUNED [PRUNED ...] [OPTIONS]"
EXAMPLES = ("secateur bench DENSE PRUNED --batch-sizes 1,8",)


def add_options(parser: Parser) -> None:
    """The options of this command."""
    parser.add_argument("model", metavar="DENSE", help="hub id or local directory of the dense model")
    parser.add_argument(
        "pruned", nargs="+", metavar="PRUNED",
        help="the same of a pruned model; all are in memory at once (if they do not fit: one at a time, --dtype bfloat16)",
    )  # fmt: skip
    parser.add_argument("--prompt_tokens", type=int, default=128, help="tokens of each prompt")
    parser.add_argument(
        "--new_tokens", type=int, default=32, help="tokens written after each prompt and its first token"
    )
    parser.add_argument(
        "--batch_sizes", type=number_or_text(), default="1,4,16", help="sequences read and written at once"
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns; each measures every model at every batch size")
    parser.add_argument("--cuda_graphs", action="store_true", help="write with CUDA graphs too, besides without")
    parser.add_argument("--no_memory", action="store_true", help="leave out peak memory, which takes a process a model")
    parser.add_argument("--out", type=str, help="write the record to this JSON file")
    add_loading(parser)


def run(options: dict[str, Any], progress: Any, words: list[str]) -> None:
    """Do what was asked for."""
    out = options["out"]
    check_file(out, "the record")
    batch_sizes = parse_sizes(options["batch_sizes"], "--batch-sizes")

    from secateur.benchmark import bench
    from secateur.errors import OutputError
    from secateur.evaluation.speed import SpeedSettings
    from secateur.report.console import results_console
    from secateur.report.speed_table import show_bench
    from secateur.values import write_json

    record = bench(
        options["model"],
        options["pruned"],
        settings=SpeedSettings(
            batch_sizes=batch_sizes,
            **{name: options[name] for name in ("prompt_tokens", "new_tokens", "repeats", "cuda_graphs")},
        ),
        memory=not options["no_memory"],
        **{name: options[name] for name in ("dtype", "revision", "trust_remote_code")},
        progress=progress,
        command=words,
    )
    if options["json"]:
        print_json(record)
    else:
        show_bench(record, results_console())
        say_next(progress, "push", options["pruned"][0], "OWNER/NAME")
    if out is not None:
        try:
            write_json(out, record)
        except OSError as error:
            raise OutputError(f"cannot write the record to {out}: {error.strerror}; choose another file") from error
