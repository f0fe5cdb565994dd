"""`secateur carry`: a LoRA adapter of the dense model, for the pruned one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from secateur.cli.options import add_out, print_json

if TYPE_CHECKING:
    from secateur.cli.parser import Parser

__all__ = ["EXAMPLES", "SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "carry a LoRA adapter of the dense model over to the pruned one"
USAGE = "ADAPTER --plan FILE --out DIR [OPTIONS]"
EXAMPLES = ("secateur carry ADAPTER --plan smaller/secateur/plan.json --out adapter",)


def add_options(parser: Parser) -> None:
    """The options of this command."""
    parser.add_argument("adapter", metavar="ADAPTER", help="directory of a LoRA adapter, as peft saves it")
    parser.add_argument("--plan", type=str, required=True, help="the plan.json of the pruned model (in its secateur/)")
    parser.add_argument("--base", type=str, help="where the pruned model is, for peft to find it")
    add_out(parser, what="the new directory")


def run(options: dict[str, Any], progress: Any, _: list[str]) -> None:
    """Do what was asked for."""
    from secateur.plan import PruningPlan
    from secateur.surgery.adapters import carry_adapter

    carried = carry_adapter(
        options["adapter"],
        options["out"],
        PruningPlan.load(options["plan"]),
        base=options["base"],
        overwrite=options["overwrite"],
    )
    if options["json"]:
        print_json({**dataclasses.asdict(carried), "target": str(carried.target)})
    else:
        print(f"the adapter of the pruned model is in {options['out']}: {carried.num_tensors} tensors")
        progress.note(f"next, in Python, on the pruned model: PeftModel.from_pretrained(model, {options['out']!r})")
