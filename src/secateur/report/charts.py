"""Charts as SVG that carries its own text: every mark says what it is to a mouse, to a keyboard and to a screen reader."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from secateur.report.bars import Bar, bars
from secateur.report.comparison import format_number
from secateur.report.drawing import (
    BELOW,
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    ROW,
    TOP,
    WIDTH,
    Axis,
    drawing,
    format_small,
    label_rows,
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
    numbers: Sequence[int] | None = None,
    most: float | None = None,
    from_least: bool = False,
    marked: Collection[int] = (),
    outlined: tuple[int, int] | None = None,
) -> Html:
    """A cell a value, on one scale or each row by its own; of many rows some sixty are shown, and none with nothing above zero.

    Args:
        rows: the values; one that is not finite has no cell.
        title: of the drawing.
        x_title: what a column is, by its number from 0.
        y_title: what a row is.
        numbers: of the rows; from 0 if None.
        most: what has the full colour in any row; the row's own largest if None.
        from_least: a row's colour begins at its least value, and not at zero.
        marked: columns of dropped layers, which have an outline.
        outlined: row and column, by their places, of a cell with an outline; the words then speak of its row, else of the last.
    """
    count, chosen = len(rows), None if outlined is None else outlined[0]
    numbers = numbers or range(count)
    shown = {round(place * (count - 1) / 59) for place in range(60)} if count > 60 else set(range(count))
    shown |= set() if chosen is None else {chosen}
    kept = [row for row in sorted(shown) if any(value > 0 for value in rows[row] if math.isfinite(value))]
    if not kept:
        return Html("")
    wide, high = (WIDTH - LEFT - RIGHT) / len(rows[0]), max(4.0, min(24.0, 180 / len(kept)))
    cells, outline = [], Html("")
    for place, row in enumerate(kept):
        for column, value in enumerate(rows[row]):
            box = {
                "x": round(LEFT + column * wide, 1), "y": round(TOP + place * high, 1),
                "width": round(wide, 1), "height": round(high, 1),
            }  # fmt: skip
            if math.isfinite(value):
                says = f"{y_title} {numbers[row]}, {x_title} {column}: {format_small(value)}"
                strength = f"fill-opacity:{_strength(value, rows[row], most, from_least=from_least):.2f}"
                cells.append(el("rect", el("title", says), **box, style=strength, class_="cell"))
            if (row, column) == outlined:
                outline = el("rect", **box, class_="outline")
    bottom = TOP + len(kept) * high
    went = [
        el("rect", x=round(LEFT + column * wide, 1), y=TOP, width=round(wide, 1), height=round(bottom - TOP, 1), class_="went")
        for column in sorted(marked)
    ]  # fmt: skip
    columns = [str(column) for column in range(len(rows[0]))]
    stands = list(label_rows(columns, wide))
    below = ROW if any("low" in how for how in stands) else 0
    labels = [
        el("text", name, x=round(LEFT + (column + 0.5) * wide, 1), y=round(bottom + BELOW, 1),
           class_=f"{how} gone" if column in marked else how)
        for column, (name, how) in enumerate(zip(columns, stands, strict=True))
    ]  # fmt: skip
    ends = [
        el("text", numbers[row], x=LEFT - 6, y=round(TOP + (place + 0.8) * high, 1), class_="tick end")
        for place, row in {0: kept[0], len(kept) - 1: kept[-1]}.items()
    ]
    told = kept[-1] if chosen is None or chosen not in kept else chosen
    values = [(value, column) for column, value in enumerate(rows[told]) if math.isfinite(value)]
    says = (
        f"at {y_title} {numbers[told]} {x_title} {max(values)[1]} has the largest value and {x_title} {min(values)[1]} "
        "the smallest"
    )
    marks = [*cells, *went, outline, *labels, *ends]
    key = _scale("the row's least" if from_least else "0", "the row's largest" if most is None else format_small(most),
                 from_least=from_least, marked=bool(marked))  # fmt: skip
    return drawing(title, x_title, y_title, marks, height=round(bottom + BOTTOM + below), key=key, says=says)


def _scale(low: str, high: str, *, from_least: bool, marked: bool) -> Html:
    """What the colours of a heat map stand for."""
    ramp = el("span", class_="scale from-least" if from_least else "scale")
    dropped = [el("li", "dropped", class_="key-went")] if marked else []
    return el("ul", el("li", f"{low} ", ramp, f" {high}", class_="key-scale"), *dropped, class_="key")


def _strength(value: float, row: Sequence[float], most: float | None, *, from_least: bool) -> float:
    """How strongly a cell is filled, 0 to 1: in proportion to its value, or evenly from what can still be seen up."""
    finite = [each for each in row if math.isfinite(each)]
    least, most = min(finite), max(finite) if most is None else most
    if from_least:
        return 0.1 + 0.9 * (value - least) / (most - least) if most > least else 1.0
    return min(1.0, max(0.0, value / most)) if most > 0 else 0.0
