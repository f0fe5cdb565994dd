"""Dense against pruned, as rows of words: the same in the terminal and on the model card."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "IN_DOUBT",
    "MISSING",
    "ComparedRow",
    "SpeedUp",
    "change_in_words",
    "compared",
    "difference_in_words",
    "doubt_of_speed",
    "format_bytes",
    "format_count",
    "format_number",
    "layer_ranges",
    "measured_in_words",
    "recovered_in_words",
    "speed_ups",
]

MISSING = "–"
"""Stands for a value that was not measured."""

IN_DOUBT = " (in doubt)"
"""Stands behind every speed of a run whose speeds are in doubt."""


_PLAUSIBLE = 1.1  # times what the smaller model explains
_STEADY = 1.25  # the fastest turn against the slowest
_AGAIN = "Other programs ran meanwhile, it seems; secateur bench measures it again."


@dataclass(frozen=True)
class ComparedRow:
    """One metric of both models, as text."""

    metric: str
    dense: str
    pruned: str
    change: str


def compared(metrics: Mapping[str, Mapping[str, Any]]) -> list[ComparedRow]:
    """The rows of the comparison.

    Args:
        metrics: the record's `metrics`: `dense` and `pruned`, each with any of `num_layers`, `num_parameters`,
            `perplexity`, `size_bytes`, `prefill_tokens_per_second`, `decode_tokens_per_second`. Each of these that was
            measured of one of the two is a row, and speeds in doubt are marked; other entries are not shown.
    """
    dense, pruned = metrics.get("dense") or {}, metrics.get("pruned") or {}
    rows = []
    for key, (label, write) in _METRICS.items():
        before, after = _number(dense.get(key)), _number(pruned.get(key))
        if before is None and after is None:
            continue
        change = change_in_words(before, after)
        if key.endswith("_per_second") and change != MISSING and doubt_of_speed(metrics) is not None:
            change += IN_DOUBT
        said = ["not measured" if value is None else write(value) for value in (before, after)]
        rows.append(ComparedRow(metric=label, dense=said[0], pruned=said[1], change=change))
    return rows


@dataclass(frozen=True, kw_only=True)
class SpeedUp:
    """How many times the dense model's speed the pruned one has, at one thing that it does."""

    way: str
    dense: float
    pruned: float
    turns: tuple[float, ...] = ()
    """The ratio of each turn, in which both were measured one right after the other; empty in older records."""

    @property
    def ratio(self) -> float:
        """Of the medians over the turns."""
        return self.pruned / self.dense

    def in_words(self) -> str:
        """With the range over the turns, where they are known: `1.50× (1.32 to 1.61)`."""
        spread = f" ({min(self.turns):.2f} to {max(self.turns):.2f})" if self.turns else ""
        return f"{self.ratio:.2f}×{spread}"


def speed_ups(metrics: Mapping[str, Mapping[str, Any]]) -> list[SpeedUp]:
    """Reading a prompt and writing, as far as they were measured.

    Args:
        metrics: the record's `metrics`.
    """
    dense, pruned = metrics.get("dense") or {}, metrics.get("pruned") or {}
    found = []
    for key, way in (("prefill_tokens_per_second", "reading a prompt"), ("decode_tokens_per_second", "writing")):
        if dense.get(key) and pruned.get(key):
            pairs = zip(dense.get(f"{key}_by_turn") or (), pruned.get(f"{key}_by_turn") or (), strict=False)
            turns = tuple(fast / slow for slow, fast in pairs)
            found.append(SpeedUp(way=way, dense=dense[key], pruned=pruned[key], turns=turns))
    return found


