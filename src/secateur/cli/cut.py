"""`secateur cut`: remove layers file to file, of a checkpoint or a GGUF file."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli.options import add_checkpoint, add_format, add_out, converter_of, print_json, say_next
from secateur.cli.words import number_or_text, parse_layers, refuse_without_effect
from secateur.errors import RequestError

if TYPE_CHECKING:
    from secateur.cli.parser import Parser
    from secateur.plan import PruningPlan
    from secateur.surgery.files import CutReport

__all__ = ["EXAMPLES", "SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "remove layers from a checkpoint, file to file: weights only, streamed, any size"
USAGE = "CHECKPOINT --out DIR|FILE.gguf (--layers LIST | --plan FILE) [OPTIONS]"
EXAMPLES = (
    "secateur cut CHECKPOINT --layers 20-27 --out DIR",
    "secateur cut model.gguf --plan plan.json --out smaller.gguf",
)

_SHARD = "5GB"

_OF_CHECKPOINTS = {
    "format": "checkpoint", "max_shard_size": _SHARD, "revision": None, "trust_remote_code": False, "allow_pickle": False,
}  # fmt: skip
"""Options that concern no GGUF file, and their defaults."""


def add_options(parser: Parser) -> None:
    """The options of this command."""
    parser.add_argument("model", metavar="CHECKPOINT", help="local directory, hub id or GGUF file")
    parser.add_argument("--layers", type=number_or_text(), help="which layers go: numbers and ranges (3,7,20-27)")
    parser.add_argument("--plan", type=str, help="a plan.json written by secateur")
    parser.add_argument("--max_shard_size", type=str, default=_SHARD, help="size of a file of weights at most")
    parser.add_argument("--dry_run", action="store_true", help="say what would be written, and write nothing")
    add_out(parser)
    add_format(parser)
    add_checkpoint(parser)


def run(options: dict[str, Any], progress: Any, words: list[str]) -> None:
    """Do what was asked for."""
    from secateur.plan import PruningPlan
    from secateur.surgery.convert import convert_to_gguf
    from secateur.surgery.files import cut_checkpoint
    from secateur.surgery.gguf_files import cut_gguf, is_gguf

    if (options["layers"] is None) == (options["plan"] is None):
        raise RequestError("say which layers go with one of --layers and --plan")
    plan = None if options["plan"] is None else PruningPlan.load(options["plan"])
    dropped = parse_layers(options["layers"]) if plan is None else plan
    converter = converter_of(options)
    common = {"overwrite": options["overwrite"], "dry_run": options["dry_run"], "progress": progress}
    if is_gguf(options["model"]):
        refuse_without_effect(options, _OF_CHECKPOINTS, words, "on a GGUF file; leave it out")
        report = cut_gguf(options["model"], options["out"], dropped, **common)
    else:
        folder = _folder(options["model"], options["revision"])
        report = cut_checkpoint(
            folder,
            options["out"],
            dropped,
            max_shard_size=options["max_shard_size"],
            trust_remote_code=options["trust_remote_code"],
            about=partial(_about, folder=folder, plan=plan, options=options, words=words),
            **common,
        )
        if converter and not options["dry_run"]:
            progress.note(f"the same as a GGUF file: {convert_to_gguf(report.target, converter)}")
    if plan is not None and (what := _left_undone(plan, report)):
        progress.note(f"{what} also changes weights before the cut, which this does not; see secateur prune")
    if options["json"]:
        print_json({**dataclasses.asdict(report), "target": str(report.target)})
        return
    _show(report, options, progress)


def _folder(source: str, revision: str | None) -> Path:
    """The directory of a checkpoint; what reads the hub imports torch, which would keep the copying waiting."""
    if Path(source).is_dir():
        return Path(source)
    from secateur.loading import local_checkpoint

    return local_checkpoint(source, revision=revision)


def _about(
    report: CutReport, folder: Path, plan: PruningPlan | None, options: dict[str, Any], words: list[str]
) -> dict[str, str]:
    """The model card, and what it is made of; this is called when torch has been imported, and the copying has begun."""
    from secateur.report.cut import about_cut

    return about_cut(
        report,
        options["model"],
        folder,
        command=words,
        plan=plan,
        left_undone=None if plan is None else _left_undone(plan, report),
        revision=options["revision"],
        trust_remote_code=options["trust_remote_code"],
    )


def _show(report: CutReport, options: dict[str, Any], progress: Any) -> None:
    """What was done, or would be, for people."""
    from secateur.report.comparison import format_bytes

    folded = f" ({report.num_folded} with dropped layers folded in)" if report.num_folded else ""
    print(
        f"{'would drop' if options['dry_run'] else 'dropped'} layers {', '.join(map(str, report.dropped))} of "
        f"{report.num_layers}: {report.num_tensors} tensors{folded}, {format_bytes(report.num_bytes)} of weights kept, "
        f"{format_bytes(report.removed_bytes)} removed"
    )
    for name, files in (("weights", report.weights), ("copied", report.copied), ("left out", report.left)):
        if files:
            print(f"{name}: {', '.join(files)}")
    if options["dry_run"]:
        return
    if report.target.suffix == ".gguf":
        print(f"the pruned model is {options['out']}")
        say_next(progress, "check", options["model"], options["out"])
    else:
        print(f"the pruned checkpoint is in {options['out']}, with a model card that says what was removed")
        say_next(progress, "eval", options["model"], options["out"], "--data", "SPEC")


def _left_undone(plan: PruningPlan, report: CutReport) -> str | None:
    """Who changes weights before the cut otherwise than a cut from file to file does."""
    from secateur.methods import METHODS

    name = str(plan.provenance.get("prepared_by", plan.method))
    if plan.options.get("absorb"):
        return f"{name} with absorb"
    return name if not report.num_folded and name in METHODS and METHODS[name].prepares else None
