"""Tables and plots of made-up results, against what a hand computation gives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.compare.plots import figure, pareto_front, points_of, write_plots
from secateur.compare.results import Row
from secateur.compare.tables import markdown, page, table


def row(
    method: str,
    drop: int,
    perplexity: float | None,
    *,
    recovery: str = "none",
    seed: int = 0,
    before: int = 0,
    after: int = 0,
    tasks: dict[str, Any] | None = None,
    speed: float | None = None,
) -> Row:
    """A cell of a model of 10 layers, of 100 million parameters with 5 million a layer; its nll has a standard error of 0.1."""
    tasks = tasks or {}
    nll = None if perplexity is None else math.log(perplexity)
    result = {
        "metrics": {
            "dense": {"perplexity": 10.0, "nll": math.log(10), "nll_stderr": 0.05, "num_parameters": 10**8, "tasks": tasks},
            "pruned": {
                "perplexity": perplexity, "nll": nll, "nll_stderr": 0.1, "num_parameters": 10**8 - 5 * 10**6 * drop,
                "tasks": tasks,
            },
        },
        "tokens": {"trained_before_cut": before, "trained_after_cut": after},
        "timings": {"speed": speed and {"prefill": speed, "decode": speed}},
    }  # fmt: skip
    return Row(id="x", model="M", method=method, drop=drop, recovery=recovery, seed=seed, result=result)


def missing(method: str, drop: int, recovery: str = "none") -> Row:
    return Row(id="y", model="M", method=method, drop=drop, recovery=recovery, seed=0, result=None)


def test_perplexities_stand_by_method_and_layers_with_their_errors_and_the_lowest_in_bold() -> None:
    rows = [
        row("a", 4, 40.0),
        row("a", 2, 12.5),
        row("b", 2, 20.0),
        missing("b", 4),
        row("c", 2, None),
        row("c", 4, 1500.0),
        row("d", 2, 999_999.0),
        row("d", 4, 38_196_886_094.0),
    ]
    assert table("drops", rows).splitlines() == [
        "| layers dropped | 2 | 4 |",
        "| --- | ---: | ---: |",
        "| dense | 10.00 ± 0.50 | 10.00 ± 0.50 |",
        "| `a` | **12.50 ± 1.25** | **40.00 ± 4.00** |",
        "| `b` | 20.00 ± 2.00 | – |",
        "| `c` | ∞ | 1,500 ± 150.00 |",
        "| `d` | 999,999 ± 100,000 | 3.8e+10 |",
    ]


def test_seeds_are_averaged_in_nats_and_their_range_follows() -> None:
    rows = [row("a", 2, 10.0, seed=0), row("a", 2, 40.0, seed=1), row("b", 2, 30.0, seed=0), row("b", 2, 30.0, seed=1)]
    body = table("drops", rows).splitlines()[3:]
    assert body == ["| `a` | **20.00 ± 2.00 (10.00–40.00)** |", "| `b` | 30.00 ± 3.00 |"]  # √(10 · 40) = 20


def test_recovery_stands_beside_none_with_the_tokens_of_both() -> None:
    rows = [
        row("a", 2, 30.0), row("b", 2, 20.0, before=512),
        row("a", 2, 15.0, recovery="lora", after=1024), row("b", 2, 16.0, recovery="lora", before=512, after=1024),
        row("a", 2, 14.0, recovery="full", after=2048), missing("b", 2, "full"), row("a", 4, 50.0),
    ]  # fmt: skip
    assert table("recovery", rows).splitlines() == [
        "| method | before the cut | none | lora (1,024 tokens) | full (2,048 tokens) |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| `a` | 0 | 30.00 ± 3.00 | **15.00 ± 1.50** | **14.00 ± 1.40** |",
        "| `b` | 512 | **20.00 ± 2.00** | 16.00 ± 1.60 | – |",
    ]
    several = [*rows, row("a", 4, 45.0, recovery="lora", after=1024)]
    assert table("recovery", several).splitlines()[-1] == "| `a` | 4 | 0 | **50.00 ± 5.00** | **45.00 ± 4.50** | – |"


def test_tasks_are_averaged_over_the_seeds_that_have_them() -> None:
    first, second = {"x": {"value": 0.5, "stderr": 0.03}}, {"x": {"value": 0.7, "stderr": 0.03}}
    rows = [row("a", 2, 20.0, seed=0, tasks=first), row("a", 2, 20.0, seed=1, tasks=second), row("a", 2, 20.0, seed=2)]
    assert table("tasks", rows).splitlines()[3:] == ["| `a` | 2 | none | 60.0 ± 3.0 | 60.0 ± 3.0 |"]


def test_the_mean_of_tasks_has_the_error_of_a_mean_of_independent_ones() -> None:
    tasks = {"x": {"value": 0.5, "stderr": 0.03}, "y": {"value": 0.7, "stderr": 0.04}}
    other = {"x": {"value": 0.6, "stderr": 0.03}}
    rows = [row("a", 2, 20.0, tasks=tasks), row("b", 2, 20.0, tasks=other), row("c", 2, 20.0)]
    assert table("tasks", rows).splitlines() == [
        "| method | layers dropped | recovery | mean | x | y |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| dense | 0 | none | 65.0 ± 2.5 | 60.0 ± 3.0 | 70.0 ± 4.0 |",
        "| `a` | 2 | none | 60.0 ± 2.5 | 50.0 ± 3.0 | 70.0 ± 4.0 |",
        "| `b` | 2 | none | – | 60.0 ± 3.0 | – |",
    ]


def test_a_page_has_a_section_a_model_and_no_empty_table() -> None:
    text = page([row("a", 2, 20.0)])
    assert text.count("\n## M\n") == 1
    assert "recovery" not in text.split("## M")[1].replace("without recovery", "")
    assert table("recovery", [row("a", 2, 20.0)]) == table("tasks", [row("a", 2, 20.0)]) == ""
    assert markdown(["a", "b"], [["c", "d"]]) == "| a | b |\n| --- | ---: |\n| c | d |"


coordinates = st.tuples(*[st.integers(0, 6).map(float)] * 2)


@given(st.lists(coordinates, max_size=12))
def test_the_front_is_what_comparing_every_pair_leaves(points: list[tuple[float, float]]) -> None:
    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one[0] <= other[0] and one[1] <= other[1] and one != other

    left = [index for index, point in enumerate(points) if not any(beats(other, point) for other in points)]
    front = pareto_front(points)
    assert sorted(front) == left
    assert [points[index][0] for index in front] == sorted(points[index][0] for index in left)


def test_points_are_means_over_seeds_and_leave_out_what_is_lost_or_lacks_the_axis() -> None:
    rows = [
        row("a", 2, 10.0, seed=0, speed=1.2), row("a", 2, 40.0, seed=1, speed=1.4), row("b", 2, None, speed=2.0),
        row("c", 4, 1e7, speed=2.0), row("d", 4, 20.0, before=64, after=128), missing("e", 2),
    ]  # fmt: skip
    by_parameters = points_of(rows, "parameters")
    assert [(point.method, point.x, point.perplexity) for point in by_parameters] == [
        ("a", 90.0, pytest.approx(20.0)), ("d", 80.0, pytest.approx(20.0)),
    ]  # fmt: skip
    assert [point.error for point in by_parameters] == [pytest.approx(2.0)] * 2  # 0.1 of 20
    assert [(point.method, point.x) for point in points_of(rows, "speed")] == [("a", pytest.approx(1.3))]
    assert [(point.method, point.x) for point in points_of(rows, "tokens")] == [("a", 0.0), ("d", 192.0)]


def test_plots_are_the_same_files_twice_and_only_of_what_there_is(tmp_path: Path) -> None:
    rows = [row("a", 2, 20.0), row("b", 2, 18.0, after=256, recovery="lora"), row("b", 4, 30.0)]
    first = write_plots(rows, tmp_path / "one")
    assert [file.name for file in first] == ["m-parameters.svg", "m-tokens-drop2.svg"]
    for file, again in zip(first, write_plots(rows, tmp_path / "two"), strict=True):
        assert file.read_bytes() == again.read_bytes()
        assert b"<dc:date>" not in file.read_bytes()
    assert write_plots([missing("a", 2)], tmp_path / "none") == []


def test_a_method_and_a_recovery_can_be_told_apart_without_colour() -> None:
    recoveries = ["none", "lora", "partial", "full", "distill"]
    rows = [row(f"method {n}", 2, 20.0 + n, recovery=kind, after=64) for n in range(13) for kind in recoveries]
    drawn = figure(rows, "tokens", title="M")
    looks = [
        (line.get_marker(), line.get_fillstyle()) for line in drawn.axes[0].lines if line.get_linestyle() == "None"
    ]
    assert len(looks) == len(set(looks)) == 13 * 5


def test_the_drawn_front_is_the_lowest_perplexity_for_its_speed() -> None:
    rows = [
        row("a", 2, 12.0, speed=1.2),
        row("b", 4, 30.0, speed=1.6),
        row("c", 4, 40.0, speed=1.5),
        row("d", 2, 11.0, speed=1.1),
    ]
    drawn = figure(rows, "speed", title="M")
    front = next(line for line in drawn.axes[0].lines if line.get_linestyle() == "--")
    assert list(zip(*front.get_data(), strict=True)) == [
        (1.6, pytest.approx(30)), (1.2, pytest.approx(12)), (1.1, pytest.approx(11)), (1.0, pytest.approx(10)),
    ]  # fmt: skip


@pytest.mark.parametrize(("highest", "scale"), [(19.0, "linear"), (21.0, "log"), (5e5, "log")])
def test_perplexities_that_differ_more_than_twofold_stand_by_their_logarithm(highest: float, scale: str) -> None:
    drawn = figure([row("a", 2, 15.0), row("b", 2, highest)], "parameters", title="M")  # the dense model has 10
    assert drawn.axes[0].get_yscale() == scale
    drawn.canvas.draw()
    low, high = drawn.axes[0].get_ylim()
    shown = [label.get_text() for label in drawn.axes[0].get_yticklabels() if low <= label.get_position()[1] <= high]
    assert len([text for text in shown if text]) >= 2, "figures to read it by"
