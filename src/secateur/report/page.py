"""The report: one page that says what was removed, what it cost and what it bought; it needs nothing but itself."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from secateur.report.html import Html, el, joined
from secateur.report.reported import ReportedRun, load_run
from secateur.report.sections import sections
from secateur.report.several import side_by_side

__all__ = ["ReportedRun", "load_run", "report_page"]


def report_page(runs: Sequence[ReportedRun]) -> str:
    """The page of one run, or of several beside each other; HTML that loads nothing.

    Args:
        runs: one or more.
    """
    title = "Pruned: " + ", ".join(run.name for run in runs)
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
    made = el("footer", el("p", "Made by secateur ", runs[0].record.get("secateur_version", ""), "."))
    body = el("body", el("main", content), made, el("script", script))
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"
