"""What the page says of several runs: a table of all, what quality costs, and each one's verdict and layers."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from secateur.report.charts import Point, scatter
from secateur.report.comparability import MeasuredAlike, measured_alike
from secateur.report.comparison import IN_DOUBT, MISSING, doubt_of_speed, format_count
from secateur.report.html import Html, el, joined, table
from secateur.report.reported import Quality, ReportedRun, ratio
from secateur.report.sections import judged, layers_of

__all__ = ["side_by_side"]


def side_by_side(runs: Sequence[ReportedRun]) -> list[Html]:
    """The sections of the page, one after the other."""
    alike = measured_alike(runs)
    found = {run.quality.metric for run in runs if run.quality is not None}
    metric = found.pop() if len(found) == 1 else "quality"
    head = ["run", "method", "layers dropped", "parameters", metric, "writing, times as fast"]
    head += ["comparable"] if alike.why_not else []
    rows = [_row(run, metric, alike) for run in runs]
    return [
        el("section", el("h1", f"{len(runs)} runs"), table(head, rows, caption=_caption(runs))),
        el("section", el("h2", "What quality costs"), _pareto(alike)),
        *(
            el("section", el("h2", run.name), judged(run), layers_of(run), _again(run))
            for run in runs
        ),
    ]  # fmt: skip


def _caption(runs: Sequence[ReportedRun]) -> str:
    sure = any(run.quality is not None and run.quality.low is not None and not run.quality.on_items for run in runs)
    return "All runs" + ("; ± is one standard error over the windows, of each model alone" if sure else "")


def _row(run: ReportedRun, metric: str, alike: MeasuredAlike) -> list[object]:
    """A run's figures; its quality with the metric's name where that is another one than the column's."""
    speed, quality = ratio(run.dense, run.pruned, "decode_tokens_per_second"), run.quality
    said = MISSING if quality is None else quality.with_interval()
    if quality is not None and quality.metric != metric:
        said += f" ({quality.metric})"
    size = run.pruned.get("num_parameters")
    reason, doubted = alike.reason(run), IN_DOUBT if doubt_of_speed(run.record["metrics"]) else ""
    return [
        run.name, run.record["method"]["name"], len(run.record["dropped"]), MISSING if size is None else format_count(size),
        said, MISSING if speed is None else f"{speed:.2f}×{doubted}",
        *([f"no: {reason}" if reason else "yes"] if alike.why_not else []),
    ]  # fmt: skip


def _pareto(alike: MeasuredAlike) -> Html:
    """Quality against parameters, of what can be held against each other; on the front is what no other betters in both."""
    places = [
        (run.name, float(run.pruned["num_parameters"]), run.quality) for run in alike.runs if run.quality is not None
    ]
    if not places:
        return el("p", "Their quality was not measured.")
    first, (_, _, quality) = alike.runs[0], places[0]
    metric, sign = quality.metric, 1 if quality.greater_is_better else -1
    dense, size = first.dense_quality, first.dense.get("num_parameters")
    if dense is not None and size:
        name = "dense, fine-tuned alike" if "dense_tuned" in first.record["metrics"] else "dense"
        places.append((name, float(size), dense))
    ranks = [(-size, sign * quality.value) for _, size, quality in places]  # more of either is better
    points = []
    for rank in dict.fromkeys(ranks):
        here = [place for place, its in zip(places, ranks, strict=True) if its == rank]
        names, (_, size, quality) = [name for name, _, _ in here], here[0]
        points.append(
            Point(
                label=names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else ""), x=size, y=quality.value,
                says=f"{', '.join(names)}: {format_count(size)} parameters, {metric} {quality.with_interval()}",
                low=quality.low, high=quality.high,
                on_front=not any(all(map(operator.ge, other, rank)) and other != rank for other in ranks),
            )
        )  # fmt: skip
    better = f"fewer parameters to the left, and {'more' if sign > 0 else 'less'} {metric} is better"
    bars = _bars([quality for _, _, quality in places])
    return joined(
        el("p", f"On the line is what no other betters: {better}.{bars}{_left_out(alike)}"),
        scatter(points, title="Quality and size", x_title="parameters", y_title=metric, write_x=format_count),
    )


def _bars(qualities: Sequence[Quality]) -> str:
    """What the bars through the points are."""
    known = [quality for quality in qualities if quality.low is not None]
    return (
        f" The bars are {'95 % intervals' if known[0].on_items else 'one standard error'}, of each model alone."
        if known
        else ""
    )


def _left_out(alike: MeasuredAlike) -> str:
    """Which runs are not in the plot, and why."""
    named = ", ".join(f"{run.name} ({reason})" for run, reason in alike.why_not)
    return f" Not comparable with these, and so not in the plot: {named}." if named else ""


def _again(run: ReportedRun) -> Html:
    """The command that makes the run again."""
    return el("details", el("summary", "Do it again"), el("pre", el("code", run.record["command"])))
