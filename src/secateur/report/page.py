"""The report: one page that says what was removed, what it cost and what it bought; it needs nothing but itself."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from secateur.errors import RequestError
from secateur.report.html import Html, el, joined
from secateur.report.reported import ReportedRun, load_run
from secateur.report.sections import sections, what_it_is
from secateur.report.several import side_by_side

__all__ = ["ReportedRun", "distinct_names", "is_page", "load_run", "report_page"]

_MADE_BY = "Made by secateur "


def report_page(runs: Sequence[ReportedRun]) -> str:
    """The page of one run, or of several beside each other; HTML that loads nothing.

    Args:
        runs: one or more.
    """
    title = what_it_is(runs[0]) if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.name for run in runs)}"
    content = joined(*(sections(runs[0]) if len(runs) == 1 else side_by_side(runs)))
    static = files("secateur.report") / "static"
    style, script = (Html((static / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("link", rel="icon", href="data:,"),
        el("title", title),
        el("style", style),
    )
    made = el("footer", el("p", _MADE_BY, runs[0].record.get("secateur_version", ""), "."))
    body = el("body", el("main", content), made, el("script", script))
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def is_page(file: Path) -> bool:
    """Whether a file is a page that `report_page` made."""
    return _MADE_BY.encode() in file.read_bytes()


def distinct_names(runs: Sequence[str | Path]) -> list[str]:
    """What runs are called beside each other: the last part of their directories, or as many as tell all of them apart.

    Raises:
        RequestError: if one is given twice.
    """
    parts = [Path(run).resolve().parts for run in runs]
    twice = next((run for run, of in zip(runs, parts, strict=True) if parts.count(of) > 1), None)
    if twice is not None:
        raise RequestError(f"{twice} is given twice; give different runs")
    names = (["/".join(of[-depth:]) for of in parts] for depth in itertools.count(1))
    return next(each for each in names if len(set(each)) == len(each))
