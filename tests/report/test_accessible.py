"""The report's page for everybody: what can be checked without a browser."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from importlib.resources import files
from xml.etree import ElementTree

import pytest
from made_up_runs import PAGES

from secateur.report.page import report_page

Element = ElementTree.Element
STYLE = (files("secateur.report") / "static" / "page.css").read_text(encoding="utf-8")
TEXTS = [("ink", "ground"), ("soft", "ground"), ("ink", "panel"), ("gone", "ground")]
DRAWN = ["accent", "gone", "merged", "curve-1", "curve-2", "curve-3", "soft"]  # bars, lines, points, borders of buttons


def parsed(page: str) -> Element:
    return ElementTree.fromstring(page.removeprefix("<!doctype html>\n"))  # noqa: S314


@pytest.fixture(scope="module", params=PAGES)
def page(request: pytest.FixtureRequest) -> Element:
    return parsed(report_page(PAGES[request.param]))


def palettes() -> dict[str, dict[str, str]]:
    """The colours by name: in light, in dark, and on paper."""
    light, dark, paper = (
        dict(re.findall(r"--([\w-]+):(#\w+)", block)) for block in re.findall(r":root\{(.*?)\}", STYLE)
    )
    return {"light": light, "dark": light | dark, "paper": light | paper}


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    shares = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def text_of(element: Element) -> str:
    return "".join(element.itertext()).strip()


def elements(page: Element, *names: str) -> Iterator[Element]:
    return (element for element in page.iter() if element.tag in names)


def test_contrast_of_black_and_white_and_of_the_grey_of_the_guidelines() -> None:
    assert contrast("#000", "#fff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)  # the lightest grey that may carry text


@pytest.mark.parametrize("name", ["light", "dark", "paper"])
def test_every_text_has_the_contrast_of_wcag_aa_and_every_mark_that_of_graphics(name: str) -> None:
    palette = palettes()[name]
    texts = {pair: contrast(palette[pair[0]], palette[pair[1]]) for pair in TEXTS}
    marks = {mark: contrast(palette[mark], palette["ground"]) for mark in DRAWN}
    assert {pair: round(ratio, 2) for pair, ratio in texts.items() if ratio < 4.5} == {}
    assert {mark: round(ratio, 2) for mark, ratio in marks.items() if ratio < 3} == {}


def test_there_is_no_colour_beside_the_palette() -> None:
    rules = re.sub(r":root\{.*?\}", "", STYLE)
    assert not re.search(r"#[0-9a-fA-F]{3,8}\b|\brgb|\bhsl", rules)
    used = set(re.findall(r"(?:^|[;{])(?:color|fill):var\(--([\w-]+)\)", rules))
    assert used <= {ink for ink, _ in TEXTS} | {*DRAWN, "ground"}


def test_the_page_says_its_language_its_title_and_its_parts(page: Element) -> None:
    assert page.get("lang") == "en"
    assert text_of(next(elements(page, "title")))
    assert [element.tag for element in page.find("body")][:2] == ["main", "footer"]
    levels = [int(element.tag[1]) for element in elements(page, "h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    assert all(text_of(element) for element in elements(page, "h1", "h2"))


def test_every_chart_says_in_words_what_it_shows(page: Element) -> None:
    charts = list(elements(page, "svg"))
    assert charts
    for chart in charts:
        if chart.get("role") == "img":
            title, _, words = chart.get("aria-label", "").partition(": ")
            assert title
            assert re.search(r"\d", words)  # a figure at least
        else:
            assert chart.get("role") == "group"
            assert chart.get("aria-label")
            marks = [mark for mark in chart.iter("g") if mark.get("class", "").startswith("mark")]
            assert all(mark.get("role") == "img" and mark.get("aria-label") for mark in marks)
            assert [mark.get("tabindex") for mark in marks] == ["0"] + ["-1"] * (len(marks) - 1)
            others = [text for text in chart.iter("text") if not any(text in mark.iter() for mark in marks)]
            assert all(text.get("aria-hidden") or any(text in grid for grid in chart.iter("g")) for text in others)


def test_every_table_has_a_caption_and_headers_with_a_scope(page: Element) -> None:
    for table in elements(page, "table"):
        assert text_of(table.find("caption"))
        heads = list(table.find("thead").iter("th"))
        assert all(head.get("scope") == "col" and text_of(head) for head in heads)
        for row in table.find("tbody"):
            assert [cell.tag for cell in row] == ["th"] + ["td"] * (len(heads) - 1)
            assert row[0].get("scope") == "row"


def test_what_the_tab_key_stops_at_has_a_role_and_a_name(page: Element) -> None:
    for element in page.iter():
        if element.get("tabindex") is not None:
            assert element.get("tabindex") in ("0", "-1")
            assert element.get("role")
            assert element.get("aria-label")
        if element.tag == "button":
            assert element.get("type") == "button"
            assert text_of(element)
        if element.tag == "details":
            assert element[0].tag == "summary"
            assert text_of(element[0])
