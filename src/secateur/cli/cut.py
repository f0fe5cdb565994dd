"""`secateur cut`: remove layers file to file."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from secateur.cli.options import add_checkpoint, add_out, print_json
from secateur.cli.words import parse_layers
from secateur.errors import RequestError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "remove layers from a checkpoint, file to file: weights only, streamed, any size"
USAGE = "CHECKPOINT --out DIR (--layers LIST | --plan FILE) [OPTIONS]"


def add_options(parser: ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("model", metavar="CHECKPOINT", help="local directory or hub id")
    parser.add_argument("--layers", type=str, help="which layers go: numbers and ranges (3,7,20-27)")
    parser.add_argument("--plan", type=str, help="a plan.json written by secateur")
    parser.add_argument("--max_shard_size", type=str, default="5GB", help="size of a file of weights at most")
    parser.add_argument("--dry_run", action="store_true", help="say what would be written, and write nothing")
    add_out(parser)
    add_checkpoint(parser)


def run(options: dict[str, Any], progress: Any, _: list[str]) -> None:
    """Do what was asked for."""
    from secateur.loading import local_checkpoint
    from secateur.plan import PruningPlan
    from secateur.report.comparison import format_bytes
    from secateur.surgery.files import cut_checkpoint

    if (options["layers"] is None) == (options["plan"] is None):
        raise RequestError("say which layers go with one of --layers and --plan")
    plan = None if options["plan"] is None else PruningPlan.load(options["plan"])
    report = cut_checkpoint(
        local_checkpoint(options["model"], revision=options["revision"]),
        options["out"],
        parse_layers(options["layers"]) if plan is None else plan,
        overwrite=options["overwrite"],
        max_shard_size=options["max_shard_size"],
        dry_run=options["dry_run"],
        trust_remote_code=options["trust_remote_code"],
        progress=progress,
    )
    if plan is not None and not report.num_folded and _changes_weights(plan.method):
        progress.note(f"{plan.method} also changes weights before the cut, which this does not; see secateur prune")
    if options["json"]:
        print_json({**dataclasses.asdict(report), "target": str(report.target)})
        return
    folded = f" ({report.num_folded} with dropped layers folded in)" if report.num_folded else ""
    print(
        f"{'would drop' if options['dry_run'] else 'dropped'} layers {', '.join(map(str, report.dropped))} of "
        f"{report.num_layers}: {report.num_tensors} tensors{folded}, {format_bytes(report.num_bytes)} of weights kept, "
        f"{format_bytes(report.removed_bytes)} removed"
    )
    for name, files in (("weights", report.weights), ("copied", report.copied), ("left out", report.left)):
        if files:
            print(f"{name}: {', '.join(files)}")
    if not options["dry_run"]:
        print(f"the pruned checkpoint is in {options['out']}; next: secateur eval {options['out']} --data SPEC")


def _changes_weights(method: str) -> bool:
    from secateur.methods import METHODS

    return method in METHODS and METHODS[method].prepares
