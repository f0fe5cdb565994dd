"""An estimate as a table: a row a phase, with what its memory is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from secateur.progress import duration
from secateur.report.comparison import format_bytes, format_count

__all__ = ["estimate_table", "show_estimate"]

_PARTS = {"weights": ("weights",), "training": ("gradients", "moments", "kept"), "passing": ("activations",)}
"""Column → what of the estimate is in it."""

_PROOFS = ("cut and prove", "prove")
"""Phases in which several models are in memory."""


def show_estimate(found: Mapping[str, Any], console: Console) -> None:
    """The table, and what it comes to.

    Args:
        found: of `secateur.forecast.forecast`.
        console: a rich console.
    """
    hardware = found["hardware"]
    console.print(estimate_table(found))
    devices = f"{found['devices']} × {hardware['name']}" if found["devices"] > 1 else hardware["name"]
    how = "timed here" if hardware["measured"] else "of its data sheet's peak 40 % assumed"
    fits = "it fits" if found["fits"] else f"it does NOT fit: {_advice(found)}"
    console.print(
        "training: gradients, AdamW's moments and copies that are kept; passing: activations and logits\n"
        f"{found['drop']} of {found['num_layers']} layers by {found['method']}, {found['dtype']}, on {devices} "
        f"({hardware['flops_per_second'] / 1e12:.3g} TFLOP/s, {how}; {format_bytes(hardware['memory_bytes'])} each)\n"
        f"about {_span(found['seconds'])} and at most {format_bytes(found['memory_bytes'])} a device: {fits}",
        soft_wrap=True,
    )


def estimate_table(found: Mapping[str, Any]) -> Table:
    """A row a phase, whole in a terminal of 80 columns; its operations are in `--json` alone."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("phase", no_wrap=True)
    for name in ("tokens", *_PARTS, "peak", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for phase in found["phases"]:
        parts = [sum(phase[f"{name}_bytes"] for name in names) for names in _PARTS.values()]
        table.add_row(
            phase["phase"],
            format_count(phase["tokens"]),
            *(format_bytes(part) if part else "" for part in parts),
            format_bytes(phase["memory_bytes"]),
            _span(phase["seconds"]),
        )
    return table


def _advice(found: Mapping[str, Any]) -> str:
    """What makes room in the phases that do not fit, the earliest kind first: what cannot choose need not train."""
    room, tunes = found["hardware"]["memory_bytes"], found["command"] == "tune"
    over = {phase["phase"]: phase for phase in found["phases"] if phase["memory_bytes"] > room}
    whole = {name: phase for name, phase in over.items() if not phase["trains"]}
    if not whole:
        few = "a smaller --micro-batch or --max-length" if tunes else "fewer windows per forward pass (a micro batch)"
        return f"try --sharded on more --devices, LoRA, or {few}"
    if set(whole) == {"prove"}:
        return (
            "tune holds the pruned model twice and the dense one in its proof; choose by secateur score, then secateur cut, "
            "file to file, and fine-tune that in a script of your own"
        )
    if set(whole) == {"cut and prove"}:
        return "prune holds both models in its proof; choose by secateur score, then secateur cut, file to file"
    held = ("weights", "gradients", "moments", "kept")
    if any(sum(phase[f"{part}_bytes"] for part in held) > room for name, phase in whole.items() if name not in _PROOFS):
        return (
            "choosing holds the whole model on each device; spread it by secateur score (and eval) --device-map auto, then "
            "secateur cut, file to file"
        )
    return "try a smaller --max-length" if tunes else "try a smaller --batch-size or --sequence-length"


def _span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)
