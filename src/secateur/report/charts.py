"""Charts as SVG that carries its own text: every mark says what it is to a mouse, to a keyboard and to a screen reader."""

from __future__ import annotations

import math
from collections.abc import Sequence

from secateur.report.bars import Bar, bars
from secateur.report.comparison import format_number
from secateur.report.drawing import (
    BELOW,
    BOTTOM,
    HEIGHT,
    LABEL,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    drawing,
    format_small,
    x_ticks,
    y_ticks,
)
from secateur.report.html import Html, el
from secateur.report.scatter import Point, scatter

__all__ = ["Bar", "Point", "bars", "format_small", "heat_map", "lines", "scatter"]


def lines(
    curves: Sequence[tuple[str, Sequence[tuple[float, float]]]], *, title: str, x_title: str, y_title: str
) -> Html:
    """One line a curve; what is not finite is left out."""
    kept = [(name, [(x, y) for x, y in points if math.isfinite(y)]) for name, points in curves]
    places = [point for _, points in kept for point in points]
    if not places:
        return Html("")
    x_axis = Axis(min(x for x, _ in places), max(x for x, _ in places), LEFT, WIDTH - RIGHT)
    y_axis = Axis(min(y for _, y in places), max(y for _, y in places), HEIGHT - BOTTOM, TOP)
    drawn, told = [], []
    for number, (name, points) in enumerate(kept):
        if not points:
            continue
        says = f"{name}: from {format_number(points[0][1])} to {format_number(points[-1][1])}"
        path = " ".join(f"{x_axis(x)},{y_axis(y)}" for x, y in points)
        dots = el("circle", cx=x_axis(points[-1][0]), cy=y_axis(points[-1][1]), r=3)
        drawn.append(el("g", el("title", says), el("polyline", points=path), dots, class_=f"curve curve-{number % 4}"))
        told.append(says)
    names = [el("li", name, class_=f"key-{number % 4}") for number, (name, _) in enumerate(kept)]
    key = el("ul", *names, class_="key") if len(names) > 1 else None
    marks = [*y_ticks(y_axis), *x_ticks(x_axis), *drawn]
    return drawing(title, x_title, y_title, marks, key=key, says="; ".join(told))


def heat_map(
    rows: Sequence[Sequence[float]],
    *,
    title: str,
    x_title: str,
    y_title: str,
    first: int = 0,
    from_least: bool = False,
    outlined: tuple[int, int] | None = None,
) -> Html:
    """A cell a value, each row by its own largest; of many rows some sixty are shown, and none that has nothing above zero.

    Args:
        rows: the values; one that is not finite has no cell.
        title: of the drawing.
        x_title: what a column is, by its number from 0.
        y_title: what a row is.
        first: the number of the first row.
        from_least: a row's strength begins at its least value, and not at zero.
        outlined: row and column, by their places, of a cell with an outline; the words then speak of its row, else of the last.
    """
    count, chosen = len(rows), None if outlined is None else outlined[0]
    shown = {round(place * (count - 1) / 59) for place in range(60)} if count > 60 else set(range(count))
    shown |= set() if chosen is None else {chosen}
    kept = [
        (number, rows[number])
        for number in sorted(shown)
        if any(value > 0 for value in rows[number] if math.isfinite(value))
    ]
    if not kept:
        return Html("")
    wide, high = (WIDTH - LEFT - RIGHT) / len(rows[0]), max(4.0, min(24.0, 180 / len(kept)))
    cells, outline, told = [], Html(""), kept[-1]
    for place, (number, row) in enumerate(kept):
        told = (number, row) if number == chosen else told
        for column, value in enumerate(row):
            box = {
                "x": round(LEFT + column * wide, 1), "y": round(TOP + place * high, 1),
                "width": round(wide, 1), "height": round(high, 1),
            }  # fmt: skip
            if math.isfinite(value):
                says = f"{y_title} {number + first}, {x_title} {column}: {format_small(value)}"
                strength = f"fill-opacity:{_strength(value, row, from_least=from_least):.2f}"
                cells.append(el("rect", el("title", says), **box, style=strength, class_="cell"))
            if (number, column) == outlined:
                outline = el("rect", **box, class_="outline")
    bottom = TOP + len(kept) * high
    every = max(1, math.ceil(LABEL / wide))
    labels = [
        el("text", column, x=round(LEFT + (column + 0.5) * wide, 1), y=round(bottom + BELOW, 1), class_="tick")
        for column in range(0, len(rows[0]), every)
    ]
    ends = [
        el("text", number + first, x=LEFT - 6, y=round(TOP + (place + 0.8) * high, 1), class_="tick end")
        for place, number in ((0, kept[0][0]), (len(kept) - 1, kept[-1][0]))
    ]
    values = [(value, column) for column, value in enumerate(told[1]) if math.isfinite(value)]
    says = (
        f"at {y_title} {told[0] + first} {x_title} {max(values)[1]} has the largest value and {x_title} {min(values)[1]} "
        "the smallest"
    )
    marks = [*cells, outline, *labels, *ends]
    return drawing(title, x_title, y_title, marks, height=round(bottom + BOTTOM), says=says)


def _strength(value: float, row: Sequence[float], *, from_least: bool) -> float:
    """How strongly a cell is filled, 0 to 1: by its root, or evenly from what can still be seen up."""
    finite = [each for each in row if math.isfinite(each)]
    least, most = min(finite), max(finite)
    if from_least:
        return 0.1 + 0.9 * (value - least) / (most - least) if most > least else 1.0
    return math.sqrt(max(0.0, value / most)) if most > 0 else 0.0
