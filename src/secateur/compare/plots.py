"""Plots of a comparison: perplexity against parameters, training tokens and measured speed, with the Pareto front.

A method has a shape and a colour, a recovery a way to be filled, so that nothing depends on colour. A thin bar is one standard
error to either side; most are shorter than the mark. Where many methods have the same number of parameters or tokens, they stand
side by side around it. The files are the same whenever they are made from the same results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from secateur.compare.config import slug
from secateur.compare.results import Row
from secateur.compare.tables import mean_error, mean_nll

__all__ = ["Point", "figure", "pareto_front", "points_of", "write_plots"]

_SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h", "d", "8", "H")
_FILLS: tuple[Any, ...] = ("full", "none", "left", "top", "right", "bottom")
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "secateur",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_MOST_NATS = math.log(1e6)
"""Beyond this perplexity a model has lost everything, and its point would squeeze all others together."""


@dataclass(frozen=True)
class Point:
    """A method with a number of layers and a recovery, averaged over seeds."""

    method: str
    drop: int
    recovery: str
    x: float
    perplexity: float
    error: float | None = None
    """One standard error of the perplexity, over the windows of the text."""


@dataclass(frozen=True)
class _Axis:
    """What a plot shows across."""

    label: str
    of: Callable[[dict[str, Any]], float | None]
    dense: Callable[[dict[str, Any]], float | None]
    shared: bool = True
    """Whether many points have the same place."""

    more_is_better: bool = False
    logarithmic: bool = False


_AXES: dict[str, _Axis] = {
    "parameters": _Axis(
        "parameters, millions",
        lambda made: made["metrics"]["pruned"]["num_parameters"] / 1e6,
        lambda made: made["metrics"]["dense"]["num_parameters"] / 1e6,
    ),
    "tokens": _Axis(
        "tokens trained on, before and after the cut",
        lambda made: float(made["tokens"]["trained_before_cut"] + made["tokens"]["trained_after_cut"]),
        lambda made: None,  # noqa: ARG005  its training is not ours
        logarithmic=True,
    ),
    "speed": _Axis(
        "decoding speed, times the dense model's",
        lambda made: made["timings"]["speed"] and made["timings"]["speed"]["decode"],
        lambda made: made["timings"]["speed"] and 1.0,
        shared=False,
        more_is_better=True,
    ),
}


def write_plots(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `MODEL-parameters.svg`, `MODEL-speed.svg` and `MODEL-tokens-dropK.svg`, as far as there is something to show.

    Returns:
        The files that were written.
    """
    wanted: list[tuple[str, str, str, list[Row]]] = []
    for model in dict.fromkeys(row.model for row in rows):
        of_model = [row for row in rows if row.model == model]
        wanted += [(f"{slug(model)}-{name}", name, model, of_model) for name in ("parameters", "speed")]
        for drop in sorted({row.drop for row in of_model}):
            of_drop = [row for row in of_model if row.drop == drop]
            if len({point.x for point in points_of(of_drop, "tokens")}) > 1:
                title = f"{model}, {drop} layers dropped"
                wanted.append((f"{slug(model)}-tokens-drop{drop}", "tokens", title, of_drop))
    written: list[Path] = []
    for name, axis, title, shown in wanted:
        if points_of(shown, axis):
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"{name}.svg"
            with rc_context(_STYLE):
                figure(shown, axis, title=title).savefig(file, metadata={"Date": None, "Creator": None})
            written.append(file)
    return written


def points_of(rows: Sequence[Row], axis: str) -> list[Point]:
    """The points of one model's cells; results that are not finite, or lack what the axis shows, are left out."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row.result:
            groups.setdefault((row.method, row.drop, row.recovery), []).append(row.result)
    points = []
    for (method, drop, recovery), results in groups.items():
        values = [_AXES[axis].of(made) for made in results]
        known = [value for value in values if value is not None]
        nll = mean_nll(results)
        if known and nll is not None and nll <= _MOST_NATS:
            perplexity, error = math.exp(nll), mean_error(results)
            spread = None if error is None else perplexity * error
            points.append(Point(method, drop, recovery, fmean(known), perplexity, spread))
    return points


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that no other is at least as low as in both numbers and lower than in one, by the first number."""
    front: list[int] = []
    best = math.inf
    for index in sorted(range(len(points)), key=lambda index: (*points[index], index)):
        x, y = points[index]
        if y < best or (front and points[front[-1]] == (x, y)):
            front.append(index)
            best = y
    return front


