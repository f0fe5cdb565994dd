"""`secateur tune`: fine-tune on a task, pruned on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.cli.options import (
    add_loading,
    add_method,
    add_out,
    add_push,
    add_resume,
    add_settings,
    add_target,
    check_places,
    loading_of,
    method_of,
    print_json,
    push_finished,
    resume_of,
    say_next,
    settings_of,
    target_of,
    upload_of,
)
from secateur.cli.words import number_or_text, parse_names

if TYPE_CHECKING:
    from secateur.cli.parser import Parser

__all__ = ["EXAMPLES", "SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "fine-tune on a task, pruned on the way: score, merge, cut, fine-tune, prove, measure"
USAGE = "MODEL --data SPEC --out DIR (--drop N | --target-params SHARE | --layers LIST) [--train full|lora] [OPTIONS]"
EXAMPLES = (
    "secateur tune MODEL --data reviews.csv --drop 20% --out tuned",
    "secateur tune MODEL --config finance-classification --data DIR --tune-dense --out tuned",
)


def add_options(parser: Parser) -> None:
    """The options of this command."""
    from secateur.data.task import TaskSettings
    from secateur.training.settings import FineTuning

    parser.add_argument("model", metavar="MODEL", help="hub id or local directory")
    add_settings(parser, TaskSettings, without={"labels"})
    parser.add_argument(
        "--labels", type=number_or_text(),
        help="what a classification chooses among, and what labels that are numbers stand for, from 0 on: negative,positive; "
        "all of the data if null",
    )  # fmt: skip
    add_settings(parser, FineTuning)
    parser.add_argument(
        "--metric", choices=["auto", "accuracy", "perplexity", "generation"], default="auto",
        help="what is measured; auto is accuracy where there are options to choose among, else perplexity of the completion",
    )  # fmt: skip
    parser.add_argument(
        "--max_new_tokens", type=int, default=128, help="with --metric generation, tokens of an answer at most"
    )
    parser.add_argument(
        "--num_samples", type=int, default=3,
        help="test examples that the report shows, with what both models write after them; 0 for none",
    )  # fmt: skip
    parser.add_argument("--merge_adapters", action="store_true", help="with --train lora, write one plain checkpoint")
    parser.add_argument("--tune_dense", action="store_true", help="fine-tune the dense model alike, for comparison")
    parser.add_argument(
        "--continue_adapters", action="store_true",
        help="with --train lora, go on from the scoring's adapters of the layers that stay (published: they are discarded)",
    )  # fmt: skip
    add_resume(parser)
    add_method(parser, default="gradpruner")
    add_target(parser)
    add_out(parser)
    add_push(parser)
    add_loading(parser)


def run(options: dict[str, Any], progress: Any, words: list[str]) -> None:
    """Do what was asked for."""
    from secateur.data.task import TaskSettings
    from secateur.training.settings import FineTuning

    # What can be wrong is looked for before torch is imported, which takes seconds.
    labels = options["labels"]
    options["labels"] = None if labels is None else tuple(parse_names(labels, "--labels"))
    task, tuning = settings_of(TaskSettings, options), settings_of(FineTuning, options)
    target, method, resume = target_of(options), method_of(options), resume_of(options)
    check_places(options)
    upload = upload_of(options)

    from secateur.report.console import results_console, show_tuned
    from secateur.tuning import tune

    result = tune(
        options["model"],
        task=task,
        target=target,
        out=options["out"],
        method=method,
        tuning=tuning,
        metric=options["metric"],
        max_new_tokens=options["max_new_tokens"],
        num_samples=options["num_samples"],
        merge_adapters=options["merge_adapters"],
        tune_dense=options["tune_dense"],
        continue_adapters=options["continue_adapters"],
        overwrite=options["overwrite"],
        **resume,
        **loading_of(options),
        progress=progress,
        command=words,
    )
    if options["json"]:
        print_json({"out": str(result.path), **result.record})
    else:
        show_tuned(result.record, str(result.path), results_console())
        if result.record["adapter"]:
            progress.note(
                "next: load both with peft (the model card has the lines), or run the same with --merge-adapters for one "
                "checkpoint that eval and bench read"
            )
        else:
            say_next(progress, "bench", options["model"], str(result.path))
    push_finished(result.path, upload, progress)