def doubt_of_speed(metrics: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A sentence where the speeds say more of the machine's other programs than of the models; None if all are plausible.

    Time follows the parameters where reading them takes it, and the layers where starting each does: the larger of the two
    ratios is taken. In doubt is what is beyond that by more than a tenth, what is slower though smaller, and what differs from
    turn to turn by more than a quarter.

    Args:
        metrics: the record's `metrics`.
    """
    dense, pruned = metrics.get("dense") or {}, metrics.get("pruned") or {}
    smaller = [
        (dense[name] / pruned[name], words)
        for name, words in (("num_parameters", "by its parameters"), ("num_layers", "by its layers"))
        if dense.get(name) and pruned.get(name)
    ]
    (explained, by), found = max(smaller, default=(math.inf, "")), speed_ups(metrics)
    fastest = max((each.ratio for each in found), default=0.0)
    if fastest > _PLAUSIBLE * explained:
        said = f"{fastest:.2f} times as fast was measured, where the smaller model explains {explained:.2f} times {by}"
    elif slow := [each for each in found if smaller and each.ratio < 1 < explained]:
        said = f"{slow[0].way}, the smaller model was measured at {slow[0].ratio:.2f} times the speed"
    elif unsteady := [each for each in found if each.turns and max(each.turns) > _STEADY * min(each.turns)]:
        least, most = min(unsteady[0].turns), max(unsteady[0].turns)
        said = f"{unsteady[0].way} was {least:.2f} to {most:.2f} times as fast, from one turn to the next"
    else:
        return None
    return f"The speed is in doubt: {said}. {_AGAIN}"


def measured_in_words(record: Mapping[str, Any]) -> str:
    """What a perplexity stands on, behind the name of the text; empty if the record does not say.

    Args:
        record: the run's record.
    """
    pruned, text = (record.get("metrics") or {}).get("pruned") or {}, record.get("eval_data") or {}
    window, windows = pruned.get("window"), text.get("sequences")
    if not (window and windows):
        return ""
    return (
        f", {windows:,} windows of {window:,} tokens that nothing was chosen or trained on{_errors(record['metrics'])}"
    )


def _errors(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The standard errors of the perplexities; those of their difference, on the same windows, are not in a record."""
    models = ((name, metrics.get(name) or {}) for name in ("dense", "pruned"))
    known = [(name, each["perplexity"] * each["nll_stderr"]) for name, each in models if each.get("nll_stderr")]
    if not known:
        return ""
    said = ", ".join(f"{name} ± {format_number(error)}" for name, error in known)
    return (
        f"; one standard error: {said}, of each alone (the windows are the same, so their difference is usually surer)"
    )


def cached_generation_in_words(proof: Mapping[str, Any]) -> str:
    """What a run's proof says of generation with the cache."""
    of_dense = proof.get("dense_cache_gap")
    if of_dense is None:
        return "cached generation agrees with uncached"
    gap = f"{proof['max_cache_gap']:.2g}"
    return f"cached generation differs from uncached by {gap} in a logit, as in the dense model, by {of_dense:.2g}"


def recovered_in_words(record: Mapping[str, Any]) -> str | None:
    """What a recovery was and what it changed, in one line; None if there was none.

    Args:
        record: the run's record.
    """
    recovery, metrics = record.get("recovery"), record.get("metrics") or {}
    if not recovery:
        return None
    before, after = (format_number(metrics[name]["perplexity"]) for name in ("cut", "pruned"))
    return f"recovered ({recovery['kind']}) on {recovery['tokens']:,} tokens: perplexity {before} → {after}"


def difference_in_words(metrics: Mapping[str, Mapping[str, Any]], difference: Mapping[str, float], than: str) -> str:
    """The pruned model against another on the same items, how many they are, and the 95 % interval of the difference."""
    task = metrics["pruned"]["task"]
    items = f"{task['num_items']:,} item" + ("s" if task["num_items"] > 1 else "")
    scale, unit = (100, " points") if task["metric"] != "perplexity" else (1, "")
    size, low, high = (scale * difference[name] for name in ("difference", "low", "high"))
    if size:
        better = "better" if (size > 0) == task["greater_is_better"] else "worse"
        said = f"{_signed(abs(size))[1:]}{unit} {better} than"
    else:
        said = "the same as"
    verdict = ", more than chance explains" if low > 0 or high < 0 else ", which may be chance" if size else ""
    interval = f"95 %: {_signed(low)} to {_signed(high)}"
    return f"pruned and fine-tuned it is {said} {than} on the same {items} ({interval}){verdict}"


def _signed(value: float) -> str:
    """A difference with a decimal, or a figure where that would be none."""
    if math.isnan(value):
        return MISSING
    return f"{value:+.1g}" if 0 < abs(value) < 0.05 else f"{value:+.1f}"


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        return None
    return value


def change_in_words(before: float | None, after: float | None) -> str:
    """A signed percentage; beyond three times as much, the factor."""
    if before is None or after is None or not before or not math.isfinite(before) or not math.isfinite(after):
        return MISSING
    ratio = after / before
    if ratio >= 3:
        return f"×{ratio:.1f}" if ratio < 100 else f"×{format_number(ratio)}".removesuffix(".0")
    return "0 %" if ratio == 1 else f"{100 * (ratio - 1):+.1f} %".replace("-", "−")


def format_number(value: float) -> str:
    """A measurement in four figures or so: `21.43`, `1,204`, `3.1e+07`."""
    size = abs(value)
    if size >= 1e6 and math.isfinite(value):
        return f"{value:.1e}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}"


def format_count(value: float) -> str:
    """A large count: `134.5 M`, `7.24 B`, `960`."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= unit:
            return f"{value / unit:.4g} {name}"
    return f"{value:.0f}"


def format_bytes(value: float) -> str:
    """Bytes in decimal units: `538 MB`, `1.08 GB`, `1.62 TB`."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.0f} B"


def layer_ranges(layers: Sequence[int]) -> str:
    """`[3, 4, 5, 9]` as `3–5, 9`."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs) or "none"


def _whole(value: float) -> str:
    return f"{value:.0f}"


_METRICS: dict[str, tuple[str, Callable[[float], str]]] = {
    "num_layers": ("layers", _whole),
    "num_parameters": ("parameters", format_count),
    "perplexity": ("perplexity", format_number),
    "size_bytes": ("size on disk", format_bytes),
    "prefill_tokens_per_second": ("prefill tokens/s", format_number),
    "decode_tokens_per_second": ("decode tokens/s", format_number),
}
