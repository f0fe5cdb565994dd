"""HTML from Python: elements whose text is always escaped."""

from __future__ import annotations

import html
import re

__all__ = ["Html", "el", "joined", "table", "unbroken"]


class Html(str):
    """Markup that is safe as it stands; a plain `str` is text, and is escaped wherever it goes in."""

    __slots__ = ()


_VOID = frozenset({"meta", "link", "br", "rect", "line", "circle", "path", "polyline"})


def el(name: str, /, *children: object, **attributes: object) -> Html:
    """An element: `el("p", "1 < 2", class_="note")` is `<p class="note">1 &lt; 2</p>`.

    Args:
        name: of the element.
        children: `Html` as it stands; everything else as escaped text.
        attributes: their underscores are dashes, but for one at the end; one that is None or False is left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID and not children:
        return Html(f"<{name}{given}/>")
    return Html(f"<{name}{given}>{joined(*children)}</{name}>")


def joined(*children: object) -> Html:
    """Children side by side."""
    return Html("".join(child if isinstance(child, Html) else html.escape(str(child)) for child in children))


def table(head: list[str], rows: list[list[object]], *, caption: str) -> Html:
    """A table whose first column names its rows; it scrolls sideways where it is too wide for the page.

    Columns of nothing but figures are aligned to the right.
    """
    figures = [all(_is_figure(row[column]) for row in rows) for column in range(len(head))]
    body = [
        el(
            "tr",
            el("th", row[0], scope="row"),
            *(
                el("td", cell if isinstance(cell, Html) else unbroken(str(cell)), class_="figure" if figure else None)
                for cell, figure in zip(row[1:], figures[1:], strict=True)
            ),
        )
        for row in rows
    ]
    heads = [
        el("th", name, scope="col", class_="figure" if figure else None)
        for name, figure in zip(head, [False, *figures[1:]], strict=True)
    ]
    inner = el(
        "table",
        el("caption", caption),
        el("thead", el("tr", *heads)),
        el("tbody", *body),
    )
    return el("div", inner, class_="wide", tabindex=0, role="group", aria_label=caption)


def _is_figure(cell: object) -> bool:
    number = r"[-+−±×<~]?\d[\d.,]*(?:e[-+]?\d+)?"
    figure = rf"{number}(?: to {number})?[×%]?(?: (?:%|[KMBG]|[kMG]?B|s))?(?: \(.*\))?|–|none|not measured"
    return not isinstance(cell, Html) and bool(re.fullmatch(figure, str(cell)))


def unbroken(text: str) -> str:
    """A text whose figures stay on one line with their units: `12.5 %`, `134.5 M`, `538 MB`."""
    return re.sub(r"(?<=\d) (?=(?:%|[KMB]|[kMG]B)(?!\w))", "\u00a0", text)
