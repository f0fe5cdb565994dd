"""Models side by side in the terminal: perplexity alone a row a model, with tasks a column a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from secateur.report.comparison import MISSING, format_count, format_number

__all__ = ["perplexity_table", "tasks_table"]


def perplexity_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a model: layers, parameters, perplexity with its standard error, and on how many tokens it stands.

    Args:
        rows: mappings with `model`, `num_layers`, `num_parameters`, `perplexity`, `nll_stderr`, `predicted_tokens`, `window`,
            `stride`; the last is a column where windows overlap.
    """
    overlap = any(row["stride"] != row["window"] for row in rows)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("model", overflow="fold")
    for name in ("layers", "parameters", "perplexity", "± (1 s.e.)", "tokens", "window", *["stride"] * overlap):
        table.add_column(name, justify="right")
    for name, row in zip(_names(rows), rows, strict=True):
        table.add_row(
            name,
            str(row["num_layers"]),
            format_count(row["num_parameters"]),
            format_number(row["perplexity"]),
            format_number(row["perplexity"] * row["nll_stderr"]),
            f"{row['predicted_tokens']:,}",
            str(row["window"]),
            *[str(row["stride"])] * overlap,
        )
    return table


def tasks_table(rows: Sequence[Mapping[str, Any]]) -> Group:
    """One column a model: its size, its perplexity if measured, each task's main metric and their mean.

    A standard error stands behind each figure; `on` says how many tokens or items it stands on.

    Args:
        rows: what `secateur.assessment.evaluate` returns of tasks, one a model, on the same tasks.
    """
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("metric")
    table.add_column("on", justify="right")
    for name in _names(rows):
        table.add_column(name, justify="right", overflow="fold")
    table.add_row("layers", "", *(str(row["num_layers"]) for row in rows))
    table.add_row("parameters", "", *(format_count(row["num_parameters"]) for row in rows))
    if "perplexity" in rows[0]:
        counts = [row["predicted_tokens"] for row in rows]  # of different tokenizers they differ
        tokens = " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
        table.add_row("perplexity", f"{tokens} tokens", *map(_perplexity, rows))
    for scores in zip(*(row["tasks"] for row in rows), strict=True):
        table.add_row(
            f"{scores[0]['task']}, {scores[0]['metric']}",
            f"{scores[0]['num_items']:,} items",
            *(_with_error(score["value"], score["stderr"]) for score in scores),
        )
    means = [row["task_mean"] for row in rows]
    if None not in means:
        values = (_with_error(mean["value"], mean["stderr"]) for mean in means)
        table.add_row("mean", f"{means[0]['num_tasks']} tasks", *values)
    return Group(table, Text(_caption(rows)))


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each model is called in a table: of a path the last part, where that tells all of them apart."""
    sources = [str(row["model"]) for row in rows]
    short = [Path(source).name if source.count("/") != 1 else source for source in sources]  # a hub id has one
    return short if len(set(short)) == len(short) else sources


def _caption(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the figures mean."""
    words = ["± one standard error"]
    if "perplexity" in rows[0]:
        window, stride = rows[0]["window"], rows[0]["stride"]
        words.append(f"windows of {window} tokens" + (f", a stride of {stride}" if stride != window else ""))
    shots = sorted({score["num_fewshot"] for score in rows[0]["tasks"]})
    words.append("prompts with " + " or ".join(str(count) if count else "no" for count in shots) + " examples")
    return "; ".join(words)


def _perplexity(row: Mapping[str, Any]) -> str:
    value = row["perplexity"]
    return f"{format_number(value)} ± {format_number(value * row['nll_stderr'])}"


def _with_error(value: float, stderr: float) -> str:
    """Shares in thousandths, larger figures as people write them."""
    if not -10 < value < 10:
        return f"{format_number(value)} ± {MISSING if math.isnan(stderr) else format_number(stderr)}"
    return f"{value:.3f} ± {MISSING if math.isnan(stderr) else f'{stderr:.3f}'}"
