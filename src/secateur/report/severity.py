"""How grave a loss is: one of a few words, by bounds that are said beside it."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.report.reported import ReportedRun, ratio

__all__ = ["Severity", "severity"]

_SMALL, _CLEAR = 1.1, 1.5  # times the perplexity
_SMALL_POINTS, _CLEAR_POINTS = 0.02, 0.10  # of a share, such as an accuracy

_BY_FACTOR = (
    f"Up to {_SMALL:g} times the dense model's perplexity a loss is called small, up to {_CLEAR:g} times clear, above that "
    "heavy"
)
_BY_POINTS = (
    f"Up to {100 * _SMALL_POINTS:g} points less than the dense model a loss is called small, up to {100 * _CLEAR_POINTS:g} "
    "clear, above that heavy; where the 95 % interval of the difference has 0 in it, nothing is shown"
)
_RULE = "{}. These bounds are a rule of thumb: what matters is your own task."


@dataclass(frozen=True, kw_only=True)
class Severity:
    """The word for a loss."""

    kind: str
    """`none`, `small`, `clear`, `heavy` or `unknown`."""

    label: str
    rule: str
    """The bounds, in a sentence."""


_LABELS = {
    "none": "No loss measured",
    "small": "Small loss",
    "clear": "Clear loss",
    "heavy": "Heavy loss",
    "unknown": "No difference shown",
}


_NOT_MEASURED = Severity(
    kind="unknown",
    label="What pruning cost was not measured",
    rule="The pruned model was fine-tuned and the dense model was not: secateur tune --tune-dense fine-tunes both alike.",
)


def severity(run: ReportedRun) -> Severity | None:
    """How grave the loss is; None where it was not measured against the dense model.

    Args:
        run: the run.
    """
    if "task" in run.pruned:
        return _on_task(run)
    change = ratio(run.dense, run.pruned, "perplexity")
    return None if change is None else _of_factor(change)


def _of_factor(change: float) -> Severity:
    kind = "none" if change <= 1 else "small" if change <= _SMALL else "clear" if change <= _CLEAR else "heavy"
    return Severity(kind=kind, label=_LABELS[kind], rule=_RULE.format(_BY_FACTOR))


def _on_task(run: ReportedRun) -> Severity | None:
    quality, dense = run.quality, run.dense_quality
    if "dense_tuned" not in run.record["metrics"]:
        return _NOT_MEASURED
    difference = (run.record.get("comparison") or {}).get("dense_tuned")
    if not difference or quality is None or dense is None:
        return None
    bounds = (difference.get("low"), difference.get("high"))
    if None in bounds or bounds[0] <= 0 <= bounds[1]:
        kind = "unknown"
    elif (difference["difference"] > 0) == quality.greater_is_better:
        kind = "none"
    elif not quality.greater_is_better:
        return _of_factor(quality.value / dense.value)
    else:
        points = abs(difference["difference"])
        kind = "small" if points <= _SMALL_POINTS else "clear" if points <= _CLEAR_POINTS else "heavy"
    rule = _BY_POINTS if quality.greater_is_better else _BY_FACTOR
    return Severity(kind=kind, label=_LABELS[kind], rule=_RULE.format(rule))
