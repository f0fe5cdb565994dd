"""How ELDeR came to its choice, for the page: the weights as they were learned, and the losses that decided among the lowest."""

from __future__ import annotations

from typing import Any

from secateur.report.charts import heat_map
from secateur.report.html import Html, el, joined, table
from secateur.report.reported import ReportedRun

__all__ = ["learned_scores", "weights_learned"]


def learned_scores(run: ReportedRun) -> tuple[list[float | None], bool]:
    """The scores to show, and whether they are weights that only nominated, and the calibration loss decided.

    A plan may then give the layers that went the score 0; their weights as they were learned stand in its place.
    """
    scores, rows = run.record["scores"], _about(run).get("weights_by_round")
    shortlist = ((run.record.get("method") or {}).get("options") or {}).get("shortlist", 1)
    if not rows or shortlist == 1:
        return scores, False
    went = [layer for layer in run.record["dropped"] if scores[layer] == 0]
    return [rows[-1][layer] if layer in went else score for layer, score in enumerate(scores)], True


def weights_learned(run: ReportedRun) -> Html:
    """The weights of the layers as they were learned, and what decided where the weights only nominated."""
    rows, steps = _about(run)["weights_by_round"], _about(run).get("weight_steps")
    said = "The weight of each layer as it was learned: a row a step; the stronger, the larger."
    chart = heat_map(
        rows, title="Weights of the layers", x_title="layer", y_title="step" if steps else "row", numbers=steps,
        most=max(1.0, *(max(row) for row in rows)), marked=run.record["dropped"],
    )  # fmt: skip
    return joined(el("p", said), chart, _shortlist(run))


def _shortlist(run: ReportedRun) -> Html:
    tried = _about(run).get("shortlist_losses")
    if not tried:
        return Html("")
    said = (
        "The weights only nominate: of the layers with the smallest ones that goes without which the loss on the calibration "
        "text is least, one after the other."
    )
    order, rows = run.plan.get("order") or [], []
    for place, (layer, losses) in enumerate(zip(order, tried, strict=False), start=1):
        others = sorted((loss, int(name)) for name, loss in losses.items() if int(name) != layer and loss is not None)
        next_best = [f"layer {others[0][1]}", f"{others[0][0]:.4f}"] if others else ["–", "–"]
        rows.append([place, f"layer {layer}", _loss(losses.get(str(layer))), *next_best, len(losses)])
    head = ["place", "went", "loss without it", "next best", "loss without that", "were tried"]
    return joined(el("p", said), table(head, rows, caption="What decided: the calibration loss, in nats"))


def _loss(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.4f}"


def _about(run: ReportedRun) -> dict[str, Any]:
    about: dict[str, Any] = run.plan.get("provenance") or {}
    return about
