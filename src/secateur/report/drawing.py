"""What every chart of the report is drawn with: the sheet, its axes, and how values are written on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from secateur.report.html import Html, el

__all__ = [
    "BELOW", "BOTTOM", "HEIGHT", "LABEL", "LEFT", "LETTER", "RIGHT", "ROW", "TOP", "WIDTH", "Axis", "drawing", "format_small",
    "label_rows",
    "x_ticks", "y_ticks",
]  # fmt: skip

WIDTH, HEIGHT = 720, 306
LEFT, RIGHT, TOP, BOTTOM = 86, 22, 48, 66  # with room for the larger letters on a phone
LABEL, BELOW = 40, 29  # a label of an axis, with its letters that large: how wide, and how far below the axis
ROW = 22  # of labels
LETTER = {"desk": 6.5, "phone": 13.0}  # the width of a letter


class Axis:
    """Values of a range as places of the drawing."""

    def __init__(self, low: float, high: float, first: float, last: float, *, log: bool = False) -> None:
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - 0.1 * (abs(low) or 1), high + 0.1 * (abs(high) or 1))
        self.low, self.high, self.first, self.last, self.log = low, high, first, last, log

    def __call__(self, value: float) -> float:
        """Where a value lies."""
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


def format_small(value: float) -> str:
    """A score: four figures, whatever its size."""
    return f"{value:.3g}"


def y_ticks(axis: Axis) -> list[Html]:
    """Lines across the sheet with their values."""
    return [
        el("g", el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=axis(value), y2=axis(value)),
           el("text", text, x=LEFT - 6, y=axis(value) + 4, class_="tick end"), class_="grid", aria_hidden="true")
        for value, text in axis.ticks()
    ]  # fmt: skip


def x_ticks(axis: Axis, write: Callable[[float], str] | None = None, *, bottom: float = HEIGHT - BOTTOM) -> list[Html]:
    """The values along the lower edge, as `write` writes them."""
    return [
        el("text", write(value) if write else text, x=axis(value), y=bottom + BELOW, class_="tick",
           aria_hidden="true")
        for value, text in axis.ticks()
    ]  # fmt: skip


def label_rows(labels: Sequence[str], pitch: float) -> Iterator[str]:
    """The class of each label along the lower edge: in the first row, the second (low) or not shown (off), by the screen."""
    longest = max((len(label) for label in labels), default=0)
    for place in range(len(labels)):
        how = ["tick"]
        for screen, letter in LETTER.items():
            needed = math.ceil((letter * longest + letter / 2) / pitch)
            every = max(1, math.ceil(needed / 2))
            if place % every:
                how.append(f"off-{screen}")
            elif needed > 1 and place // every % 2:
                how.append(f"low-{screen}")
        yield " ".join(how)


def drawing(
    title: str,
    x_title: str,
    y_title: str,
    marks: Sequence[Html],
    *,
    class_: str | None = None,
    height: int = HEIGHT,
    key: Html | None = None,
    says: str | None = None,
) -> Html:
    """A figure with its title and the names of its axes.

    With `says` it is one image to a screen reader, and those are its words; without it, each mark speaks for itself.
    """
    names = [
        el("text", x_title, x=(LEFT + WIDTH - RIGHT) / 2, y=height - 9, class_="axis", aria_hidden="true"),
        el("text", y_title, x=2, y=24, class_="axis start", aria_hidden="true"),
    ]
    role, label = ("group", title) if says is None else ("img", f"{title}: {says}")
    svg = el(
        "svg", *marks, *names, viewBox=f"0 0 {WIDTH} {height}", role=role, aria_label=label, class_=class_
    )  # fmt: skip
    return el("figure", el("figcaption", title), svg, key or "")
