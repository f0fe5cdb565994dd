"""The report's page in a browser: in light and dark, on a desk and on a phone, by mouse and by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from audit import AXE, GRAVE, findings, views
from browser import CHROMIUM, Page, browser
from made_up_runs import PAGES, run, thirty, tuned

from secateur.report.page import report_page

needs_axe = pytest.mark.skipif(
    AXE is None, reason="needs axe-core: pip install axe-core-python, or AXE=axe.min.js of npm's"
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

CLIPPED = """[...document.querySelectorAll("svg text")].filter((text) => text.getClientRects().length).filter((text) => {
  const inner = text.getBoundingClientRect(), outer = text.closest("svg").getBoundingClientRect();
  return inner.left < outer.left || inner.right > outer.right || inner.top < outer.top || inner.bottom > outer.bottom;
}).map((text) => text.textContent)"""
OVERLAPPING = """[...document.querySelectorAll("svg")].flatMap((svg) => {
  const boxes = [...svg.querySelectorAll("text.tick, text.axis, text.value, text.name")]
    .filter((text) => text.getClientRects().length).map((text) => [text.textContent, text.getBoundingClientRect()]);
  const beside = (one, other) => one.right <= other.left || other.right <= one.left;
  const above = (one, other) => one.bottom <= other.top + 3 || other.bottom <= one.top + 3;  // boxes are higher than letters
  return boxes.flatMap(([name, one], place) => boxes.slice(place + 1)
    .filter(([, other]) => !beside(one, other) && !above(one, other)).map(([other]) => `${name} and ${other}`));
})"""


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of page as a file."""
    folder = tmp_path_factory.mktemp("pages")
    for name, runs in PAGES.items():
        (folder / f"{name}.html").write_text(report_page(runs), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_silent_asks_for_nothing_and_fits_the_screen(tab: Page, folder: Path, name: str) -> None:
    file = folder / f"{name}.html"
    for view in views(tab, file):
        assert tab.value("document.documentElement.className") == "scripted", view
        assert tab.value("document.documentElement.scrollWidth <= innerWidth"), view
        assert tab.value(CLIPPED) == [], view
        assert tab.value(OVERLAPPING) == [], view
        assert tab.said == [], view
        assert {address for address in tab.requested if not address.startswith("data:")} == {file.as_uri()}, view


@pytest.mark.parametrize("name", PAGES)
def test_the_page_reflows_at_320_pixels(tab: Page, folder: Path, name: str) -> None:
    tab.open(folder / f"{name}.html", width=320)
    assert tab.value("document.documentElement.scrollWidth <= innerWidth")


def test_the_ground_is_dark_where_the_reader_wants_it(tab: Page, folder: Path) -> None:
    grounds = {}
    for dark in (False, True):
        tab.open(folder / "one run.html", width=1280, dark=dark)
        grounds[dark] = tab.value("getComputedStyle(document.body).backgroundColor")
    assert grounds == {False: "rgb(255, 255, 255)", True: "rgb(18, 22, 27)"}


def test_without_javascript_everything_is_there_but_the_sorting(tab: Page, folder: Path) -> None:
    tab.open(folder / "one run.html", width=1280, script=False)
    shown = "[...document.querySelectorAll('{}')].filter((part) => part.getClientRects().length).length"
    assert tab.value(shown.format("svg.bars .mark")) == 6 + 3  # layers, stages of perplexity
    assert tab.value(shown.format("button, .detail")) == 0


def test_the_arrow_keys_walk_through_the_bars_which_are_one_stop_of_the_tab_key(tab: Page, folder: Path) -> None:
    tab.open(folder / "one run.html", width=1280)
    here = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
    stops = []
    for key in ("Tab", "Tab", "Tab", "ArrowRight", "End", "ArrowRight", "Tab"):
        tab.press(key)
        stops.append(tab.value(here))
    scores = {
        layer: f"layer {layer}: score {score}" for layer, score in enumerate(("0.5", "0.1", "0.2", "1", "0.25", "none"))
    }
    assert stops == [
        "by layer", "by score", f"{scores[0]}, kept", f"{scores[1]}, dropped", f"{scores[5]}, kept", f"{scores[5]}, kept",
        "As a table",
    ]  # fmt: skip
    assert tab.value("document.querySelector('.detail').textContent") == f"{scores[5]}, kept"


def test_a_button_puts_the_bars_in_the_order_of_their_scores(tab: Page, folder: Path) -> None:
    tab.open(folder / "one run.html", width=1280)
    order = (
        "[...document.querySelectorAll('.explore .mark')]"
        ".sort((a, b) => a.getBoundingClientRect().left - b.getBoundingClientRect().left).map((mark) => mark.ariaLabel[6])"
    )
    assert tab.value(order) == list("012345")
    tab.value("document.querySelector('[data-order=value]').click()")
    assert tab.value(order) == list("304215")
    assert tab.value("document.querySelector('[data-order=value]').ariaPressed") == "true"


def test_every_layer_keeps_its_number_in_the_order_of_the_scores(tab: Page, folder: Path) -> None:
    numbers = (
        "[...document.querySelectorAll('.explore .mark .tick')].filter((text) => text.getClientRects().length)"
        ".map((text) => [text.getBoundingClientRect().left, text.textContent]).sort(([a], [b]) => a - b).map(([, text]) => text)"
    )
    scores = thirty().record["scores"]
    for view in views(tab, folder / "thirty layers.html"):
        assert tab.value(numbers) == [str(layer) for layer in range(30)], view
        tab.value("document.querySelector('[data-order=value]').click()")
        assert tab.value(numbers) == [str(layer) for layer in sorted(range(30), key=lambda layer: -scores[layer])], view
        assert tab.value(OVERLAPPING) == [], view


def test_only_what_scrolls_is_a_stop_of_the_tab_key(tab: Page, folder: Path) -> None:
    stops = (
        "[...document.querySelectorAll('.wide[tabindex]')].filter((part) => part.checkVisibility())"
        ".map((part) => part.scrollWidth > part.clientWidth)"
    )
    tab.open(folder / "several runs.html", width=1280)
    assert tab.value(stops) == []
    tab.open(folder / "several runs.html", width=390)
    assert tab.value(stops) == [True]


def test_a_table_that_goes_on_beyond_a_phone_says_so(tab: Page, folder: Path) -> None:
    said = "getComputedStyle(document.querySelector('.wide caption'), '::after').content"
    tab.open(folder / "several runs.html", width=1280)
    assert tab.value(said) == "none"
    tab.open(folder / "several runs.html", width=390)
    assert "goes on to the right" in tab.value(said)


def test_a_caption_is_no_wider_than_the_screen_and_stays_where_its_table_scrolls(tab: Page, tmp_path: Path) -> None:
    page = tmp_path / "captioned.html"
    runs = [run(name, metrics__pruned__nll_stderr=0.04) for name in ("a", "elder-with-recovery-25-percent")]
    page.write_text(report_page([*runs, tuned(0.8, 0.9)]), encoding="utf-8")
    edges = "(({left, right}) => [left, right])(document.querySelector('.wide caption').getBoundingClientRect())"
    for width in (390, 320):
        tab.open(page, width=width)
        before = tab.value(edges)
        assert 0 <= before[0] < before[1] <= width
        assert (
            tab.value("((wide) => {wide.scrollLeft = 9999; return wide.scrollLeft})(document.querySelector('.wide'))")
            > 50
        )
        assert tab.value(edges) == before
    words = "(({width}) => width)(document.querySelector('.wide caption').getBoundingClientRect())"
    tab.open(page, width=1280)
    assert tab.value(words) > 600  # on a wide screen nothing is narrower for it


def test_on_a_phone_the_texts_of_both_models_stand_below_each_other(tab: Page, folder: Path) -> None:
    left = "[...document.querySelectorAll('td span')].map((text) => Math.round(text.getBoundingClientRect().left))"
    right = "Math.max(...[...document.querySelectorAll('td span')].map((text) => text.getBoundingClientRect().right))"
    tab.open(folder / "a large model.html", width=1280)
    dense, pruned = tab.value(left)
    assert dense < pruned
    tab.open(folder / "a large model.html", width=390)
    dense, pruned = tab.value(left)
    assert dense == pruned
    assert tab.value(right) <= 390
    assert "dense" in tab.value("getComputedStyle(document.querySelector('td span'), '::before').content")


def test_sections_go_on_across_sheets_of_paper(tab: Page, folder: Path) -> None:
    tab.open(folder / "thirty layers.html", width=1280)
    assert 1 < tab.printed() <= 4


@needs_axe
@pytest.mark.parametrize("name", PAGES)
def test_axe_has_no_grave_finding(tab: Page, folder: Path, name: str) -> None:
    axe = AXE.read_text(encoding="utf-8")
    for view in views(tab, folder / f"{name}.html"):
        found = findings(tab, axe)
        assert [(each["id"], each["nodes"][0]["target"]) for each in found if each["impact"] in GRAVE] == [], view


@needs_axe
def test_axe_finds_a_pale_text(tab: Page, tmp_path: Path) -> None:
    page = tmp_path / "pale.html"
    page.write_text(report_page([run()]).replace("--soft:#57606a", "--soft:#aaaaaa"), encoding="utf-8")
    tab.open(page, width=1280)
    found = findings(tab, AXE.read_text(encoding="utf-8"))
    assert [(each["id"], each["impact"]) for each in found] == [("color-contrast", "serious")]
