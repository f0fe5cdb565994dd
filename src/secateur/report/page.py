"""The report: one page that says what was removed, what it cost and what it bought; it needs nothing but itself.

Every section is made from a run's record and its plan, and is left out where they have nothing for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from secateur.errors import DataError
from secateur.report.charts import Bar, Point, bars, format_small, heat_map, lines, scatter
from secateur.report.comparison import compared, format_count, format_number, layer_ranges
from secateur.report.html import Html, el, joined, table

__all__ = ["ReportedRun", "load_run", "report_page"]


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """What a run left: its record and its plan."""

    name: str
    record: Mapping[str, Any]
    plan: Mapping[str, Any]


def load_run(directory: str | Path) -> ReportedRun:
    """The run whose checkpoint is at `directory`.

    Raises:
        DataError: if no record lies there, or it cannot be read.
    """
    about = Path(directory) / "secateur"
    record, plan = (_mapping(about / f"{name}.json") for name in ("record", "plan"))
    return ReportedRun(name=Path(directory).resolve().name, record=record, plan=plan)


def _mapping(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {**found}
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file} cannot be read; give a directory that secateur prune or tune made") from error


def report_page(runs: Sequence[ReportedRun]) -> str:
    """The page of one run, or of several beside each other; HTML that loads nothing.

    Args:
        runs: one or more.
    """
    title = "Pruned: " + ", ".join(run.name for run in runs)
    content = joined(*(_sections(runs[0]) if len(runs) == 1 else _side_by_side(runs)))
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


def _sections(run: ReportedRun) -> list[Html]:
    parts = [
        ("", _heading(run)),
        ("Dense and pruned", _dense_and_pruned(run)),
        ("Which layers", _layers(run)),
        ("How the choice came about", _evolution(run)),
        ("Perplexity on the way", _on_the_way(run)),
        ("Training", _training(run)),
        ("Speed", _speed(run)),
        ("What they write", _texts(run)),
        ("Is it right?", _proof(run)),
        ("Do it again", _again(run)),
    ]
    return [el("section", *([el("h2", name)] if name else []), content) for name, content in parts if content]


# ---- what came of it -------------------------------------------------------------------------------------------------------


def verdict(run: ReportedRun) -> str:
    """What was removed, what it cost and what it bought, in one sentence."""
    record = run.record
    dense, pruned = _models(record)
    removed = (
        f"{len(record['dropped'])} of {record['model']['num_layers']} layers were removed by {record['method']['name']}"
    )
    return f"{removed}: {_cost(record, dense, pruned)}{_bought(dense, pruned)}."


def _cost(record: Mapping[str, Any], dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> str:
    if "task" in pruned:
        other = "dense_tuned" if "dense_tuned" in record["metrics"] else "dense"
        before, after = record["metrics"][other]["task"], pruned["task"]
        against = (
            "the dense model, fine-tuned alike," if other == "dense_tuned" else "the dense model before its fine-tuning"
        )
        name = after["metric"].replace("_", " ")
        return f"its {name} is {_figure(after)}, where {against} has {_figure(before)}"
    before, after = dense.get("perplexity"), pruned.get("perplexity")
    if before is None or after is None:
        return "what it cost was not measured"
    change = 100 * (after / before - 1)
    way = "rose" if change >= 0 else "fell"
    return f"perplexity {way} from {format_number(before)} to {format_number(after)} ({change:+.1f} %)".replace(
        "-", "−"
    )


def _bought(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> str:
    parts = []
    if dense.get("num_parameters") and pruned.get("num_parameters"):
        parts.append(f"{100 * (1 - pruned['num_parameters'] / dense['num_parameters']):.0f} % fewer parameters")
    ratio = _ratio(dense, pruned, "decode_tokens_per_second")
    if ratio is not None:
        parts.append(f"{ratio:.2f}× the speed of writing on this machine")
    return f"; it has {' and '.join(parts)}" if parts else ""


def _heading(run: ReportedRun) -> Html:
    return joined(
        el("h1", run.name),
        el("p", verdict(run), class_="verdict"),
        el("p", "Removed (counted from 0): ", el("strong", layer_ranges(run.record["dropped"])), " of ",
           el("code", Path(str(run.record["model"]["id"])).name), "."),
    )  # fmt: skip


def _dense_and_pruned(run: ReportedRun) -> Html:
    record = run.record
    rows: list[list[object]] = [
        [row.metric, row.dense, row.pruned, row.change]
        for row in compared(record["metrics"])
        if (row.dense, row.pruned) != ("–", "–")
    ]
    found = table(["", "dense", "pruned", "change"], rows, caption="Both models")
    tasks = [
        [
            _TITLES.get(name, name),
            _figure(metrics["task"]),
            _interval(metrics["task"]),
            f"{metrics['task']['num_items']:,}",
        ]
        for name, metrics in record["metrics"].items()
        if "task" in metrics
    ]
    if not tasks:
        return found
    metric = record["metrics"]["pruned"]["task"]["metric"].replace("_", " ")
    return joined(found, table(["model", metric, "95 % interval", "items"], tasks, caption="On the task's test data"))


_TITLES = {
    "dense": "dense",
    "dense_tuned": "dense, fine-tuned alike",
    "cut": "cut, before recovery",
    "pruned": "pruned",
}


# ---- how it came about -----------------------------------------------------------------------------------------------------


def _layers(run: ReportedRun) -> Html:
    scores, dropped, merges = run.record.get("scores"), set(run.record["dropped"]), run.plan.get("merges") or {}
    num_layers = run.record["model"]["num_layers"]
    if scores is None:
        scores = [float(layer not in dropped) for layer in range(num_layers)]
        said = "The layers were given, or the method gives no scores: 1 is kept, 0 is dropped."
    else:
        said = "The larger the score, the more the method wants to keep the layer."
    marks, rows = [], []
    for layer, score in enumerate(scores):
        value = math.nan if score is None else float(score)
        target = merges.get(str(layer))
        state = (
            "kept" if layer not in dropped else "dropped" if target is None else f"dropped, merged into layer {target}"
        )
        kind = "kept" if layer not in dropped else "dropped" if target is None else "dropped merged"
        shown = "none" if math.isnan(value) else format_small(value)
        marks.append(Bar(label=str(layer), value=value, says=f"layer {layer}: score {shown}, {state}", kind=kind))
        rows.append([layer, shown, state])
    key = el("ul", el("li", "kept", class_="key-kept"), el("li", "dropped", class_="key-dropped"),
             *([el("li", "dropped and merged", class_="key-merged")] if merges else []), class_="key")  # fmt: skip
    buttons = el(
        "p",
        el("button", "by layer", type="button", data_order="place", aria_pressed="true"),
        " ",
        el("button", "by score", type="button", data_order="value", aria_pressed="false"),
        class_="controls",
    )
    chart = bars(marks, title="Score of each layer", x_title="layer", y_title="score")
    detail = el("p", "Point at a bar, or walk through them with the arrow keys.", class_="detail", aria_live="polite")
    listed = el("details", el("summary", "As a table"), table(["layer", "score", ""], rows, caption="Scores"))
    return el("div", el("p", said), buttons, chart, key, detail, listed, class_="explore")


def _evolution(run: ReportedRun) -> Html:
    about = run.plan.get("provenance") or {}
    gates, steps = about.get("weights_by_round"), about.get("scores_by_step")
    if gates:
        return joined(
            el("p", "The weight of each layer, a row a step of its learning; the stronger, the larger."),
            heat_map(gates, title="Weights of the layers", x_title="layer", y_title="step"),
        )
    if not steps:
        return Html("")
    stability = about.get("stability")
    said = "" if stability is None else (
        f" Between the scores of the first and of the second half of the steps Kendall's tau is {stability:.2f}"
        + (": low, so that another run may choose others." if stability < 0.5 else ".")
    )  # fmt: skip
    return joined(
        el("p", "The score of each layer, a row a step, each by its own largest; the stronger, the larger." + said),
        heat_map(steps, title="Scores of the layers as the steps went on", x_title="layer", y_title="step"),
    )


def _on_the_way(run: ReportedRun) -> Html:
    metrics, before = run.record["metrics"], (run.record.get("preparation") or {}).get("perplexity_before_cut")
    stages = [("dense", metrics.get("dense", {}).get("perplexity"))]
    stages += [("just before the cut", before)] if before is not None else []
    stages += [("cut", metrics["cut"].get("perplexity"))] if "cut" in metrics else []
    stages += [("pruned", metrics.get("pruned", {}).get("perplexity"))]
    known = [(name, value) for name, value in stages if value is not None]
    if len(known) < 3:
        return Html("")
    marks = [
        Bar(
            label=name, value=value, says=f"{name}: {format_number(value)}", kind="kept" if name == "dense" else "stage"
        )
        for name, value in known
    ]
    return bars(marks, title="Perplexity, stage by stage", x_title="", y_title="perplexity")


def _training(run: ReportedRun) -> Html:
    record, drawn = run.record, []
    preparation = (record.get("preparation") or {}).get("training") or {}
    for name, report in (
        ("Before the cut", preparation),
        ("Recovery after the cut", record.get("recovery") or {}),
        ("Fine-tuning", record.get("training") or {}),
    ):
        points = [
            (each.get("step", place), each["loss"])
            for place, each in enumerate(report.get("losses") or ())
            if "loss" in each
        ]
        if len(points) > 1:
            drawn.append(lines([("loss", points)], title=f"{name}: loss", x_title="step", y_title="loss"))
        scores = [(each["step"], each["score"]) for each in report.get("validation") or ()]
        if len(scores) > 1:
            drawn.append(lines([("score", scores)], title=f"{name}: validation", x_title="step", y_title="score"))
    return joined(*drawn)


def _speed(run: ReportedRun) -> Html:
    dense, pruned = _models(run.record)
    ideal = _ratio(pruned, dense, "num_parameters")
    rows: list[list[object]] = []
    for key, name in (("prefill_tokens_per_second", "reading a prompt"), ("decode_tokens_per_second", "writing")):
        ratio = _ratio(dense, pruned, key)
        if ratio is not None:
            rows.append([name, format_number(dense[key]), format_number(pruned[key]), f"{ratio:.2f}×",
                         "–" if ideal is None else f"{ideal:.2f}×"])  # fmt: skip
    if not rows:
        return Html("")
    note = (
        "The ideal is the ratio of the parameters. One sequence, measured in turn; secateur bench measures more, against "
        "operations and bytes."
    )
    head = ["", "dense, tokens/s", "pruned, tokens/s", "faster by", "ideal"]
    return joined(table(head, rows, caption="Tokens per second on this machine"), el("p", note))


def _texts(run: ReportedRun) -> Html:
    texts = run.record.get("generations")
    if not texts:
        return Html("")
    rows = [
        [prompt, *(el("span", _readable(text)) for text in pair)]
        for prompt, *pair in zip(texts["prompts"], texts["dense"], texts["pruned"], strict=True)
    ]
    return table(["prompt", "dense", "pruned"], rows, caption="Continuations, the likeliest token each time")


def _proof(run: ReportedRun) -> Html:
    proof = run.record.get("proof")
    if not proof:
        return Html("")
    return el(
        "p",
        f"Loaded again from disk, its logits on {proof['tokens']} tokens are within {proof['max_difference']:.2g} of those of "
        f"the model it was made from (rounding explains {proof['tolerance']:.2g}), and {proof['generated_tokens']} tokens "
        "generated with a cache agree with those generated without.",
    )


def _again(run: ReportedRun) -> Html:
    record = run.record
    data = record.get("data") or {}
    texts = [("calibration text", data)] if "spec" in data else list(data.items())
    texts += [("evaluation text", record["eval_data"])] if record.get("eval_data") else []
    rows: list[list[object]] = [["seed", record.get("seed")], ["made", record.get("created")]]
    rows += [[name, f"{text.get('spec')}, fingerprint {text.get('fingerprint')}"] for name, text in texts]
    rows += [["revision of the model", record["model"]["revision"]]] if record["model"].get("revision") else []
    if record.get("peak_memory_bytes"):
        rows.append(["most memory", f"{record['peak_memory_bytes'] / 1e9:.2f} GB"])
    rows += [[name, value] for name, value in (record.get("versions") or {}).items()]
    seconds = [[name, f"{value:.1f}"] for name, value in (record.get("timings") or {}).items()]
    return joined(
        el("pre", el("code", record["command"]), tabindex=0),
        el("details", el("summary", "With what"), table(["", ""], rows, caption="What the run used")),
        el(
            "details", el("summary", "How long each stage took"), table(["stage", "seconds"], seconds, caption="Stages")
        ),
    )


# ---- several runs ----------------------------------------------------------------------------------------------------------


def _side_by_side(runs: Sequence[ReportedRun]) -> list[Html]:
    """A table of all, the Pareto plot, and what each page says first."""
    quality = {run.name: _quality(run.record) for run in runs}
    metric = next((found[0] for found in quality.values() if found), "")
    rows: list[list[object]] = []
    for run in runs:
        dense, pruned = _models(run.record)
        found, speed = quality[run.name], _ratio(dense, pruned, "decode_tokens_per_second")
        rows.append(
            [run.name, run.record["method"]["name"], len(run.record["dropped"]), format_count(pruned["num_parameters"]),
             _said(found, metric), "–" if speed is None else f"{speed:.2f}×"]
        )  # fmt: skip
    head = ["run", "method", "layers dropped", "parameters", metric or "quality", "writing, faster by"]
    parts = [
        el("section", el("h1", f"{len(runs)} runs"), table(head, rows, caption="All runs")),
        el("section", el("h2", "What quality costs"), _pareto(runs, quality, metric)),
    ]
    each = [el("section", el("h2", run.name), el("p", verdict(run), class_="verdict"), _layers(run)) for run in runs]
    return [*parts, *each]


def _said(found: tuple[str, float, bool] | None, metric: str) -> str:
    """A figure, with its name where it is another one than the column's."""
    if found is None:
        return "–"
    figure = _figure({"value": found[1], "greater_is_better": found[2]})
    return figure if found[0] == metric else f"{figure} ({found[0]})"


