"""Markdown tables of a comparison: perplexity by method and number of layers, what recovery adds, and tasks.

Perplexities of several seeds are averaged as mean nats. `±` is one standard error over the windows of the text, which are the
same for all cells of a model, so that differences between methods are surer than it says; with several seeds their range follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from secateur.compare.results import Row
from secateur.report.comparison import MISSING
from secateur.values import write_text

__all__ = ["markdown", "mean_error", "mean_nll", "page", "perplexity_text", "table", "write_tables"]

_ONLY_MAGNITUDE = 1e6
"""From this perplexity on: guessing among the tokens of a large vocabulary has 2.6e+05."""

_TABLES = ("drops", "recovery", "tasks")
_WORDS = {
    "drops": "Perplexity by the number of layers that go, without recovery. Bold: the lowest of a column.",
    "recovery": "Perplexity after recovery. *Before the cut* are the tokens that the method itself trains on.",
    "tasks": "Tasks, in per cent. The mean's standard error takes the tasks as independent.",
}
_NOTE = (
    "± one standard error over the windows of the text, which are the same for all rows, so differences between rows are "
    "surer than it says. Of several seeds the mean in nats, and in brackets their range."
)


def markdown(head: Sequence[str], body: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """A Markdown table; columns after the first `words` are numbers."""
    lines = [head, ["---"] * words + ["---:"] * (len(head) - words), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_tables(rows: Sequence[Row], file: Path) -> Path:
    """Write all tables to a Markdown file."""
    write_text(file, page(rows))
    return file


def page(rows: Sequence[Row]) -> str:
    """All tables, a section a model."""
    parts = ["# Comparison", _NOTE]
    for model in dict.fromkeys(row.model for row in rows):
        of_model = [row for row in rows if row.model == model]
        parts.append(f"## {model}")
        for name in _TABLES:
            made = table(name, of_model)
            if made:
                parts += [_WORDS[name], made]
    return "\n\n".join(parts) + "\n"


def table(name: str, rows: Sequence[Row]) -> str:
    """One table of the cells of one model: `drops`, `recovery` or `tasks`; empty if there is nothing to show in it."""
    return {"drops": _drops, "recovery": _recovery, "tasks": _tasks}[name](rows)


# ---- the tables ----------------------------------------------------------------------------------------------------------


def _drops(rows: Sequence[Row]) -> str:
    rows = [row for row in rows if row.recovery == "none"]
    drops = sorted({row.drop for row in rows})
    if not drops:
        return ""
    methods = list(dict.fromkeys(row.method for row in rows))
    columns = [_column(methods, lambda method, drop=drop: _of(rows, method=method, drop=drop)) for drop in drops]  # type: ignore[misc]
    body = [[f"`{method}`", *(column[number] for column in columns)] for number, method in enumerate(methods)]
    return markdown(["layers dropped", *map(str, drops)], [["dense", *[_dense(rows)] * len(drops)], *body])


def _recovery(rows: Sequence[Row]) -> str:
    recovered = [row for row in rows if row.recovery != "none"]
    kinds = list(dict.fromkeys(row.recovery for row in recovered))
    if not kinds:
        return ""
    several = len({row.drop for row in recovered}) > 1
    head = ["method", *(["layers dropped"] if several else []), "before the cut"]
    head += [f"{kind}{_tokens_after(recovered, kind)}" for kind in ("none", *kinds)]
    body: list[list[str]] = []
    for drop in sorted({row.drop for row in recovered}):
        methods = list(dict.fromkeys(row.method for row in recovered if row.drop == drop))
        columns = [
            _column(methods, lambda method, drop=drop, kind=kind: _of(rows, method=method, drop=drop, recovery=kind))  # type: ignore[misc]
            for kind in ("none", *kinds)
        ]
        for number, method in enumerate(methods):
            before = _tokens(_of(rows, method=method, drop=drop), "trained_before_cut")
            body.append([f"`{method}`", *([str(drop)] if several else []), before, *(made[number] for made in columns)])
    return markdown(head, body)


def _tasks(rows: Sequence[Row]) -> str:
    measured = [(row, [made for made in found if made["metrics"]["pruned"]["tasks"]]) for row, found in _groups(rows)]
    groups = [(row, found) for row, found in measured if found]
    if not groups:
        return ""
    names = list(
        dict.fromkeys(task for _, found in groups for made in found for task in made["metrics"]["pruned"]["tasks"])
    )
    dense = [made["metrics"]["dense"]["tasks"] for _, found in groups for made in found]
    merged: dict[str, Any] = {}
    for tasks in dense:
        merged |= tasks
    body = [["dense", "0", "none", *_task_cells([merged], names)]]
    for row, found in groups:
        tasks = [made["metrics"]["pruned"]["tasks"] for made in found]
        body.append([f"`{row.method}`", str(row.drop), row.recovery, *_task_cells(tasks, names)])
    return markdown(["method", "layers dropped", "recovery", "mean", *names], body)


# ---- what stands in them -------------------------------------------------------------------------------------------------


def perplexity_text(value: float | None) -> str:
    """A perplexity for people, from a million on its magnitude only; None is one that was not finite."""
    if value is None:
        return "∞"
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < _ONLY_MAGNITUDE else f"{value:.1e}"


def mean_nll(results: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean nats of the pruned models; None if there are none, infinite if one is not finite."""
    values = [made["metrics"]["pruned"]["nll"] for made in results]
    return None if not values else math.inf if None in values else fmean(values)


