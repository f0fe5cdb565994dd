"""Which runs can be held against each other: those of one model, measured on one text in one way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.report.reported import ReportedRun

__all__ = ["MeasuredAlike", "measured_alike"]

_ALIKE = 0.01  # share by which one dense model's figures may differ: from one precision or machine to another


@dataclass(frozen=True, kw_only=True)
class MeasuredAlike:
    """Runs that can be held against each other, and why the others cannot."""

    runs: tuple[ReportedRun, ...]
    why_not: tuple[tuple[ReportedRun, str], ...]

    def reason(self, run: ReportedRun) -> str:
        """Why a run is not among them; empty where it is."""
        return next((why for other, why in self.why_not if other is run), "")


def measured_alike(runs: Sequence[ReportedRun]) -> MeasuredAlike:
    """The largest set of runs that can be held against each other, the first of equally large ones.

    A run's model is known by its configuration and, as others share that, by what was measured of it dense; its text by its
    fingerprint.

    Args:
        runs: the runs.
    """
    sets = [[run for run in runs if not _why_not(run, first)] for first in runs]
    most = max(sets, key=len, default=[])
    others = [run for run in runs if all(run is not each for each in most)]
    return MeasuredAlike(
        runs=tuple(most), why_not=tuple((run, _why_not(run, most[0]) if most else "not measured") for run in others)
    )


def _why_not(run: ReportedRun, other: ReportedRun) -> str:
    """Why a run cannot be held against another; empty where it can."""
    if run.quality is None or other.quality is None or not run.pruned.get("num_parameters"):
        return "not measured"
    if run.quality.metric != other.quality.metric:
        return "another metric"
    kinds = (("another model", _model), ("another text", _text), ("other windows", _window))
    different = next((why for why, of in kinds if of(run) != of(other)), "")
    return different or _dense_differs(run, other)


def _dense_differs(run: ReportedRun, other: ReportedRun) -> str:
    dense, of_other = run.dense_quality, other.dense_quality
    if dense is None or of_other is None or abs(dense.value - of_other.value) <= _ALIKE * abs(of_other.value):
        return ""
    return "other figures of the dense model"


def _model(run: ReportedRun) -> object:
    model = run.record.get("model") or {}
    return model.get("config_sha256"), model.get("num_layers"), model.get("num_parameters")


def _text(run: ReportedRun) -> object:
    if "task" in run.pruned:
        return ((run.record.get("data") or {}).get("test") or {}).get("fingerprint")
    return (run.record.get("eval_data") or {}).get("fingerprint")


def _window(run: ReportedRun) -> object:
    return run.pruned.get("window"), run.pruned.get("stride")
