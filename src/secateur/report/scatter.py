"""Points with their names as SVG: no name lies on another, or on another point."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from secateur.report.drawing import BOTTOM, HEIGHT, LEFT, LETTER, RIGHT, TOP, WIDTH, Axis, drawing, x_ticks, y_ticks
from secateur.report.html import Html, el

__all__ = ["Point", "scatter"]

_LINE, _DOT, _AWAY = (
    24,
    6,
    9,
)  # half of which is above a name's middle; from a point's middle to its edge, and to its name

_Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of `scatter`."""

    label: str
    x: float
    y: float
    says: str
    low: float | None = None
    """Where the bar of its interval begins; None: there is no bar."""
    high: float | None = None
    on_front: bool = False


def scatter(
    points: Sequence[Point], *, title: str, x_title: str, y_title: str, write_x: Callable[[float], str] | None = None
) -> Html:
    """Points with their names, and a line through those on the front; `write_x` writes the values along the first axis.

    A name that would lie on another is moved up or down, with a line from its point.
    """
    kept = [point for point in points if all(map(math.isfinite, (point.x, *_span(point))))]
    if not kept:
        return Html("")
    bottom = HEIGHT - BOTTOM + _LINE * max(0, len(kept) - 6)
    xs, ys = [point.x for point in kept], [end for point in kept for end in _span(point)]
    x_spare, y_spare = (0.05 * (max(axis) - min(axis)) for axis in (xs, ys))
    x_axis = Axis(min(xs) - x_spare, max(xs) + x_spare, LEFT, WIDTH - RIGHT)
    y_axis = Axis(min(ys) - y_spare, max(ys) + y_spare, bottom, TOP)
    front = sorted((point for point in kept if point.on_front), key=lambda point: point.x)
    path = " ".join(f"{x_axis(point.x)},{y_axis(point.y)}" for point in front)
    drawn = [el("polyline", points=path, class_="front")] if len(front) > 1 else []
    places = [(x_axis(point.x), y_axis(point.y)) for point in kept]
    bars = [
        (x, y_axis(_span(point)[1]), x, y_axis(_span(point)[0])) for point, (x, _) in zip(kept, places, strict=True)
    ]
    for point, (x, y), bar, (side, height) in zip(kept, places, bars, _names(kept, places, bars, bottom), strict=True):
        name = el("text", point.label, x=x + side * _AWAY, y=height + 4, class_="name end" if side < 0 else "name")
        moved = el("line", x1=x, y1=y, x2=x + side * (_AWAY - 2), y2=height, class_="leader") if height != y else ""
        sure = el("line", x1=x, y1=bar[1], x2=x, y2=bar[3], class_="interval") if bar[1] != bar[3] else ""
        kind = "point on-front" if point.on_front else "point"
        drawn.append(el("g", el("title", point.says), sure, moved, el("circle", cx=x, cy=y, r=5), name, class_=kind))
    marks = [*y_ticks(y_axis), *x_ticks(x_axis, write_x, bottom=bottom), *drawn]
    says = "; ".join(point.says for point in kept)
    return drawing(title, x_title, y_title, marks, says=says, height=bottom + BOTTOM)


def _span(point: Point) -> tuple[float, float]:
    """The lowest and the highest value that is drawn of a point."""
    return (point.y if point.low is None else point.low), (point.y if point.high is None else point.high)


def _names(
    points: Sequence[Point], places: Sequence[tuple[float, float]], bars: Sequence[_Box], bottom: float
) -> list[tuple[int, float]]:
    """The side of each point its name stands on, 1 or -1, and the height of its middle: the nearest that is free."""
    dots = [(x - _DOT, y - _DOT, x + _DOT, y + _DOT) for x, y in places]
    found: dict[int, tuple[int, float]] = {}
    taken: list[_Box] = []
    for number in sorted(range(len(points)), key=lambda number: places[number][::-1]):
        x, y = places[number]
        roomy = -1 if x > (LEFT + WIDTH) / 2 else 1  # the side that has more room
        others = [*taken, *(box for boxes in (dots, bars) for other, box in enumerate(boxes) if other != number)]
        wide = LETTER["phone"] * len(points[number].label)
        tried = (
            (side, height)
            for height in chain.from_iterable((y + away, y - away) for away in range(0, int(bottom - TOP), 4))
            for side in (roomy, -roomy)
            if TOP - _LINE / 2 <= height <= bottom
            and (side == roomy or LEFT <= x + side * (_AWAY + wide) <= WIDTH)
            and not any(_meet(_box(x, side, height, wide), other) for other in others)
        )
        found[number] = next(tried, (roomy, y))
        taken.append(_box(x, *found[number], wide))
    return [found[number] for number in range(len(points))]


def _box(x: float, side: int, height: float, wide: float) -> _Box:
    near, far = x + side * _AWAY, x + side * (_AWAY + wide)
    return min(near, far), height - _LINE / 2, max(near, far), height + _LINE / 2


def _meet(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