def mean_error(results: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean standard error, in nats, of the pruned models over the windows; None if unknown. A perplexity's is that times it."""
    known = [made["metrics"]["pruned"]["nll_stderr"] for made in results]
    known = [error for error in known if error is not None]
    return fmean(known) if known else None


def _column(methods: Sequence[str], find: Callable[[str], list[dict[str, Any]]]) -> list[str]:
    """A cell a method, the lowest in bold."""
    found = [find(method) for method in methods]
    values = [mean_nll(results) for results in found]
    lowest = min((value for value in values if value is not None and math.isfinite(value)), default=None)
    cells = [_perplexity(results) for results in found]
    best = [value is not None and value == lowest for value in values]
    return [f"**{cell}**" if bold else cell for cell, bold in zip(cells, best, strict=True)]


def _perplexity(results: Sequence[Mapping[str, Any]]) -> str:
    """`41.20 ± 1.10`, and with several seeds `(40.90–41.50)`."""
    nll = mean_nll(results)
    if nll is None:
        return MISSING
    if not math.isfinite(nll):
        return "∞"
    metrics = [made["metrics"]["pruned"] for made in results]
    said = _with_error(nll, mean_error(results))
    if len(metrics) > 1:
        low, high = (perplexity_text(pick(made["perplexity"] for made in metrics)) for pick in (min, max))
        said += f" ({low}–{high})" if low != high else ""
    return said


def _with_error(nll: float, error: float | None) -> str:
    perplexity = math.exp(nll) if nll < 700 else None
    if perplexity is None or perplexity >= _ONLY_MAGNITUDE or error is None:
        return perplexity_text(perplexity)
    return f"{perplexity_text(perplexity)} ± {perplexity_text(perplexity * error)}"


def _dense(rows: Sequence[Row]) -> str:
    dense = next((row.result["metrics"]["dense"] for row in rows if row.result), None)
    if dense is None:
        return MISSING
    return "∞" if dense["nll"] is None else _with_error(dense["nll"], dense["nll_stderr"])


def _tokens(results: Sequence[Mapping[str, Any]], which: str) -> str:
    """The tokens of all results, where they are alike."""
    tokens = {made["tokens"][which] for made in results}
    return MISSING if not tokens else "–".join(f"{count:,}" for count in sorted({min(tokens), max(tokens)}))


def _tokens_after(rows: Sequence[Row], kind: str) -> str:
    found = [row.result for row in rows if row.recovery == kind and row.result]
    return f" ({_tokens(found, 'trained_after_cut')} tokens)" if found else ""


def _task_cells(results: Sequence[Mapping[str, Mapping[str, float]]], names: Sequence[str]) -> list[str]:
    """The mean of the tasks, then each, averaged over the seeds that they were measured with."""
    values = [fmean(made[name]["value"] for made in results) if _has(results, name) else None for name in names]
    errors = [fmean(made[name]["stderr"] for made in results) if _has(results, name) else None for name in names]
    cells = [_share(value, error) for value, error in zip(values, errors, strict=True)]
    known = [value for value in values if value is not None]
    if len(known) < len(names):
        return [MISSING, *cells]
    return [_share(fmean(known), math.sqrt(sum((error or 0) ** 2 for error in errors)) / len(names)), *cells]


def _has(results: Sequence[Mapping[str, Any]], name: str) -> bool:
    return bool(results) and all(name in made for made in results)


def _share(value: float | None, error: float | None) -> str:
    return MISSING if value is None or error is None else f"{100 * value:.1f} ± {100 * error:.1f}"


def _of(rows: Sequence[Row], *, method: str, drop: int, recovery: str = "none") -> list[dict[str, Any]]:
    """The results of all seeds."""
    return [
        row.result for row in rows if (row.method, row.drop, row.recovery) == (method, drop, recovery) and row.result
    ]


def _groups(rows: Sequence[Row]) -> list[tuple[Row, list[dict[str, Any]]]]:
    """A row for each method, number of layers and recovery, with the results of all seeds."""
    first = {(row.method, row.drop, row.recovery): row for row in reversed(rows)}
    order = dict.fromkeys((row.method, row.drop, row.recovery) for row in rows)
    return [(first[key], _of(rows, method=key[0], drop=key[1], recovery=key[2])) for key in order]
