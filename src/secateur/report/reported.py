"""A run as its page needs it: the record and the plan that it left, and their figures in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.errors import DataError
from secateur.report.comparison import change_in_words, doubt_of_speed, format_number
from secateur.report.weights import changed_in_words

__all__ = ["Quality", "ReportedRun", "load_run", "ratio", "verdict"]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How good a model is: by a task's metric, or by perplexity."""

    metric: str
    value: float
    greater_is_better: bool
    low: float | None = None
    """Of its interval: one standard error below a perplexity, 95 % of a task's figure."""
    high: float | None = None
    on_items: bool = False
    """Whether it is of a task's items."""

    @classmethod
    def on_task(cls, task: Mapping[str, Any]) -> Quality:
        """What was measured on a task's test data."""
        return cls(
            metric=task["metric"].replace("_", " "),
            value=float(task["value"]),
            greater_is_better=bool(task["greater_is_better"]),
            low=task["interval"][0],
            high=task["interval"][1],
            on_items=True,
        )

    @classmethod
    def of_text(cls, metrics: Mapping[str, Any]) -> Quality | None:
        """A perplexity with its standard error; None if it was not measured."""
        if metrics.get("perplexity") is None:
            return None
        value, error = float(metrics["perplexity"]), metrics.get("nll_stderr")
        spread = None if error is None else value * float(error)  # of the logarithm, times the value
        return cls(
            metric="perplexity", value=value, greater_is_better=False,
            low=None if spread is None else value - spread, high=None if spread is None else value + spread,
        )  # fmt: skip

    def write(self, value: float | None = None) -> str:
        """The figure, or another one of the same metric: a share in thousandths."""
        value = self.value if value is None else value
        return f"{value:.3f}" if self.greater_is_better else format_number(value)

    def with_interval(self) -> str:
        """The figure, and how sure it is where that is known: `18.15 ± 1.10` of a text, `0.667 (0.208 to 0.939)` of a task."""
        if self.low is None or self.high is None:
            return self.write()
        if not self.on_items:
            return f"{self.write()} ± {format_number(self.high - self.value)}"
        return f"{self.write()} ({self.write(self.low)} to {self.write(self.high)})"


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """What a run left: its record and its plan."""

    name: str
    record: Mapping[str, Any]
    plan: Mapping[str, Any]

    @property
    def dense(self) -> Mapping[str, Any]:
        """What was measured of the dense model."""
        return self.record["metrics"].get("dense") or {}

    @property
    def pruned(self) -> Mapping[str, Any]:
        """What was measured of the pruned model."""
        return self.record["metrics"].get("pruned") or {}

    @property
    def quality(self) -> Quality | None:
        """How good the pruned model is, if that was measured."""
        if "task" in self.pruned:
            return Quality.on_task(self.pruned["task"])
        return Quality.of_text(self.pruned)

    @property
    def dense_quality(self) -> Quality | None:
        """The same of the dense model: fine-tuned alike, where it was."""
        dense = self.record["metrics"].get("dense_tuned") or self.dense
        return Quality.on_task(dense["task"]) if "task" in dense else Quality.of_text(dense)


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


def ratio(under: Mapping[str, Any], over: Mapping[str, Any], key: str) -> float | None:
    """How many times as large a measurement is in `over`; None if one of them is not there."""
    return over[key] / under[key] if over.get(key) and under.get(key) else None


def verdict(run: ReportedRun) -> str:
    """What was removed, what it cost and what it bought, in one sentence."""
    record = run.record
    removed = (
        f"{len(record['dropped'])} of {record['model']['num_layers']} layers were removed by {record['method']['name']}"
    )
    changed = changed_in_words(record)
    return f"{removed}: {_cost(run)}{f'; {changed}' if changed else ''}{_bought(run)}."


def _cost(run: ReportedRun) -> str:
    quality, metrics = run.quality, run.record["metrics"]
    if quality is not None and "task" in run.pruned:
        other, against = "dense", "the dense model before its fine-tuning"
        if "dense_tuned" in metrics:
            other, against = "dense_tuned", "the dense model, fine-tuned alike,"
        before = Quality.on_task(metrics[other]["task"])
        sure = f" ({_sureness(quality, run.pruned['task'])})"
        return f"its {quality.metric} is {quality.write()}{sure}, where {against} has {before.write()}"
    change = ratio(run.dense, run.pruned, "perplexity")
    if change is None:
        return "what it cost was not measured"
    way = "rose" if change >= 1 else "fell"
    before_and_after = (format_number(model["perplexity"]) for model in (run.dense, run.pruned))
    size = change_in_words(run.dense["perplexity"], run.pruned["perplexity"])
    return f"perplexity {way} from {' to '.join(before_and_after)} ({size})"


def _sureness(quality: Quality, task: Mapping[str, Any]) -> str:
    """The interval of a task's figure, its items, and what chance alone gives."""
    known = quality.low is not None and quality.high is not None
    parts = [f"95 % {quality.write(quality.low)} to {quality.write(quality.high)}"] if known else []
    parts.append(f"{task['num_items']:,} items")
    if task.get("chance") is not None:
        parts.append(f"chance alone {quality.write(task['chance'])}")
    return ", ".join(parts)


def _bought(run: ReportedRun) -> str:
    parts = []
    size, speed = (ratio(run.dense, run.pruned, key) for key in ("num_parameters", "decode_tokens_per_second"))
    if size is not None:
        parts.append(f"{100 * (1 - size):.0f} % fewer parameters")
    if speed is not None and doubt_of_speed(run.record["metrics"]) is None:
        parts.append(f"{speed:.2f}× the speed of writing on this machine")
    return f"; it has {' and '.join(parts)}" if parts else ""
