"""`secateur prune`: choose layers, prepare, cut, recover if asked to, prove, measure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.cli.options import (
    add_format,
    add_loading,
    add_method,
    add_out,
    add_push,
    add_recovery,
    add_resume,
    add_settings,
    add_target,
    check_places,
    converter_of,
    loading_of,
    method_of,
    print_pruned,
    push_finished,
    recovery_of,
    resume_of,
    target_of,
    text_of,
    upload_of,
)

if TYPE_CHECKING:
    from secateur.cli.parser import Parser

__all__ = ["EXAMPLES", "SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "make a smaller checkpoint: choose layers, prepare, cut, recover, prove, measure"
USAGE = (
    "MODEL --data SPEC --out DIR (--drop N | --target-params SHARE | --layers LIST | --max-ppl-increase SHARE | "
    "--target-speedup RATIO) [--method NAME] [--recover KIND] [OPTIONS]"
)
EXAMPLES = (
    "secateur prune MODEL --data wikitext2 --drop 20% --out smaller",
    "secateur prune MODEL --config general-small --data articles.jsonl --out smaller",
    "secateur prune MODEL --method sleb --data notes.txt --max-ppl-increase 10% --out smaller",
)


def add_options(parser: Parser) -> None:
    """The options of this command."""
    from secateur.request import TextSettings

    parser.add_argument("model", metavar="MODEL", help="hub id or local directory")
    add_settings(parser, TextSettings)
    add_method(parser, default="elder")
    add_target(parser, budgets=True)
    add_recovery(parser)
    add_resume(parser)
    add_out(parser)
    add_format(parser)
    add_push(parser)
    add_loading(parser)


def run(options: dict[str, Any], progress: Any, words: list[str]) -> None:
    """Do what was asked for."""
    # What can be wrong is looked for before torch is imported, which takes seconds.
    target, method, text, recovery = target_of(options), method_of(options), text_of(options), recovery_of(options)
    resume = resume_of(options)
    check_places(options)
    converter, upload = converter_of(options), upload_of(options)

    from secateur.pipeline import prune
    from secateur.processes import by_first
    from secateur.surgery.convert import convert_to_gguf

    result = prune(
        options["model"],
        method=method,
        text=text,
        target=target,
        recovery=recovery,
        out=options["out"],
        overwrite=options["overwrite"],
        **resume,
        **loading_of(options),
        progress=progress,
        command=words,
    )
    if converter:
        progress.note(f"the same as a GGUF file: {by_first(lambda: convert_to_gguf(result.path, converter))}")
    print_pruned(result, progress, as_json=options["json"])
    push_finished(result.path, upload, progress)
