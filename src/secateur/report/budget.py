"""How the number of layers was found under a budget, as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from secateur.report.comparison import MISSING, format_number

__all__ = ["budget_table"]


def budget_table(budget: Mapping[str, Any]) -> Table:
    """One row a number of layers that was tried: what it measured, and which was taken.

    Args:
        budget: the record's `budget`.
    """
    by_speed = budget["kind"] == "target_speedup"
    columns = {"prefill": "prefill", "decode": "decode", "speedup": "the smaller"} if by_speed else {
        "perplexity": "perplexity", "increase": "increase",
    }  # fmt: skip
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("layers dropped", *columns.values()):
        table.add_column(name, justify="right")
    table.add_column("")
    for trial in budget["trials"]:
        values = [_tried(name, trial[name]) for name in columns]
        taken = trial["num_dropped"] == budget["chosen"]
        table.add_row(str(trial["num_dropped"]), *values, "taken" if taken else "")
    bound = f"at least ×{budget['bound']:g}" if by_speed else f"at most +{100 * budget['bound']:g} %"
    table.caption = f"asked for: {bound}"
    return table


def _tried(name: str, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return MISSING
    if name == "perplexity":
        return format_number(value)
    return f"{100 * value:+,.1f} %".replace("-", "−") if name == "increase" else f"×{value:.2f}"
