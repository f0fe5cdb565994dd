"""`secateur score`: decide only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from secateur.cli.options import (
    add_loading,
    add_method,
    add_placement,
    add_settings,
    check_file,
    check_places,
    loading_of,
    method_of,
    placement_of,
    print_json,
    say_next,
    text_of,
)
from secateur.cli.words import carried_over, is_typed, number_or_text, parse_amount

if TYPE_CHECKING:
    from secateur.cli.parser import Parser

__all__ = ["EXAMPLES", "SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "decide only: a score for each layer, and which would go"
USAGE = "MODEL --data SPEC [--method NAME] [--drop N] [OPTIONS]"
EXAMPLES = (
    "secateur score MODEL --method shortgpt --data python-docs --drop 25%",
    "secateur score MODEL --method sleb --data wikitext2 --drop 8 --out plan.json",
)


def add_options(parser: Parser) -> None:
    """The options of this command."""
    from secateur.request import TextSettings

    parser.add_argument("model", metavar="MODEL", help="hub id or local directory")
    add_settings(parser, TextSettings)
    add_method(parser, default="elder")
    parser.add_argument(
        "--drop", type=number_or_text(), default="25%", help="how many layers to choose: a count or a share"
    )
    parser.add_argument("--out", type=str, help="write the plan to this JSON file")
    add_loading(parser)
    add_placement(parser)


def run(options: dict[str, Any], progress: Any, words: list[str]) -> None:
    """Do what was asked for."""
    # What can be wrong is looked for before torch is imported, which takes seconds.
    method, text, drop = method_of(options), text_of(options), parse_amount(options["drop"], "--drop")
    out = options["out"]
    check_file(out, "the plan")
    check_places(options)

    from secateur.errors import OutputError
    from secateur.pipeline import score
    from secateur.processes import is_first
    from secateur.report.console import results_console, score_bars
    from secateur.report.record import circumstances

    plan = score(
        options["model"],
        method=method,
        text=text,
        drop=drop,
        **loading_of(options),
        placement=placement_of(options),
        progress=progress,
    )
    if out is not None and is_first():
        try:
            plan.save(out)
        except OSError as error:
            raise OutputError(f"cannot write the plan to {out}: {error.strerror}; choose another file") from error
    if options["json"]:
        print_json(
            {
                **circumstances(command=words, seed=options["seed"]),
                "model": options["model"],
                "data": plan.provenance["data"],
                "method": plan.method,
                "scores": list(plan.scores or ()),
                "dropped": list(plan.dropped),
                "order": list(plan.order),
            }
        )
        return
    console = results_console()
    if plan.scores is not None:
        console.print(score_bars(plan.scores, plan.dropped))
    dropped, order = (", ".join(map(str, layers)) for layers in (plan.dropped, plan.order))
    said = f"layers {dropped}, in the order {order}" if len(plan.order) > 1 else f"layer {dropped}"
    console.print(f"{plan.method} would drop {said}", soft_wrap=True)
    say_next(progress, *_following(options, words, plan.dropped))


def _following(options: dict[str, Any], words: list[str], dropped: Sequence[int]) -> list[str]:
    """The command that goes on from here, as it was asked for; a model spread over devices is too large for `prune`."""
    if options["device_map"] is not None:
        layers = ["--layers", ",".join(map(str, dropped))] if options["out"] is None else ["--plan", options["out"]]
        loading = [] if options["revision"] is None else ["--revision", options["revision"]]
        loading += ["--trust-remote-code"] if options["trust_remote_code"] else []
        return ["cut", options["model"], *layers, *loading, "--out", "DIR"]
    missing = [word for name in ("data", "drop") if not is_typed(words, name) for word in (f"--{name}", options[name])]
    return ["prune", *carried_over(words, without=("out",)), *missing, "--out", "DIR"]