def figure(rows: Sequence[Row], axis: str, *, title: str) -> Figure:
    """The plot of one model's cells against one axis: `parameters`, `tokens` or `speed`."""
    across, points = _AXES[axis], points_of(rows, axis)
    methods = list(dict.fromkeys(row.method for row in rows))
    recoveries = ["none", *dict.fromkeys(row.recovery for row in rows if row.recovery != "none")]
    dense = _dense_point(rows, across)
    values = sorted({point.x for point in points} | ({dense[0]} if dense else set()))
    place = _place(across, values)
    step = _step([place(value) for value in values], len(methods)) if across.shared else 0.0
    drawn = Figure(figsize=(8.6, 4.8), layout="constrained")
    axes = drawn.add_subplot()
    at = [
        (place(point.x) + step * (methods.index(point.method) - (len(methods) - 1) / 2), point.perplexity)
        for point in points
    ]
    for point, (x, y) in zip(points, at, strict=True):
        marker = _marker(methods.index(point.method), recoveries.index(point.recovery))
        axes.errorbar(x, y, yerr=point.error, linestyle="none", elinewidth=1.0, zorder=2, **marker)
    if dense:
        at.append((place(dense[0]), dense[1]))
        _draw_dense(axes, at[-1])
    sign = -1 if across.more_is_better else 1
    front = pareto_front(
        [(sign * x, y) for x, y in [*((point.x, point.perplexity) for point in points), *filter(None, [dense])]]
    )
    axes.plot(*zip(*(at[index] for index in front), strict=True), color="0.6", linewidth=1.2, linestyle="--", zorder=1)
    axes.set(xlabel=across.label, ylabel="perplexity", title=title)
    if across.shared:
        _ticks(axes, [(place(value), _said(value)) for value in values])
    _logarithmic(axes, [y for _, y in at])
    _legend(drawn, methods, recoveries)
    return drawn


def _dense_point(rows: Sequence[Row], across: _Axis) -> tuple[float, float] | None:
    for row in rows:
        if row.result:
            x, y = across.dense(row.result), row.result["metrics"]["dense"]["perplexity"]
            if x is not None and y is not None:
                return x, y
    return None


def _draw_dense(axes: Axes, at: tuple[float, float]) -> None:
    axes.axhline(at[1], color="0.85", linewidth=0.8, zorder=0)
    axes.plot(*at, marker="_", markersize=14, markeredgewidth=2.5, color="black", linestyle="none", zorder=2)
    axes.annotate("dense", at, textcoords="offset points", xytext=(0, 6), ha="center", fontsize=8)


def _place(across: _Axis, values: Sequence[float]) -> Callable[[float], float]:
    """Where a value stands: as it is, or by the logarithm of one more than its multiple of the least, so that 0 has a place."""
    least = min((value for value in values if value > 0), default=1.0)
    return (lambda value: math.log2(1 + value / least)) if across.logarithmic else (lambda value: value)


def _step(places: Sequence[float], count: int) -> float:
    """How far apart `count` points stand that share a place, so that they stay nearer to it than to the next."""
    gaps = [after - before for before, after in pairwise(places)]
    return 0.7 * min(gaps, default=1.0) / max(count, 4)


def _ticks(axes: Axes, ticks: Sequence[tuple[float, str]]) -> None:
    """One at each value, but for those too near to the one before for both to be read."""
    room = 0.07 * (ticks[-1][0] - ticks[0][0])
    kept: list[tuple[float, str]] = []
    for tick in ticks:
        if not kept or tick[0] - kept[-1][0] >= room:
            kept.append(tick)
    axes.set_xticks([place for place, _ in kept], [name for _, name in kept])
    axes.xaxis.set_minor_locator(NullLocator())


def _said(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == 0 else f"{value:.4g}"


def _marker(method: int, recovery: int) -> dict[str, Any]:
    return {
        "marker": _SHAPES[method % len(_SHAPES)],
        "markersize": 7,
        "color": f"C{method % 10}",
        "markerfacecoloralt": "white",
        "fillstyle": _FILLS[recovery % len(_FILLS)],
        "markeredgewidth": 1.0,
    }


def _logarithmic(axes: Axes, perplexities: Sequence[float]) -> None:
    """Perplexity by its logarithm, in plain figures; a small range as it is."""
    ratio = max(perplexities) / min(perplexities)
    if ratio > 2:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 1000 else (1,)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}"))
    axes.grid(axis="y", color="0.93", linewidth=0.6)


def _legend(drawn: Figure, methods: Sequence[str], recoveries: Sequence[str]) -> None:
    handles = [
        Line2D([], [], linestyle="none", label=method, **_marker(index, 0)) for index, method in enumerate(methods)
    ]
    if len(recoveries) > 1:
        handles.append(Line2D([], [], linestyle="none", label=" "))
        handles += [
            Line2D([], [], linestyle="none", label=f"recovery: {name}", **{**_marker(0, index), "color": "0.35"})
            for index, name in enumerate(recoveries)
        ]
    handles.append(Line2D([], [], color="0.6", linestyle="--", label="Pareto front"))
    handles.append(Line2D([], [], color="0.35", linestyle="none", marker="|", markersize=9, label="± 1 standard error"))
    drawn.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
