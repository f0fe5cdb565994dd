"""`secateur eval`: models on the same text and the same tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli.options import add_loading, add_placement, add_seed, placement_of, print_json, say_next
from secateur.cli.words import parse_names

if TYPE_CHECKING:
    from secateur.cli.parser import Parser

__all__ = ["EXAMPLES", "SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "measure one or more models on the same text and tasks"
USAGE = "MODEL [MODEL ...] (--data SPEC | --tasks NAMES | both) [OPTIONS]"
EXAMPLES = (
    "secateur eval DENSE PRUNED --data wikitext2",
    "secateur eval DENSE PRUNED --tasks piqa,arc_easy --limit 200",
)

_AS_THEY_ARE = (
    "data", "sequence_length", "num_sequences", "stride", "batch_size", "include_path", "limit", "num_fewshot",
    "task_batch_size", "dtype", "revision", "trust_remote_code", "seed",
)  # fmt: skip
"""Options that `evaluate` takes by these names."""


def add_options(parser: Parser) -> None:
    """The options of this command."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="hub id or local directory")
    parser.add_argument("--data", type=str, help="text to measure perplexity on: a data SPEC, see prune --help")
    parser.add_argument("--sequence_length", type=int, default=256, help="tokens per window")
    parser.add_argument("--num_sequences", type=int, default=128, help="windows: the first, in order")
    parser.add_argument(
        "--stride", type=int, help="tokens from one window to the next, where only new tokens count; null: no overlap"
    )
    parser.add_argument("--batch_size", type=int, default=4, help="windows per forward pass")
    parser.add_argument(
        "--tasks", type=str, help="tasks or groups of lm-evaluation-harness: names, with commas between them"
    )
    parser.add_argument("--include_path", type=str, help="folder of further task files (*.yaml), as of lm-eval")
    parser.add_argument("--limit", type=int, help="items of each task: the first; null: all")
    parser.add_argument("--num_fewshot", type=int, help="examples in the prompt; null: what each task says, else none")
    parser.add_argument("--task_batch_size", type=int, default=16, help="prompts with an answer per forward pass")
    add_seed(parser, "the examples in the prompts and of sampled answers")
    add_loading(parser)
    add_placement(parser)


def run(options: dict[str, Any], progress: Any, words: list[str]) -> None:
    """Do what was asked for."""
    from secateur.assessment import evaluate
    from secateur.report.console import results_console
    from secateur.report.record import circumstances
    from secateur.report.side_by_side import perplexity_table, tasks_table

    rows = evaluate(
        options["models"],
        tasks=() if options["tasks"] is None else parse_names(options["tasks"], "--tasks"),
        **{name: options[name] for name in _AS_THEY_ARE},
        placement=placement_of(options),
        progress=progress,
    )
    if options["json"]:
        print_json({**circumstances(command=words, seed=options["seed"]), "models": rows})
    else:
        results_console().print(perplexity_table(rows) if options["tasks"] is None else tasks_table(rows))
        say_next(progress, *_following(options))


def _following(options: dict[str, Any]) -> list[str]:
    """The command that goes on from here: one model alone is to be compared if it was pruned, else to be pruned."""
    models = options["models"]
    if len(models) > 1:
        return ["bench", *models]
    if (Path(models[0]) / "secateur" / "plan.json").is_file():
        return ["bench", "DENSE", *models]
    revision = [] if options["revision"] is None else ["--revision", options["revision"]]
    return ["prune", *models, *revision, "--data", "SPEC", "--drop", "25%", "--out", "DIR"]
