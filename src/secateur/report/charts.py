"""Charts as SVG that carries its own text: every mark says what it is to a mouse, to a keyboard and to a screen reader."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secateur.report.comparison import format_number
from secateur.report.html import Html, el

__all__ = ["Bar", "Point", "bars", "heat_map", "lines", "scatter"]

_WIDTH, _HEIGHT = 720, 306
_LEFT, _RIGHT, _TOP, _BOTTOM = 86, 22, 48, 66  # with room for the larger letters on a phone
_LABEL, _BELOW = 40, 29  # a label of an axis, with its letters that large: how wide, and how far below the axis


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of `bars`."""

    label: str
    value: float
    says: str
    kind: str = "kept"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of `scatter`."""

    label: str
    x: float
    y: float
    says: str
    on_front: bool = False


class _Axis:
    """Values of a range as places of the drawing."""

    def __init__(self, low: float, high: float, first: float, last: float, *, log: bool = False) -> None:
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - 0.1 * (abs(low) or 1), high + 0.1 * (abs(high) or 1))
        self.low, self.high, self.first, self.last, self.log = low, high, first, last, log

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return round(self.first + (self.last - self.first) * (value - low) / (high - low), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values inside the range with their texts, three to seven; powers of ten where the axis is logarithmic."""
        if self.log:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            every = max(1, len(powers) // 4)
            values = [10.0**power for power in powers][::every] or [self.low, self.high]
            return [(value, f"{value:.0e}" if value < 0.01 else format_small(value)) for value in values]
        rough = (self.high - self.low) / 3 * (1 + 1e-9)
        size = 10.0 ** math.floor(math.log10(rough))
        step = size * max(factor for factor in (1, 2, 5) if size * factor <= rough)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        plain = 1e-3 <= max(abs(self.low), abs(self.high)) < 1e6
        values = [step * count for count in range(first, last + 1)]
        return [(value, f"{value:,.{digits}f}" if plain else format_small(value)) for value in values]


def bars(values: Sequence[Bar], *, title: str, x_title: str, y_title: str) -> Html:
    """Bars from left to right; on a logarithmic axis where they differ by more than a thousand times.

    The marks can be walked through with the arrow keys, and put in the order of their values. Each has a band of the whole
    height, which can be pointed at and shows where a bar is, however low.
    """
    finite = [bar.value for bar in values if math.isfinite(bar.value)] or [0.0]
    positive = [value for value in finite if value > 0]
    log = bool(positive) and min(finite) >= 0 and max(positive) > 1000 * min(positive)
    low = min(positive) / 2 if log else min(0.0, *finite)
    axis = _Axis(low, max(finite), _HEIGHT - _BOTTOM, _TOP, log=log)
    pitch = (_WIDTH - _LEFT - _RIGHT) / max(1, len(values))
    width, every = round(0.76 * pitch, 1), max(1, math.ceil(_LABEL / pitch))
    base, marks = axis(max(low, 0.0) if not log else low), []
    for place, bar in enumerate(values):
        top = axis(min(max(bar.value, low), axis.high)) if math.isfinite(bar.value) else base
        left, tall = round(-width / 2, 1), max(1.0, round(abs(base - top), 1))
        band = el("rect", x=left, y=_TOP, width=width, height=_HEIGHT - _BOTTOM - _TOP, class_="band")
        shape = el("rect", x=left, y=min(top, base), width=width, height=tall, class_="bar")
        label = el("text", bar.label, y=_HEIGHT - _BOTTOM + _BELOW, class_="tick") if place % every == 0 else Html("")
        marks.append(
            el(
                "g", el("title", bar.says), band, shape, label, class_=f"mark {bar.kind}", role="img", aria_label=bar.says,
                tabindex=0 if place == 0 else -1, data_value=bar.value if math.isfinite(bar.value) else 0,
                transform=f"translate({round(_LEFT + (place + 0.5) * pitch, 1)} 0)",
            )
        )  # fmt: skip
    return _drawing(
        title, x_title, y_title + (" (logarithmic)" if log else ""), [*_y_ticks(axis), *marks], class_="bars"
    )


def lines(
    curves: Sequence[tuple[str, Sequence[tuple[float, float]]]], *, title: str, x_title: str, y_title: str
) -> Html:
    """One line a curve; what is not finite is left out."""
    kept = [(name, [(x, y) for x, y in points if math.isfinite(y)]) for name, points in curves]
    places = [point for _, points in kept for point in points]
    if not places:
        return Html("")
    x_axis = _Axis(min(x for x, _ in places), max(x for x, _ in places), _LEFT, _WIDTH - _RIGHT)
    y_axis = _Axis(min(y for _, y in places), max(y for _, y in places), _HEIGHT - _BOTTOM, _TOP)
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
    marks = [*_y_ticks(y_axis), *_x_ticks(x_axis), *drawn]
    return _drawing(title, x_title, y_title, marks, key=key, says="; ".join(told))


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
    wide, high = (_WIDTH - _LEFT - _RIGHT) / len(rows[0]), max(4.0, min(24.0, 180 / len(kept)))
    cells, outline, told = [], Html(""), kept[-1]
    for place, (number, row) in enumerate(kept):
        told = (number, row) if number == chosen else told
        for column, value in enumerate(row):
            box = {
                "x": round(_LEFT + column * wide, 1), "y": round(_TOP + place * high, 1),
                "width": round(wide, 1), "height": round(high, 1),
            }  # fmt: skip
            if math.isfinite(value):
                says = f"{y_title} {number + first}, {x_title} {column}: {format_small(value)}"
                strength = f"fill-opacity:{_strength(value, row, from_least=from_least):.2f}"
                cells.append(el("rect", el("title", says), **box, style=strength, class_="cell"))
            if (number, column) == outlined:
                outline = el("rect", **box, class_="outline")
    bottom = _TOP + len(kept) * high
    every = max(1, math.ceil(_LABEL / wide))
    labels = [
        el("text", column, x=round(_LEFT + (column + 0.5) * wide, 1), y=round(bottom + _BELOW, 1), class_="tick")
        for column in range(0, len(rows[0]), every)
    ]
    ends = [
        el("text", number + first, x=_LEFT - 6, y=round(_TOP + (place + 0.8) * high, 1), class_="tick end")
        for place, number in ((0, kept[0][0]), (len(kept) - 1, kept[-1][0]))
    ]
    values = [(value, column) for column, value in enumerate(told[1]) if math.isfinite(value)]
    says = (
        f"at {y_title} {told[0] + first} {x_title} {max(values)[1]} has the largest value and {x_title} {min(values)[1]} "
        "the smallest"
    )
    marks = [*cells, outline, *labels, *ends]
    return _drawing(title, x_title, y_title, marks, height=round(bottom + _BOTTOM), says=says)


def _strength(value: float, row: Sequence[float], *, from_least: bool) -> float:
    """How strongly a cell is filled, 0 to 1: by its root, or evenly from what can still be seen up."""
    finite = [each for each in row if math.isfinite(each)]
    least, most = min(finite), max(finite)
    if from_least:
        return 0.1 + 0.9 * (value - least) / (most - least) if most > least else 1.0
    return math.sqrt(max(0.0, value / most)) if most > 0 else 0.0


def scatter(
    points: Sequence[Point], *, title: str, x_title: str, y_title: str, write_x: Callable[[float], str] | None = None
) -> Html:
    """Points with their names, and a line through those on the front; `write_x` writes the values along the first axis."""
    kept = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    if not kept:
        return Html("")
    xs, ys = [point.x for point in kept], [point.y for point in kept]
    x_spare, y_spare = (0.05 * (max(axis) - min(axis)) for axis in (xs, ys))
    x_axis = _Axis(min(xs) - x_spare, max(xs) + x_spare, _LEFT, _WIDTH - _RIGHT)
    y_axis = _Axis(min(ys) - y_spare, max(ys) + y_spare, _HEIGHT - _BOTTOM, _TOP)
    front = sorted((point for point in kept if point.on_front), key=lambda point: point.x)
    path = " ".join(f"{x_axis(point.x)},{y_axis(point.y)}" for point in front)
    drawn = [el("polyline", points=path, class_="front")] if len(front) > 1 else []
    for point in kept:
        x, y = x_axis(point.x), y_axis(point.y)
        left = x > (_LEFT + _WIDTH) / 2  # the name stands on the side that has more room
        name = el("text", point.label, x=x - 9 if left else x + 9, y=y + 4, class_="name end" if left else "name")
        kind = "point on-front" if point.on_front else "point"
        drawn.append(el("g", el("title", point.says), el("circle", cx=x, cy=y, r=5), name, class_=kind))
    marks = [*_y_ticks(y_axis), *_x_ticks(x_axis, write_x), *drawn]
    return _drawing(title, x_title, y_title, marks, says="; ".join(point.says for point in kept))


def format_small(value: float) -> str:
    """A score: four figures, whatever its size."""
    return f"{value:.3g}"


def _y_ticks(axis: _Axis) -> list[Html]:
    return [
        el("g", el("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=axis(value), y2=axis(value)),
           el("text", text, x=_LEFT - 6, y=axis(value) + 4, class_="tick end"), class_="grid", aria_hidden="true")
        for value, text in axis.ticks()
    ]  # fmt: skip


def _x_ticks(axis: _Axis, write: Callable[[float], str] | None = None) -> list[Html]:
    return [
        el("text", write(value) if write else text, x=axis(value), y=_HEIGHT - _BOTTOM + _BELOW, class_="tick",
           aria_hidden="true")
        for value, text in axis.ticks()
    ]  # fmt: skip


def _drawing(
    title: str,
    x_title: str,
    y_title: str,
    marks: Sequence[Html],
    *,
    class_: str | None = None,
    height: int = _HEIGHT,
    key: Html | None = None,
    says: str | None = None,
) -> Html:
    """A figure with its title and the names of its axes.

    With `says` it is one image to a screen reader, and those are its words; without it, each mark speaks for itself.
    """
    names = [
        el("text", x_title, x=(_LEFT + _WIDTH - _RIGHT) / 2, y=height - 9, class_="axis", aria_hidden="true"),
        el("text", y_title, x=2, y=24, class_="axis start", aria_hidden="true"),
    ]
    role, label = ("group", title) if says is None else ("img", f"{title}: {says}")
    svg = el(
        "svg", *marks, *names, viewBox=f"0 0 {_WIDTH} {height}", role=role, aria_label=label, class_=class_
    )  # fmt: skip
    return el("figure", el("figcaption", title), svg, key or "")
