"""The report's page: what it says against what the record says, and that nothing of it leaves the page."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from made_up_runs import PLAN, RECORD, nominated, run, tuned

from secateur.cli import main
from secateur.errors import DataError
from secateur.report.charts import Bar, Point, bars, heat_map, lines, scatter
from secateur.report.comparability import measured_alike
from secateur.report.html import Html, el, table, unbroken
from secateur.report.page import ReportedRun, load_run, report_page
from secateur.report.reported import verdict


def parsed(page: str) -> ElementTree.Element:
    return ElementTree.fromstring(page.removeprefix("<!doctype html>\n"))  # noqa: S314


def written(folder: Path) -> Path:
    """A made-up run as it lies on the disk."""
    (folder / "secateur").mkdir(parents=True)
    for each, body in (("record", RECORD), ("plan", PLAN)):
        (folder / "secateur" / f"{each}.json").write_text(json.dumps(body))
    return folder


def marks_of(svg: str) -> list[ElementTree.Element]:
    return [mark for mark in ElementTree.fromstring(svg).iter("g") if "mark" in mark.get("class", "")]  # noqa: S314


def test_the_verdict_equals_the_sentence_by_hand() -> None:
    assert verdict(run()) == (
        "2 of 6 layers were removed by elder: perplexity rose from 20.00 to 25.00 (+25.0 %); what stays was trained on 64 tokens "
        "of a.txt, the dense model was not; it has 30 % fewer parameters and 1.30× the speed of writing on this machine."
    )
    assert verdict(tuned(0.8, 0.85)) == (
        "2 of 6 layers were removed by elder: its accuracy is 0.800 (95 % 0.700 to 0.900, 300 items), where the dense model, "
        "fine-tuned alike, has 0.850; it has 30 % fewer parameters."
    )
    assert "perplexity fell from 20.00 to 19.00 (−5.0 %)" in verdict(run(metrics__pruned__perplexity=19.0))


def test_the_verdict_says_a_large_change_as_the_table_does_and_what_chance_gives() -> None:
    large = run(metrics__dense__perplexity=58.99, metrics__pruned__perplexity=192.2)
    assert "perplexity rose from 58.99 to 192.2 (×3.3)" in verdict(large)
    assert re.search("<td[^>]*>×3.3</td>", report_page([large]))
    task = tuned(0.8, 0.85)
    task.record["metrics"]["pruned"]["task"]["chance"] = 0.5
    assert "0.800 (95 % 0.700 to 0.900, 300 items, chance alone 0.500)" in verdict(task)


def test_a_speed_in_doubt_is_not_in_the_verdict_and_is_said_beside_the_speeds() -> None:
    doubted = run(metrics__pruned__decode_tokens_per_second=1000.0)
    assert verdict(doubted).endswith("; it has 30 % fewer parameters.")
    assert "The speed is in doubt" in report_page([doubted])
    assert "The speed is in doubt" not in report_page([run()])
    assert "100.00× (in doubt)" in report_page([doubted, run("b")])
    cells = [cell.text for cell in parsed(report_page([doubted])).iter("td") if "in doubt" in (cell.text or "")]
    # of the comparison, then of the speeds: reading and writing each
    assert cells == ["+40.0\u00a0% (in doubt)", "×100 (in doubt)", "1.40× (in doubt)", "100.00× (in doubt)"]


def test_what_a_speed_is_held_to_is_named_for_what_it_is() -> None:
    page = report_page([run(dropped=[1], metrics__pruned__decode_tokens_per_second=40.0)])  # 6 to 4 layers, 1000 to 700
    assert "where the smaller model explains 1.50 times by its layers" in page
    (head,) = (each for each in parsed(page).iter("th") if (each.text or "").startswith("ideal"))
    assert head.text == "ideal by parameters"
    assert "1.43×" in page


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({}, "m without 2 of 6 layers (elder)"),
        ({"recovery": {"kind": "lora", "losses": []}}, "m without 2 of 6 layers (elder, recovered)"),
        ({"training": {"losses": []}, "model__id": "owner/name"}, "name without 2 of 6 layers (elder, fine-tuned)"),
        ({"model__id": "/a/b/<i>/"}, "<i> without 2 of 6 layers (elder)"),
    ],
)
def test_title_and_heading_say_the_model_and_what_was_done(changes: dict[str, Any], title: str) -> None:
    page = parsed(report_page([run("folder", **changes)]))
    assert [page.find("head/title").text, next(page.iter("h1")).text] == [title, title]
    assert "folder" in [code.text for code in page.iter("code")]


def test_the_title_of_several_runs_names_them() -> None:
    assert parsed(report_page([run("a"), run("b")])).find("head/title").text == "2 runs: a, b"


def test_curves_of_losses_start_at_the_first_step_however_a_record_counts() -> None:
    from_none = [{"step": 0, "loss": 3.0}, {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    from_one = [{**each, "step": each["step"] + 1} for each in from_none]

    def drawn(losses: list[dict[str, float]]) -> str:
        return report_page([run(training={"losses": losses})])

    assert drawn(from_none) == drawn(from_one) == drawn([{"loss": each["loss"]} for each in from_none])
    assert drawn(from_none) != drawn([{**each, "step": each["step"] + 1} for each in from_one])


def test_the_table_of_runs_of_several_metrics_names_the_metric_in_each_row() -> None:
    page = parsed(report_page([run("a"), run("b"), tuned(0.8, 0.9)]))
    head, *rows = ([cell.text for cell in row] for row in next(page.iter("table")).iter("tr"))
    assert head[4] == "quality"
    assert [row[4] for row in rows] == ["25.00 (perplexity)"] * 2 + ["0.800 (0.700 to 0.900) (accuracy)"]
    alike = next(parsed(report_page([run("a"), run("b")])).iter("table"))
    head, *rows = ([cell.text for cell in row] for row in alike.iter("tr"))
    assert (head[4], rows[0][4]) == ("perplexity", "25.00")


def test_text_of_strangers_is_text_and_no_markup() -> None:
    page = report_page([run(name="<img src=x onerror=alert(1)>", command="secateur prune '</script><b>'")])
    assert page.count("<script>") == 1
    assert "alert(1)</script>" not in page
    assert "<img" not in page
    assert "&lt;b&gt;Paris&lt;/b&gt;" in page
    assert "was  &amp; is" in page  # HTML has no control characters


def test_nothing_is_fetched() -> None:
    page = report_page([run()])
    assert not re.search(r"https?://|//[a-z]|url\(|@import|<(?:img|iframe|object|embed)|\bsrc=", page)
    assert re.findall(r'href="(.*?)"', page) == ["data:,"]


@pytest.mark.parametrize("runs", [[run()], [tuned(0.8, 0.85)], [run("a"), run("b"), tuned(0.8, 0.9)]])
def test_the_page_is_well_formed_and_has_one_heading_before_the_others(runs: list[ReportedRun]) -> None:
    page = parsed(report_page(runs))
    headings = [element.tag for element in page.iter() if element.tag in ("h1", "h2", "h3")]
    assert headings[0] == "h1"
    assert set(headings[1:]) == {"h2"}
    assert page.get("lang") == "en"
    ids = [element.get("id") for element in page.iter() if element.get("id")]
    assert len(ids) == len(set(ids))


def test_every_layer_is_marked_as_the_plan_says() -> None:
    (svg,) = (element for element in parsed(report_page([run()])).iter("svg") if element.get("class") == "bars" and len(
        [mark for mark in element.iter("g") if "mark" in mark.get("class", "")]) == 6)  # fmt: skip
    marks = [mark for mark in svg.iter("g") if "mark" in mark.get("class", "")]
    assert [mark.get("class") for mark in marks] == [
        "mark kept", "mark dropped", "mark dropped merged", "mark kept", "mark kept", "mark kept",
    ]  # fmt: skip
    assert marks[2].get("aria-label") == "layer 2: score 0.2, dropped, merged into layer 3"
    assert marks[5].get("aria-label") == "layer 5: score none, kept"
    assert [mark.get("tabindex") for mark in marks] == ["0", *["-1"] * 5]


def test_what_decided_for_elder_is_the_shortlist_s_loss_and_the_bars_are_the_weights_as_learned() -> None:
    page = parsed(report_page([nominated()]))
    said = [mark.get("aria-label") for mark in page.iter("g") if (mark.get("aria-label") or "").startswith("layer ")]
    assert said[:3] == ["layer 0: score 0.4, kept", "layer 1: score 0.25, dropped", "layer 2: score 0.6, dropped"]
    (decided,) = (each for each in page.iter("table") if each.find("caption").text.startswith("What decided"))
    rows = [[cell.text for cell in row] for row in decided.find("tbody")]
    assert rows == [
        ["1", "layer 2", "3.0000", "layer 1", "3.2500", "3"],
        ["2", "layer 1", "3.6875", "layer 0", "3.7500", "2"],
    ]
    titles = [title.text for title in page.iter("title")]
    assert "step 30, layer 1: 0.25" in titles
    assert "step 4, layer 1: 0.8" in titles
    (drawn,) = (each for each in page.iter("svg") if "step 30" in (each.get("aria-label") or ""))
    assert [each.get("class") for each in drawn.iter("rect")].count("went") == 2


def test_sections_without_anything_to_say_are_left_out() -> None:
    bare = ReportedRun(
        name="bare",
        record={**RECORD, "scores": None, "generations": None, "preparation": None, "proof": None, "metrics": {}},
        plan={},
    )
    page = report_page([bare])
    assert "What they write" not in page
    assert "How the choice came about" not in page
    assert "the method gives no scores" in page


def height_of(mark: ElementTree.Element) -> float:
    """Of the bar, which stands before its band."""
    band, bar = mark.findall("rect")
    assert float(bar.get("height")) <= float(band.get("height"))
    return float(bar.get("height"))


@pytest.mark.parametrize("values", [[1.0, 2.0, 4.0], [0.0, 0.5, 3.0], [3.0, 3.0, 1.5]])
def test_bars_are_as_high_as_their_values(values: list[float]) -> None:
    marks = marks_of(bars([Bar(label=str(v), value=v, says=str(v)) for v in values], title="t", x_title="", y_title=""))
    heights = [height_of(mark) for mark in marks]
    most = max(values)
    for value, height in zip(values, heights, strict=True):
        assert height == pytest.approx(max(1.0, heights[values.index(most)] * value / most), abs=0.11)


def test_values_of_many_sizes_are_drawn_by_their_logarithm() -> None:
    values = [1e-8, 1e-6, 1e-4]
    marks = marks_of(bars([Bar(label="", value=v, says="") for v in values], title="t", x_title="", y_title=""))
    heights = [height_of(mark) for mark in marks]
    assert heights[2] - heights[1] == pytest.approx(heights[1] - heights[0], abs=0.2)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([900.0, *range(10, 39)], "broken"),
        ([40.0] * 4 + [0.5] * 6, "logarithmic"),
        ([0.4, 0.5, 1.0, 1.0, 0.0], ""),
        ([-1.0, 2.0, 3.0], ""),
    ],
)
def test_one_bar_far_above_the_others_is_broken_and_many_make_the_axis_logarithmic(
    values: list[float], kind: str
) -> None:
    given = [Bar(label="", value=v, says="", shown=f"{v:g}") for v in values]
    svg = bars(given, title="t", x_title="", y_title="score")
    assert ("logarithmic" in svg) == (kind == "logarithmic")
    assert svg.count('class="break"') == ("cut off" in svg) == (kind == "broken")
    if kind == "broken":
        heights = [height_of(mark) for mark in marks_of(svg)]
        assert heights[0] == max(heights)
        assert heights[-1] > 0.8 * heights[0]
        assert marks_of(svg)[0].findall("text")[0].text == "900"


def test_every_bar_has_its_value_beside_it_where_there_is_room() -> None:
    def shown(count: int) -> list[str]:
        given = [Bar(label=str(v), value=v, says="", shown=f"is {v}") for v in range(count)]
        marks = marks_of(bars(given, title="t", x_title="", y_title=""))
        return [text.text for mark in marks for text in mark.findall("text") if text.get("class").startswith("value")]

    assert shown(3) == ["is 0", "is 1", "is 2"]
    assert shown(30) == [f"is {layer}" for layer in range(30)]
    assert shown(80) == []


def test_a_line_goes_from_the_lower_left_to_the_upper_right_and_leaves_out_what_is_not_finite() -> None:
    svg = ElementTree.fromstring(lines([("c", [(0, 1.0), (1, math.nan), (2, 3.0)])], title="t", x_title="", y_title=""))  # noqa: S314
    points = [tuple(map(float, pair.split(","))) for pair in svg.find(".//polyline").get("points").split()]
    assert len(points) == 2
    assert points[0][0] < points[1][0]
    assert points[0][1] > points[1][1]


@pytest.mark.parametrize(
    ("low", "high"), [(3.0, 3.0), (4.05, 4.85), (0.99981, 0.99984), (12_345.0, 23_456.0), (1e-7, 5e-7), (1e7, 3e7), (-2.0, 2.0)]
)  # fmt: skip
def test_an_axis_has_three_to_seven_ticks_at_the_values_they_say(low: float, high: float) -> None:
    svg = ElementTree.fromstring(lines([("c", [(0, low), (1, high)])], title="t", x_title="", y_title=""))  # noqa: S314
    grids = [grid for grid in svg.iter("g") if grid.get("class") == "grid"]
    texts = [grid.find("text").text for grid in grids]
    assert 3 <= len(set(texts)) == len(texts) <= 7
    values = [float(text.replace(",", "")) for text in texts]
    heights = [float(grid.find("line").get("y1")) for grid in grids]
    bottom, top = heights[0], heights[-1]
    pixels = (bottom - top) / (values[-1] - values[0])
    assert heights == pytest.approx([bottom - pixels * (value - values[0]) for value in values], abs=0.2)


def test_a_heat_map_has_a_cell_a_step_and_layer_and_skips_steps_of_nothing() -> None:
    svg = ElementTree.fromstring(heat_map([[0.0, 0.0], [1.0, 0.25], [0.5, 2.0]], title="t", x_title="", y_title=""))  # noqa: S314
    cells = [cell.get("style") for cell in svg.iter("rect")]
    assert cells == ["fill-opacity:1.00", "fill-opacity:0.25", "fill-opacity:0.25", "fill-opacity:1.00"]
    many = heat_map([[1.0]] * 500, title="t", x_title="", y_title="")
    assert many.count("<rect") == 60


def test_a_heat_map_from_the_least_has_no_cell_for_what_is_missing_and_speaks_of_the_outlined_row() -> None:
    rows = [[2.0, 6.0, 4.0], [5.0, 4.0, math.nan], [1.0, math.nan, math.nan]]
    drawn = heat_map(
        rows, title="t", x_title="start", y_title="length", numbers=[1, 2, 3], from_least=True, outlined=(1, 1)
    )  # fmt: skip
    svg = ElementTree.fromstring(drawn)  # noqa: S314
    *cells, outline = svg.iter("rect")
    assert [(cell.find("title").text, cell.get("style")) for cell in cells] == [
        ("length 1, start 0: 2", "fill-opacity:0.10"),
        ("length 1, start 1: 6", "fill-opacity:1.00"),
        ("length 1, start 2: 4", "fill-opacity:0.55"),
        ("length 2, start 0: 5", "fill-opacity:1.00"),
        ("length 2, start 1: 4", "fill-opacity:0.10"),
        ("length 3, start 0: 1", "fill-opacity:1.00"),
    ]
    assert (outline.get("class"), outline.get("x"), outline.get("y")) == (
        "outline",
        cells[4].get("x"),
        cells[4].get("y"),
    )
    (image,) = (each for each in svg.iter("svg"))
    assert image.get("aria-label") == "t: at length 2 start 0 has the largest value and start 1 the smallest"
    many = [[0.0, 1.0]] * 200
    assert "at row 50 " in heat_map(many, title="t", x_title="column", y_title="row", outlined=(50, 1))


@pytest.mark.parametrize(
    ("dropped", "said"), [([1, 2], "The block that went, 2 from layer 1 on, has an outline."), ([0, 2], None)]
)
def test_the_distances_of_blocks_stand_by_length_and_first_layer_with_the_block_that_went(
    dropped: list[int], said: str | None
) -> None:
    distances = [[0.2, 0.5, 0.6], [0.1, 0.3, 0.4], [0.4, 0.45, None], [0.3, None, None]]
    blocks = ReportedRun(name="a", record=run(dropped=dropped).record, plan={"provenance": {"distances": distances}})
    page = report_page([blocks])
    titles = [title.text for title in parsed(page).iter("title") if (title.text or "").startswith("length ")]
    assert len(titles) == 9
    assert titles[:2] == ["length 1, first layer 0: 0.2", "length 1, first layer 1: 0.1"]
    assert titles[-1] == "length 3, first layer 1: 0.4"
    assert page.count('class="outline"') == (said is not None)
    assert (said or "How far each block") in page
    assert ("has an outline" in page) == (said is not None)


def test_the_front_is_what_no_other_run_betters() -> None:
    sizes, perplexities = (700, 800, 900, 750), (25.0, 22.0, 24.0, 25.0)
    runs = [
        run(f"r{number}", metrics__pruned__num_parameters=size, metrics__pruned__perplexity=ppl)
        for number, (size, ppl) in enumerate(zip(sizes, perplexities, strict=True))
    ]
    page = parsed(report_page(runs))
    points = {
        point.find("text").text: "on-front" in point.get("class")
        for point in page.iter("g")
        if point.get("class", "").startswith("point")
    }
    better = {
        f"r{a}": not any(sizes[b] <= sizes[a] and perplexities[b] <= perplexities[a] and b != a for b in range(4))
        for a in range(4)
    }
    assert better == {"r0": True, "r1": True, "r2": False, "r3": False}
    assert points == {**better, "dense": True}  # which has the least perplexity


def runs_beside(**changes: Any) -> tuple[str, set[str]]:
    """The page of three runs whose last has `changes`, and which names its plot has."""
    page = report_page([run("a"), run("b", metrics__pruned__perplexity=22.0), run("c", **changes)])
    groups = (group for group in parsed(page).iter("g") if group.get("class", "").startswith("point"))
    return page, {group.find("text").text for group in groups}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"metrics__pruned__perplexity": 24.0}, None),
        ({"model__config_sha256": "other"}, "another model"),
        ({"eval_data": {"spec": "b.txt", "fingerprint": "f3"}}, "another text"),
        ({"metrics__pruned__window": 512}, "other windows"),
        ({"metrics__dense__perplexity": 20.1, "metrics__pruned__perplexity": 24.0}, None),  # of another precision
        ({"metrics__dense__perplexity": 21.0}, "other figures of the dense model"),
        ({"metrics__pruned__perplexity": None}, "not measured"),
        ({"metrics": tuned(0.8, 0.9).record["metrics"]}, "another metric"),
    ],
)
def test_what_cannot_be_compared_is_in_the_table_marked_and_not_in_the_plot(
    changes: dict[str, Any], reason: str | None
) -> None:
    page, plotted = runs_beside(**changes)
    assert plotted == {"a", "b", "dense"} | ({"c"} if reason is None else set())
    assert ("not in the plot" in page) == (reason is not None)
    if reason is not None:
        assert f"c ({reason})" in page
        assert f"<td>no: {reason}</td>" in page


def test_runs_at_one_place_share_a_point_that_names_them() -> None:
    page, plotted = runs_beside(metrics__pruned__perplexity=22.0)
    assert plotted == {"a", "b and 1 more", "dense"}
    assert "b, c: 700 parameters, perplexity 22.00" in page


def test_the_larger_set_is_the_one_that_is_compared() -> None:
    page, _ = runs_beside()
    others = [run("x", eval_data=None), run("a"), run("b")]
    assert measured_alike(others).reason(others[0]) == "another text"
    assert [each.name for each in measured_alike(others).runs] == ["a", "b"]
    assert page.count("secateur prune m --drop 2") == 3  # how each is made again
    assert measured_alike([]).runs == ()


def test_a_figure_says_how_sure_it_is() -> None:
    measured = run(metrics__pruned__nll_stderr=0.04)
    assert measured.quality is not None
    assert measured.quality.with_interval() == "25.00 ± 1.00"
    assert "25.00 ± 1.00" in report_page([measured, run("other")])
    task = tuned(0.8, 0.9)
    assert (task.quality.with_interval(), task.dense_quality.value) == ("0.800 (0.700 to 0.900)", 0.9)


@pytest.mark.parametrize("count", [3, 12])
def test_names_of_points_of_one_size_and_nearly_one_height_are_spread(count: int) -> None:
    points = [Point(label=f"run-{number}", x=7.0, y=20 + number / 1e4, says="") for number in range(count - 1)]
    points.append(Point(label="far", x=9.0, y=40.0, says=""))
    svg = ElementTree.fromstring(scatter(points, title="t", x_title="", y_title=""))  # noqa: S314
    drawn = [
        (group.find("circle"), group.find("text"), group.find("line"))
        for group in svg.iter("g")
        if "point" in group.get("class")
    ]
    sides = [(float(dot.get("cx")) < float(name.get("x")), float(name.get("y"))) for dot, name, _ in drawn]
    for (one_side, one), (other_side, other) in itertools.combinations(sides[:-1], 2):
        assert one_side != other_side or abs(one - other) >= 24
    for dot, name, line in drawn:
        moved = abs(float(dot.get("cy")) + 4 - float(name.get("y"))) > 0.01
        assert moved == (line is not None)


def test_a_bar_of_an_interval_reaches_from_its_low_to_its_high_end_by_the_axis_of_the_points() -> None:
    points = [
        Point(label="sure", x=1.0, y=20.0, says=""),
        Point(label="unsure", x=2.0, y=30.0, low=25.0, high=40.0, says=""),
        Point(label="endless", x=3.0, y=30.0, low=25.0, high=math.inf, says=""),
    ]
    svg = ElementTree.fromstring(scatter(points, title="t", x_title="", y_title=""))  # noqa: S314
    drawn = {group.find("text").text: group for group in svg.iter("g") if "point" in group.get("class")}
    assert list(drawn) == ["sure", "unsure"]
    assert [line.get("class") for line in drawn["sure"].iter("line")] == []
    (bar,) = (line for line in drawn["unsure"].iter("line") if line.get("class") == "interval")
    heights = {name: float(group.find("circle").get("cy")) for name, group in drawn.items()}
    unit = (heights["sure"] - heights["unsure"]) / 10
    assert float(bar.get("y2")) == pytest.approx(heights["unsure"] + 5 * unit, abs=0.2)
    assert float(bar.get("y1")) == pytest.approx(heights["unsure"] - 10 * unit, abs=0.2)
    assert bar.get("x1") == bar.get("x2") == drawn["unsure"].find("circle").get("cx")


def test_the_plot_of_several_runs_has_the_bars_of_their_figures_and_says_what_they_are() -> None:
    page = report_page([run(metrics__pruned__nll_stderr=0.04), run("other")])
    assert page.count('class="interval"') >= 1
    assert "The bars are one standard error, of each model alone." in page
    assert "The bars are 95 % intervals" in report_page([tuned(0.8, 0.9), tuned(0.7, 0.9)])
    unsure = report_page([run(metrics__pruned__nll_stderr=None, metrics__dense__nll_stderr=None)] * 2)
    assert 'class="interval"' not in unsure
    assert "The bars are" not in unsure


def test_scatter_of_one_point_and_of_none() -> None:
    assert "circle" in scatter([Point(label="a", x=1, y=1, says="a: 1, 1")], title="t", x_title="", y_title="")
    assert scatter([], title="t", x_title="", y_title="") == ""


def test_a_figure_stays_on_one_line_with_its_unit_and_words_do_not() -> None:
    assert unbroken("rose to 134.5 M (−2.5 %), 538 MB of 3 More, 5 to 6 %x") == (
        "rose to 134.5\u00a0M (−2.5\u00a0%), 538\u00a0MB of 3 More, 5 to 6 %x"
    )
    assert '<td class="figure">12.5\u00a0%</td>' in table(["", "x"], [["row", "12.5 %"]], caption="c")


def test_columns_of_nothing_but_figures_are_aligned_and_others_are_not() -> None:
    rows = [
        ["a", "−12.5 %", "none", "0.7 to 0.9", "134.5 M", "layer 1", "3"],
        ["b", "×2.3", 1.0, "–", "0.80 (f1)", "2", "x"],
    ]
    head = parsed(f"<html>{table(list('abcdefg'), rows, caption='c')}</html>").findall(".//thead//th")
    assert [each.get("class") for each in head] == [None, *["figure"] * 4, None, None]


def test_the_key_has_what_is_there() -> None:
    def key(**changes: object) -> list[str]:
        page = parsed(report_page([run(**changes)]))
        return [each.text for each in next(each for each in page.iter("ul") if each.get("class") == "key")]

    assert key() == ["kept", "dropped", "dropped and merged"]
    assert key(dropped=[2]) == ["kept", "dropped and merged"]
    assert key(dropped=[0]) == ["kept", "dropped"]


def test_elements_escape_text_and_attributes_and_leave_markup() -> None:
    assert el("p", "1 < 2", Html("<b>x</b>"), class_='a"b', hidden=None) == '<p class="a&quot;b">1 &lt; 2<b>x</b></p>'
    assert "<td>&lt;i&gt;</td>" in table(["", "x"], [["row", "<i>"]], caption="c")


@pytest.mark.parametrize(("name", "content"), list(itertools.product(("record", "plan"), (None, "[]", "{", "3"))))
def test_a_run_that_cannot_be_read_is_one_line(name: str, content: str | None, tmp_path: Path) -> None:
    written(tmp_path)
    assert load_run(tmp_path).record == RECORD
    file = tmp_path / "secateur" / f"{name}.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(DataError, match=f"{name}.json cannot be read; give a directory"):
        load_run(tmp_path)


def test_the_command_writes_the_page_of_what_it_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        written(tmp_path / name)
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    assert out.read_text() == report_page([load_run(tmp_path / "a"), load_run(tmp_path / "b")])
    assert str(out) in capsys.readouterr().out
    assert main(["report", str(tmp_path / "c")]) == 2


def test_the_command_names_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [written(tmp_path / name) for name in ("a", "b", "c")]
    other = json.dumps({**RECORD, "eval_data": {"spec": "b.txt", "fingerprint": "f9"}})
    (runs[2] / "secateur" / "record.json").write_text(other)
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().err.splitlines()
    assert sum("c cannot be compared with the others (another text)" in line for line in said) == 1


def test_the_command_replaces_pages_of_its_own_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["report", str(written(tmp_path / "run"))]
    (tmp_path / "report.html").write_text("mine")
    assert main(words) == 2
    assert (
        "report.html is there, and is no page of a report; choose another --out, or add --overwrite"
        in capsys.readouterr().err
    )
    assert (tmp_path / "report.html").read_text() == "mine"
    assert main([*words, "--overwrite"]) == 0
    assert main(words) == 0  # a page of its own
    assert "the report is in report.html" in capsys.readouterr().out


def test_runs_of_one_name_are_told_apart_and_one_run_twice_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (written(tmp_path / place / "out") for place in ("a", "b"))
    out = tmp_path / "page.html"
    assert main(["report", str(first), str(second), f"--out={out}"]) == 0
    assert {"a/out", "b/out"} <= {found.text for found in parsed(out.read_text()).iter("h2")}
    assert main(["report", str(first), str(first / "."), f"--out={out}"]) == 2
    assert f"{first} is given twice" in capsys.readouterr().err


def test_where_the_settings_of_a_file_are_is_said_where_the_command_names_one() -> None:
    assert "secateur/request.json" not in report_page([run()])
    assert "secateur/request.json" in report_page([run(command="secateur prune m --config run.yaml --drop 2")])
