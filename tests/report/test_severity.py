"""The word for a loss against its bounds, reckoned by hand."""

from __future__ import annotations

from typing import Any

import pytest
from made_up_runs import run, tuned

from secateur.report.page import ReportedRun, report_page
from secateur.report.severity import severity


@pytest.mark.parametrize(
    ("perplexity", "kind"),
    [
        (19.0, "none"),
        (20.0, "none"),
        (22.0, "small"),
        (22.1, "clear"),
        (30.0, "clear"),
        (30.1, "heavy"),
        (2e9, "heavy"),
    ],
)
def test_a_perplexity_is_judged_by_its_factor(perplexity: float, kind: str) -> None:
    found = severity(run(metrics__pruned__perplexity=perplexity))
    assert found is not None
    assert found.kind == kind
    assert "1.1 times" in found.rule
    assert "1.5 times" in found.rule


def on_task(value: float, low: float | None, high: float | None, **changes: Any) -> ReportedRun:
    made = tuned(0.85 + value, 0.85)
    for name in ("dense_tuned", "pruned"):
        made.record["metrics"][name]["task"].update(changes)
    made.record["comparison"] = {"dense_tuned": {"difference": value, "low": low, "high": high}}
    return made


@pytest.mark.parametrize(
    ("difference", "kind"),
    [
        ((-0.05, -0.12, 0.02), "unknown"),
        ((0.0, 0.0, 0.0), "unknown"),
        ((-0.05, None, None), "unknown"),
        ((0.05, 0.01, 0.09), "none"),
        ((-0.02, -0.03, -0.01), "small"),
        ((-0.05, -0.09, -0.01), "clear"),
        ((-0.2, -0.3, -0.1), "heavy"),
    ],
)
def test_a_task_is_judged_by_the_difference_and_its_interval(
    difference: tuple[float, float | None, float | None], kind: str
) -> None:
    found = severity(on_task(*difference))
    assert found is not None
    assert found.kind == kind
    assert "2 points" in found.rule


def test_a_perplexity_on_a_task_is_judged_by_its_factor() -> None:
    found = severity(on_task(0.1, 0.05, 0.15, greater_is_better=False, metric="perplexity"))  # 0.95 : 0.85
    assert found is not None
    assert found.kind == "clear"
    assert "1.5 times" in found.rule


def test_a_dense_model_that_was_not_fine_tuned_tells_nothing() -> None:
    made = tuned(0.8, 0.85)
    del made.record["metrics"]["dense_tuned"]
    found = severity(made)
    assert found is not None
    assert "--tune-dense" in found.rule
    assert severity(tuned(0.8, 0.85)) is None  # an old record, without differences


def test_word_and_bounds_are_on_the_page() -> None:
    page = report_page([run(metrics__pruned__perplexity=192.2)])
    assert '<p class="verdict heavy"><strong>Heavy loss.</strong> ' in page
    assert "up to 1.5 times clear, above that heavy" in page
    assert (
        "Pruned and fine-tuned it is 20.0 points worse than the dense model, fine-tuned alike on the same 300 items"
        in report_page([on_task(-0.2, -0.3, -0.1)])
    )
    assert '<p class="verdict">' in report_page([run(metrics={})])
    assert "Heavy loss." in report_page([run("a", metrics__pruned__perplexity=192.2), run("b")])