def _pareto(runs: Sequence[ReportedRun], quality: Mapping[str, tuple[str, float, bool] | None], metric: str) -> Html:
    """Quality against parameters; on the front is what no other run betters in both."""
    places = [
        (run.name, float(_models(run.record)[1]["num_parameters"]), found[1], found[2])
        for run in runs
        if (found := quality[run.name]) is not None and found[0] == metric
    ]
    sign = 1 if places and places[0][3] else -1
    points = [
        Point(
            label=name, x=size, y=value,
            on_front=not any(
                other <= size and sign * better >= sign * value and (other, better) != (size, value)
                for _, other, better, _ in places
            ),
        )
        for name, size, value, _ in places
    ]  # fmt: skip
    more = "more" if sign > 0 else "less"
    note = el(
        "p", f"On the line is what no other run betters: fewer parameters to the left, and {more} {metric} is better."
    )
    return joined(note, scatter(points, title="Quality and size", x_title="parameters", y_title=metric))


def _quality(record: Mapping[str, Any]) -> tuple[str, float, bool] | None:
    """(metric, value, whether more is better) of the pruned model."""
    pruned = _models(record)[1]
    if "task" in pruned:
        return (
            pruned["task"]["metric"].replace("_", " "),
            float(pruned["task"]["value"]),
            bool(pruned["task"]["greater_is_better"]),
        )
    return ("perplexity", float(pruned["perplexity"]), False) if pruned.get("perplexity") is not None else None


# ---- small things ----------------------------------------------------------------------------------------------------------


def _models(record: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    metrics = record["metrics"]
    return metrics.get("dense") or {}, metrics.get("pruned") or {}


def _ratio(under: Mapping[str, Any], over: Mapping[str, Any], key: str) -> float | None:
    return over[key] / under[key] if over.get(key) and under.get(key) else None


def _figure(task: Mapping[str, Any]) -> str:
    return f"{task['value']:.3f}" if task["greater_is_better"] else format_number(task["value"])


def _interval(task: Mapping[str, Any]) -> str:
    return " to ".join(_figure({**task, "value": bound}) for bound in task["interval"])


def _readable(text: str) -> str:
    """Control characters as spaces: HTML has none."""
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
