"""What the page says of several runs: a table of all, what quality costs, and each one's verdict and layers."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from secateur.report.charts import Point, scatter
from secateur.report.comparison import MISSING, format_count
from secateur.report.html import Html, el, joined, table, unbroken
from secateur.report.reported import ReportedRun, ratio, verdict
from secateur.report.sections import layers_of

__all__ = ["side_by_side"]


def side_by_side(runs: Sequence[ReportedRun]) -> list[Html]:
    """The sections of the page, one after the other."""
    metric = next((run.quality.metric for run in runs if run.quality is not None), "")
    head = ["run", "method", "layers dropped", "parameters", metric or "quality", "writing, times as fast"]
    return [
        el("section", el("h1", f"{len(runs)} runs"), table(head, [_row(run, metric) for run in runs], caption="All runs")),
        el("section", el("h2", "What quality costs"), _pareto(runs, metric)),
        *(
            el("section", el("h2", run.name), el("p", unbroken(verdict(run)), class_="verdict"), layers_of(run))
            for run in runs
        ),
    ]  # fmt: skip


def _row(run: ReportedRun, metric: str) -> list[object]:
    """A run's figures; its quality with the metric's name where that is another one than the column's."""
    speed, quality = ratio(run.dense, run.pruned, "decode_tokens_per_second"), run.quality
    said = MISSING if quality is None else quality.write()
    if quality is not None and quality.metric != metric:
        said += f" ({quality.metric})"
    size = run.pruned.get("num_parameters")
    return [
        run.name, run.record["method"]["name"], len(run.record["dropped"]), MISSING if size is None else format_count(size),
        said, MISSING if speed is None else f"{speed:.2f}×",
    ]  # fmt: skip


def _pareto(runs: Sequence[ReportedRun], metric: str) -> Html:
    """Quality against parameters; on the front is what no other run betters in both."""
    places = [
        (run, float(run.pruned["num_parameters"]), run.quality)
        for run in runs
        if run.quality is not None and run.quality.metric == metric and run.pruned.get("num_parameters")
    ]
    if not places:
        return el("p", "Their quality was not measured.")
    sign = 1 if places[0][2].greater_is_better else -1
    ranks = [(-size, sign * quality.value) for _, size, quality in places]  # more of either is better
    points = [
        Point(
            label=run.name, x=size, y=quality.value,
            says=f"{run.name}: {format_count(size)} parameters, {metric} {quality.write()}",
            on_front=not any(all(map(operator.ge, other, rank)) and other != rank for other in ranks),
        )
        for (run, size, quality), rank in zip(places, ranks, strict=True)
    ]  # fmt: skip
    better = f"fewer parameters to the left, and {'more' if sign > 0 else 'less'} {metric} is better"
    others = [run.name for run in runs if all(run is not other for other, _, _ in places)]
    left_out = f" Measured otherwise, and so not in the plot: {', '.join(others)}." if others else ""
    said = f"On the line is what no other run betters: {better}.{left_out}"
    return joined(
        el("p", said),
        scatter(points, title="Quality and size", x_title="parameters", y_title=metric, write_x=format_count),
    )
