"""Bars as SVG: each has its number below, its value above, and a band that can be pointed at, however low it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from secateur.report.drawing import (
    BELOW,
    BOTTOM,
    HEIGHT,
    LEFT,
    LETTER,
    RIGHT,
    ROW,
    TOP,
    WIDTH,
    Axis,
    drawing,
    label_rows,
    y_ticks,
)
from secateur.report.html import Html, el

__all__ = ["Bar", "bars"]

_UPRIGHT = 12  # the least room for a value that is written upwards, in small letters that no phone shows


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of `bars`; `shown` is its value as it is written there, if it is to be."""

    label: str
    value: float
    says: str
    kind: str = "kept"
    shown: str = ""


@dataclass(frozen=True)
class _Scale:
    """What bars are drawn by: from `low` to `high`, what is larger is cut off."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def of(cls, values: Sequence[float]) -> _Scale:
        """Logarithmic where values differ by more than a thousand times, or thirty if many are far above the middle one.

        Where those are few, they are cut off, so that the others can be told apart.
        """
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        positive = [value for value in finite if value > 0]
        low, most, middle = min(0.0, *finite), max(finite), sorted(finite)[len(finite) // 2]
        times = most / min(positive) if positive and low == 0 else 0.0
        usual = [value for value in finite if value <= low + 5 * (middle - low)]
        beyond = len(finite) - len(usual) if middle > low else 0
        if times > 1000 or (times > 30 and min(finite) > 0 and beyond > len(finite) / 8):
            return cls(min(positive) / 2, most, log=True)
        if 0 < beyond <= len(finite) / 8:
            return cls(low, low + 1.15 * (max(usual) - low))
        return cls(low, most)


def bars(values: Sequence[Bar], *, title: str, x_title: str, y_title: str) -> Html:
    """Bars from left to right, on the scale that tells them apart.

    The marks can be walked through with the arrow keys, and put in the order of their values: labels below then go with
    their bars, and how they stand with their places.
    """
    scale = _Scale.of([bar.value for bar in values])
    pitch = (WIDTH - LEFT - RIGHT) / max(1, len(values))
    beyond = [bar.value > scale.high and math.isfinite(bar.value) for bar in values]
    longest, cut = (max((len(bar.shown) for bar in some), default=0) for some in (values, _those(values, beyond)))
    flat = LETTER["phone"] * longest <= pitch
    top = TOP + (14 if flat else round(max(LETTER["desk"] * longest, LETTER["phone"] * cut)))
    bottom = HEIGHT - BOTTOM + top - TOP
    axis, marks = Axis(scale.low, scale.high, bottom, top, log=scale.log), []
    base, width = axis(max(scale.low, 0.0) if not scale.log else scale.low), round(0.76 * pitch, 1)
    rows = list(label_rows([bar.label for bar in values], pitch))
    for place, (bar, how) in enumerate(zip(values, rows, strict=True)):
        height = axis(min(max(bar.value, scale.low), scale.high)) if math.isfinite(bar.value) else base
        left, tall = round(-width / 2, 1), max(1.0, round(abs(base - height), 1))
        parts = [
            el("rect", x=left, y=top, width=width, height=bottom - top, class_="band"),
            el("rect", x=left, y=min(height, base), width=width, height=tall, class_="bar"),
        ]
        if beyond[place]:
            parts.append(el("path", d=f"M{left} {top + 14}l{width} -5v4l{-width} 5z", class_="break"))
        if beyond[place] or flat or pitch >= _UPRIGHT:
            parts.append(_value(bar, min(height, base), flat=flat, beyond=beyond[place]))
        parts.append(el("text", bar.label, y=bottom + BELOW, class_=how))
        marks.append(
            el(
                "g", el("title", bar.says), *parts, class_=f"mark {bar.kind}", role="img", aria_label=bar.says,
                tabindex=0 if place == 0 else -1, data_value=bar.value if math.isfinite(bar.value) else 0,
                transform=f"translate({round(LEFT + (place + 0.5) * pitch, 1)} 0)",
            )
        )  # fmt: skip
    about = " (logarithmic)" if scale.log else " (cut off where a bar is broken)" if any(beyond) else ""
    height = bottom + BOTTOM + (ROW if any("low" in how for how in rows) else 0)
    return drawing(title, x_title, y_title + about, [*y_ticks(axis), *marks], class_="bars", height=height)


def _those(values: Sequence[Bar], chosen: Sequence[bool]) -> list[Bar]:
    return [bar for bar, taken in zip(values, chosen, strict=True) if taken]


def _value(bar: Bar, height: float, *, flat: bool, beyond: bool) -> Html:
    """The value above its bar, upwards where there is no room for it beside the others."""
    if not bar.shown:
        return Html("")
    if flat:
        return el("text", bar.shown, y=height - 6, class_="value", aria_hidden="true")
    kind = "value upright beyond" if beyond else "value upright"
    return el("text", bar.shown, x=-(height - 5), y=3.5, transform="rotate(-90)", class_=kind, aria_hidden="true")
