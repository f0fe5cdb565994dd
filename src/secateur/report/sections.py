"""What the page says of one run, section by section: each is made from the record and the plan, or empty without them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from secateur.places import last_part, shortened
from secateur.report.charts import Bar, bars, format_small, heat_map, lines
from secateur.report.choice import learned_scores, weights_learned
from secateur.report.comparison import (
    IN_DOUBT,
    MISSING,
    cached_generation_in_words,
    compared,
    difference_in_words,
    doubt_of_speed,
    format_number,
    layer_ranges,
    measured_in_words,
    speed_ups,
)
from secateur.report.html import Html, el, joined, table, unbroken
from secateur.report.reported import Quality, ReportedRun, ratio, verdict
from secateur.report.severity import severity
from secateur.report.weights import dense_in_words, weight_changes

__all__ = ["judged", "layers_of", "sections", "what_it_is"]


def sections(run: ReportedRun) -> list[Html]:
    """The sections of the page, one after the other, without those that have nothing to say."""
    parts = [
        ("", _heading(run)),
        ("Dense and pruned", _dense_and_pruned(run)),
        ("Which layers", layers_of(run)),
        ("How the choice came about", _evolution(run)),
        ("What was done to the weights", _weights(run)),
        ("Perplexity on the way", _on_the_way(run)),
        ("Training", _training(run)),
        ("Speed", _speed(run)),
        ("What they write", _texts(run)),
        ("Is it right?", _proof(run)),
        ("Do it again", _again(run)),
    ]
    return [el("section", *([el("h2", name)] if name else []), content) for name, content in parts if content]


# ---- what came of it -------------------------------------------------------------------------------------------------------


def _heading(run: ReportedRun) -> Html:
    return joined(
        el("h1", what_it_is(run)),
        judged(run),
        el("p", "Removed (counted from 0): ", el("strong", layer_ranges(run.record["dropped"])), ". The run's folder is ",
           el("code", run.name), "."),
    )  # fmt: skip


def what_it_is(run: ReportedRun) -> str:
    """The model and what was done to it: `tiny without 2 of 8 layers (shortgpt)`."""
    record = run.record
    done = ["fine-tuned"] if record.get("training") else ["recovered"] if record.get("recovery") else []
    how = ", ".join([str(record["method"]["name"]), *done])
    removed = f"{len(record['dropped'])} of {record['model']['num_layers']} layers"
    return f"{last_part(str(record['model']['id']))} without {removed} ({how})"


def judged(run: ReportedRun) -> Html:
    """The verdict, with a word for how grave the loss is."""
    grave = severity(run)
    if grave is None:
        return el("p", unbroken(verdict(run)), class_="verdict")
    return el("p", el("strong", grave.label, "."), " ", unbroken(verdict(run)), class_=f"verdict {grave.kind}")


def _dense_and_pruned(run: ReportedRun) -> Html:
    rows: list[list[object]] = [
        [row.metric, row.dense, row.pruned, row.change] for row in compared(run.record["metrics"])
    ]
    text, on = (run.record.get("eval_data") or {}).get("spec"), measured_in_words(run.record)
    caption = f"Both models; perplexity on {shortened(str(text))}{on}" if text and on else "Both models"
    return joined(
        table(["measured", "dense", "pruned", "change"], rows, caption=caption), _on_task(run), _judgement(run)
    )


def _judgement(run: ReportedRun) -> Html:
    """What the word for the loss means, and the difference on a task with its interval."""
    found, grave = run.record.get("comparison") or {}, severity(run)
    said = []
    for name, words in (("dense_tuned", "the dense model, fine-tuned alike"), ("dense", "the dense model as it came")):
        if name in found:
            difference = difference_in_words(run.record["metrics"], found[name], words)
            said.append(f"{difference[0].upper()}{difference[1:]}.")
    said += [grave.rule] if grave else []
    return el("p", " ".join(said)) if said else Html("")


def _on_task(run: ReportedRun) -> Html:
    tasks = {name: metrics["task"] for name, metrics in run.record["metrics"].items() if "task" in metrics}
    if not tasks:
        return Html("")
    rows: list[list[object]] = []
    for name, task in tasks.items():
        quality = Quality.on_task(task)
        interval = " to ".join(quality.write(bound) for bound in task["interval"])
        rows.append([_TITLES.get(name, name), quality.write(), interval, f"{task['num_items']:,}"])
    metric = Quality.on_task(tasks["pruned"]).metric
    return table(["model", metric, "95 % interval", "items"], rows, caption="On the task's test data")


_TITLES = {
    "dense": "dense",
    "dense_tuned": "dense, fine-tuned alike",
    "cut": "cut, before recovery",
    "pruned": "pruned",
}


# ---- how it came about -----------------------------------------------------------------------------------------------------


def layers_of(run: ReportedRun) -> Html:
    """The score of each layer and what becomes of it: bars to walk through, and the same as a table."""
    scores, dropped, merges = run.record.get("scores"), set(run.record["dropped"]), run.plan.get("merges") or {}
    if scores is None:
        scores = [float(layer not in dropped) for layer in range(run.record["model"]["num_layers"])]
        said = "The layers were given, or the method gives no scores: 1 is kept, 0 is dropped."
    else:
        said = "The larger the score, the more the method wants to keep the layer."
        scores, learned = learned_scores(run)
        if learned:
            said = (
                "The score is the weight that was learned. The layers with the smallest were nominated; which of them went "
                "the loss on the calibration text decided."
            )
    marks, rows = [], []
    for layer, score in enumerate(scores):
        value = math.nan if score is None else float(score)
        kind, state = "kept", "kept"
        if layer in dropped:
            target = merges.get(str(layer))
            kind = "dropped" if target is None else "dropped merged"
            state = "dropped" if target is None else f"dropped, merged into layer {target}"
        shown = "none" if math.isnan(value) else format_small(value)
        marks.append(
            Bar(label=str(layer), value=value, says=f"layer {layer}: score {shown}, {state}", kind=kind, shown=shown)
        )
        rows.append([layer, shown, state])
    chart = bars(marks, title="Score of each layer", x_title="layer", y_title="score")
    detail = el("p", "Point at a bar, or walk through them with the arrow keys.", class_="detail")
    scored = table(["layer", "score", "what becomes of it"], rows, caption="Scores")
    listed = el("details", el("summary", "As a table"), scored)
    return el(
        "div", el("p", said), _orders(), chart, _key({bar.kind for bar in marks}), detail, listed, class_="explore"
    )


def _orders() -> Html:
    """The buttons that put the bars in an order."""
    return el(
        "p",
        el("button", "by layer", type="button", data_order="place", aria_pressed="true"),
        " ",
        el("button", "by score", type="button", data_order="value", aria_pressed="false"),
        class_="controls",
    )


def _key(kinds: Collection[str]) -> Html:
    """What the bars that are there look like."""
    states = [("kept", "kept"), ("dropped", "dropped"), ("dropped merged", "dropped and merged")]
    shown = [(kind.split()[-1], words) for kind, words in states if kind in kinds]
    return el("ul", *(el("li", words, class_=f"key-{state}") for state, words in shown), class_="key")


def _evolution(run: ReportedRun) -> Html:
    about = run.plan.get("provenance") or {}
    gates, steps = about.get("weights_by_round"), about.get("scores_by_step")
    if about.get("distances"):
        return _blocks(about["distances"], sorted(run.record["dropped"]))
    if gates:
        return weights_learned(run)
    if not steps:
        return Html("")
    stability = about.get("stability")
    said = "" if stability is None else (
        f" Between the scores of the first and of the second half of the steps Kendall's tau is {stability:.2f}"
        + (": low, so that another run may choose others." if stability < 0.5 else ".")
    )  # fmt: skip
    return joined(
        el("p", "The score of each layer, a row a step, each by its own largest; the stronger, the larger." + said),
        heat_map(
            steps,
            title="Scores of the layers as the steps went on",
            x_title="layer",
            y_title="step",
            marked=run.record["dropped"],
        ),
    )


def _blocks(distances: list[list[float | None]], dropped: list[int]) -> Html:
    """The distance across each block of layers, by its first layer and its length, with that of the block that went."""
    rows = [
        [math.nan if distance is None else distance for distance in of_length]
        for of_length in zip(*distances, strict=True)
    ]
    start, length = dropped[0], len(dropped)
    is_block = dropped == list(range(start, start + length))
    said = (
        "How far each block of layers turns what goes through it: the angular distance of what leaves it from what enters it, a "
        "row a length and a column a first layer, each row from its own smallest to its own largest; the fainter, the less."
    )
    if is_block:
        said += f" The block that went, {length} from layer {start} on, has an outline."
    chart = heat_map(
        rows, title="Distance across blocks of layers", x_title="first layer", y_title="length", numbers=range(1, len(rows) + 1),
        from_least=True, outlined=(length - 1, start) if is_block else None,
    )  # fmt: skip
    return joined(el("p", said), chart)


def _weights(run: ReportedRun) -> Html:
    """All that was done to what stays; that it is as it was, where nothing was."""
    rows: list[list[object]] = [[change.what, change.when, change.how] for change in weight_changes(run.record)]
    if not rows:
        return el("p", "Nothing: the layers that stay have the weights that they had.")
    done = table(["what was done", "when", "how"], rows, caption="Changes to the weights that stay, in their order")
    return joined(done, *([el("p", said)] if (said := dense_in_words(run.record)) else []))


def _on_the_way(run: ReportedRun) -> Html:
    metrics, preparation = run.record["metrics"], run.record.get("preparation") or {}
    stages = {
        "dense": run.dense.get("perplexity"),
        "before the cut": preparation.get("perplexity_before_cut"),
        "cut": (metrics.get("cut") or {}).get("perplexity"),
        "pruned": run.pruned.get("perplexity"),
    }
    marks = [
        Bar(label=name, value=value, says=f"{name}: {format_number(value)}", shown=format_number(value),
            kind="dense" if name == "dense" else "stage")
        for name, value in stages.items()
        if value is not None
    ]  # fmt: skip
    if len(marks) < 3:
        return Html("")
    return bars(marks, title="Perplexity, stage by stage", x_title="", y_title="perplexity")


def _training(run: ReportedRun) -> Html:
    record, drawn = run.record, []
    preparation = (record.get("preparation") or {}).get("training") or {}
    for name, report in (
        ("Before the cut", preparation),
        ("Recovery after the cut", record.get("recovery") or {}),
        ("Fine-tuning", record.get("training") or {}),
    ):
        losses = report.get("losses") or ()
        # The first step is 1, as in the Trainer's own log, also where a record counts the steps before.
        from_none = int(any(each.get("step") == 0 for each in losses))
        points = [
            (each.get("step", place) + from_none, each["loss"])
            for place, each in enumerate(losses, start=1 - from_none)
            if "loss" in each
        ]
        if len(points) > 1:
            drawn.append(lines([("loss", points)], title=f"{name}: loss", x_title="step", y_title="loss"))
        scores = [(each["step"], each["score"]) for each in report.get("validation") or ()]
        if len(scores) > 1:
            drawn.append(lines([("score", scores)], title=f"{name}: validation", x_title="step", y_title="score"))
    return joined(*drawn)


def _speed(run: ReportedRun) -> Html:
    ideal, doubt = ratio(run.pruned, run.dense, "num_parameters"), doubt_of_speed(run.record["metrics"])
    doubted = IN_DOUBT if doubt else ""
    rows: list[list[object]] = [
        [each.way, format_number(each.dense), format_number(each.pruned), f"{each.in_words()}{doubted}",
         MISSING if ideal is None else f"{ideal:.2f}×"]
        for each in speed_ups(run.record["metrics"])
    ]  # fmt: skip
    if not rows:
        return Html("")
    note = (
        "Reading a prompt can be beyond the ratio of the parameters, as the head runs for its last token alone; both can, up to "
        "that of the layers, where starting each takes the time. "
        "One sequence; the median of three turns, in each of which both were measured, with their range where it is known; "
        "secateur bench measures more, against operations and bytes."
    )
    head = ["what it does", "dense, tokens/s", "pruned, tokens/s", "times as fast", "ideal by parameters"]
    said = [] if doubt is None else [el("p", el("strong", doubt))]
    return joined(table(head, rows, caption="Tokens per second on this machine"), *said, el("p", note))


def _texts(run: ReportedRun) -> Html:
    texts = run.record.get("generations")
    if not texts:
        return Html("")
    rows = [
        [prompt, *(el("span", _readable(text), data_of=of) for of, text in zip(("dense", "pruned"), pair, strict=True))]
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
        f"the model it was made from (rounding explains {proof['tolerance']:.2g}), and in {proof['generated_tokens']} tokens "
        f"{cached_generation_in_words(proof)}.",
    )


def _amount(text: Mapping[str, Any]) -> str:
    """How much of a text: windows of so many tokens, where it has any."""
    windows, tokens = text.get("sequences"), text.get("tokens")
    return f", {windows:,} windows of {tokens // windows:,} tokens" if windows and tokens else ""


def _again(run: ReportedRun) -> Html:
    record = run.record
    data = record.get("data") or {}
    texts = [("calibration text", data)] if "spec" in data else list(data.items())
    texts += [("evaluation text", record["eval_data"])] if record.get("eval_data") else []
    rows: list[list[object]] = [["seed", record.get("seed")], ["made", record.get("created")]]
    rows += [
        [name, f"{text.get('spec')}{_amount(text)}, fingerprint {text.get('fingerprint')}"] for name, text in texts
    ]
    rows += [["revision of the model", record["model"]["revision"]]] if record["model"].get("revision") else []
    if record.get("peak_memory_bytes"):
        rows.append(["most memory", f"{record['peak_memory_bytes'] / 1e9:.2f} GB"])
    rows += [[name, value] for name, value in (record.get("versions") or {}).items()]
    seconds = [[name, f"{value:.1f}"] for name, value in (record.get("timings") or {}).items()]
    return joined(
        el("pre", el("code", record["command"])),
        _settings_of_a_file(record["command"]),
        el(
            "details",
            el("summary", "With what"),
            table(["what", "which"], rows, caption="What the run used"),
            _options(run),
        ),
        el(
            "details", el("summary", "How long each stage took"), table(["stage", "seconds"], seconds, caption="Stages")
        ),
    )


def _settings_of_a_file(command: str) -> Html:
    """Where the settings are that a command only names a file of."""
    if "--config" not in command:
        return Html("")
    return el("p", "The settings that --config read are in ", el("code", "secateur/request.json"), ", with all others.")


def _options(run: ReportedRun) -> Html:
    """The settings of the method, close together: they are many, and most are defaults."""
    method = run.record.get("method") or {}
    given = [
        el("li", el("code", f"--{method['name']}.{name.replace('_', '-')}"), f" {value}")
        for name, value in (method.get("options") or {}).items()
    ]
    return el("ul", *given, class_="options") if given else Html("")


def _readable(text: str) -> str:
    """Control characters as spaces: HTML has none."""
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
