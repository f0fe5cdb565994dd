"""What people see in the terminal: progress on standard error, results on standard output."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich import box
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from secateur.progress import duration
from secateur.report.budget import budget_table
from secateur.report.comparison import (
    IN_DOUBT,
    MISSING,
    cached_generation_in_words,
    compared,
    difference_in_words,
    doubt_of_speed,
    format_count,
    format_number,
    recovered_in_words,
)

__all__ = [
    "RichProgress",
    "comparison_table",
    "generations_table",
    "message_console",
    "results_console",
    "score_bars",
    "show_pruned",
    "show_tuned",
    "task_table",
]


def results_console() -> Console:
    """Standard output; when piped no colour, nor blanks at ends of lines. Texts are shown as they are: no markup, no emojis."""
    file: Any = sys.stdout if sys.stdout.isatty() else _WithoutTrailingBlanks(sys.stdout)
    return Console(file=file, markup=False, emoji=False, highlight=False)


class _WithoutTrailingBlanks:
    """A text file to which tables are written without what only fills their last column."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(re.sub(r" +(?=\n)", "", text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def message_console() -> Console:
    """Standard error, in the same manner."""
    return Console(file=sys.stderr, markup=False, emoji=False, highlight=False)


class RichProgress:
    """`secateur.progress.Progress` on standard error.

    In a terminal: what is being done, a bar, how much of how much, time gone and time left. A step within a step
    shows its bar while it lasts. Elsewhere: a line when a step starts and one when it ends; if it is long, how much time
    is left after ten seconds, and again each time when four times as much has gone.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        """Set up.

        Args:
            quiet: show nothing at all.
            console: where to, instead of standard error.
        """
        self._console = console or message_console()
        self._quiet = quiet
        self._bars: Bars | None = None  # while a step is open in a terminal

    @contextmanager
    def track(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Open a step of `total` units; the value is called with the number of units just done."""
        if self._quiet:
            yield _ignore
        elif not self._console.is_terminal:
            with self._lines(description):
                yield _Ahead(description, total, self._say)
        elif self._bars is not None:
            bars, task = self._bars, self._bars.add_task(description, total=total)
            try:
                yield lambda done: bars.advance(task, done)
            finally:
                bars.remove_task(task)
        else:
            with self._opened() as bars:
                task = bars.add_task(description, total=total)
                yield lambda done: bars.advance(task, done)

    def note(self, message: str) -> None:
        """Say one line about what was found."""
        if not self._quiet:
            self._say(message)

    def _say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)

    @contextmanager
    def _lines(self, description: str) -> Iterator[None]:
        self._say(f"{description} …")
        start, outcome = time.monotonic(), "stopped"
        try:
            yield
            outcome = "done"
        finally:
            self._say(f"{description}: {outcome} after {time.monotonic() - start:.1f} s")

    @contextmanager
    def _opened(self) -> Iterator[Bars]:
        """The display, for as long as the outermost step lasts; its last state stays on the screen."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left", style="dim"),
            TimeRemainingColumn(),
        )
        # Results on standard output must not be drawn into standard error's display.
        # The time left is judged by the last ten minutes: a unit may take longer than rich's thirty seconds.
        self._bars = Bars(*columns, console=self._console, redirect_stdout=False, speed_estimate_period=600)
        try:
            with self._bars as bars:
                yield bars
        finally:
            self._bars = None


def _ignore(done: int) -> None:
    """Nobody counts."""


class _Ahead:
    """Says how much time is left of a step, where no bar shows it; nothing where that is little.

    The speed is that since the first units were told of: before them the step was set up, or others had done them already.
    It is believed from a hundredth of all on.
    """

    def __init__(self, description: str, total: int, say: Callable[[str], None]) -> None:
        self._description, self._total, self._say = description, total, say
        self._start = time.monotonic()
        self._next = _FIRST_SAID
        self._done = 0
        self._first: tuple[float, int] | None = None  # when, and how many units

    def __call__(self, done: int) -> None:
        self._done += done
        gone = time.monotonic() - self._start
        if self._first is None and done:
            self._first = gone, self._done
        if gone < self._next or self._first is None:
            return
        since, before = self._first if self._done > self._first[1] else (0.0, 0)
        measured = self._done - before
        left = (gone - since) / measured * (self._total - self._done)
        if measured < _KNOWN * self._total or left < _LITTLE:
            return
        self._next = _SAID_AGAIN * gone
        self._say(
            f"{self._description}: {self._done:,} of {self._total:,} after {duration(gone)}, about {duration(left)} left"
        )


_FIRST_SAID, _SAID_AGAIN = 10.0, 4.0  # seconds, and times the seconds when it was said before
_KNOWN, _LITTLE = 0.01, 5.0  # of all units, and seconds


def score_bars(scores: Sequence[float], dropped: Collection[int] = (), width: int = 40) -> Group:
    """One row a layer: its index, its score as a bar and as a number, and whether it is kept.

    A bar starts at the lowest score, so that negative scores and small differences show; a layer that scores far
    above the others (often the first) is cut off and marked `»`. What has no finite score has no bar.

    Args:
        scores: one a layer; larger means keep.
        dropped: the layers that go.
        width: characters of the longest bar.
    """
    low, high = _scale([score for score in scores if math.isfinite(score)])
    table = Table(box=None, pad_edge=False)
    table.add_column("layer", justify="right")
    table.add_column("", width=width)
    table.add_column("score", justify="right")
    table.add_column("")
    for layer, score in enumerate(scores):
        goes = layer in dropped
        style = "red" if goes else "green"
        mark = "»" if math.isfinite(score) and score > high else ""
        table.add_row(
            str(layer),
            _bar(score, low, high, width=width, style=style),
            mark + _score(score),
            Text("dropped" if goes else "kept", style=style),
        )
    return Group(table, _caption(scores, low, high))


def _scale(finite: list[float]) -> tuple[float, float]:
    """The scores at which bars begin and end: the lowest, and the highest that is not far off."""
    if not finite:
        return 0.0, 0.0
    low, high, middle = min(finite), max(finite), sorted(finite)[len(finite) // 2]
    return low, min(high, low + 5 * (middle - low)) if middle > low else high


def _caption(scores: Sequence[float], low: float, high: float) -> Text:
    beyond = "; » goes beyond" if any(high < score < math.inf for score in scores) else ""
    return Text(f"bars from {_score(low)} to {_score(high)}{beyond}; a larger score means keep")


def _bar(score: float, low: float, high: float, *, width: int, style: str) -> ProgressBar | str:
    if not math.isfinite(score):
        return ""
    share = min((score - low) / (high - low), 1.0) if high > low else 1.0
    return ProgressBar(
        total=1.0, completed=share, width=width, style="black", complete_style=style, finished_style=style
    )


def _score(score: float) -> str:
    return MISSING if math.isnan(score) else f"{score:.4g}"


def comparison_table(metrics: Mapping[str, Mapping[str, Any]]) -> Table:
    """Dense against pruned: layers, parameters, perplexity, size on disk, speeds, and how each changed.

    Args:
        metrics: the record's `metrics`; a row that neither model has is left out.
    """
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("metric")
    for name in ("dense", "pruned", "change"):
        table.add_column(name, justify="right")
    for row in compared(metrics):
        table.add_row(row.metric, row.dense, row.pruned, row.change)
    return table


def generations_table(prompts: Sequence[str], dense: Sequence[str], pruned: Sequence[str]) -> Table:
    """What both models write after the same prompts, side by side.

    Args:
        prompts: the prompts.
        dense: the dense model's continuations, one a prompt.
        pruned: the pruned model's.
    """
    table = Table(box=box.SIMPLE_HEAD, show_lines=True, expand=True)
    for name, ratio in (("prompt", 2), ("dense", 3), ("pruned", 3)):
        table.add_column(name, ratio=ratio, overflow="fold")
    for texts in zip(prompts, dense, pruned, strict=True):
        table.add_row(*(Text(_printable(text)) for text in texts))
    return table


def _printable(text: str) -> str:
    """`text` without blank lines, and without what could steer a terminal: a model may write anything."""
    lines = ("".join(mark if mark.isprintable() else " " for mark in line).rstrip() for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def show_pruned(record: dict[str, Any], path: str, console: Any) -> None:
    """Print what `prune` and `demo` end with: scores, texts, dense against pruned, the proof, where it is.

    Args:
        record: the run's record.
        path: where the checkpoint is.
        console: a rich console.
    """
    if record["scores"] is not None:
        console.print(score_bars(record["scores"], record["dropped"]))
    if record.get("budget"):
        console.print(budget_table(record["budget"]))
    if record["generations"]:
        console.print(generations_table(**record["generations"]))
    console.print(comparison_table(record["metrics"]))
    _say_doubt(record["metrics"], console)
    before = (record["preparation"] or {}).get("perplexity_before_cut")
    if before is not None:
        after = record["metrics"].get("cut", record["metrics"]["pruned"])["perplexity"]
        console.print(f"perplexity just before the cut {before:.2f}, just after it {after:.2f}")
    recovered = recovered_in_words(record)
    if recovered is not None:
        console.print(recovered, soft_wrap=True)
    _say_proof(record["proof"], "with the layers bypassed" if recovered is None else "that was recovered", console)
    _say_where(path, console)


def _say_doubt(metrics: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    doubt = doubt_of_speed(metrics)
    if doubt is not None:
        console.print(doubt, soft_wrap=True)


def _say_proof(proof: Mapping[str, Any], held_to: str, console: Console) -> None:
    console.print(
        f"proven: loaded again from disk, its logits on {proof['tokens']} tokens are within {proof['max_difference']:.2g} "
        f"of those\nof the model {held_to}, and {cached_generation_in_words(proof)}",
        soft_wrap=True,
    )


def _say_where(path: str, console: Console) -> None:
    console.print(f"the pruned model is in {path}, its report is {path}/secateur/report.html", soft_wrap=True)


def show_tuned(record: dict[str, Any], path: str, console: Any) -> None:
    """Print what `tune` ends with: scores, the task's figures of dense and pruned, the proof, where it is.

    Args:
        record: the run's record.
        path: where the checkpoint is.
        console: a rich console.
    """
    if record["scores"] is not None:
        console.print(score_bars(record["scores"], record["dropped"]))
    console.print(task_table(record["metrics"]))
    _say_doubt(record["metrics"], console)
    for name, words in (("dense_tuned", "the dense model, fine-tuned alike"), ("dense", "the dense model")):
        if name in record["comparison"]:
            console.print(difference_in_words(record["metrics"], record["comparison"][name], words), soft_wrap=True)
            break
    _say_proof(record["proof"], "that was trained", console)
    if record["adapter"]:
        console.print(f"the pruned model is in {path}, its adapter in {path}/adapter", soft_wrap=True)
    else:
        _say_where(path, console)


def task_table(metrics: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a model: layers, parameters, its figure on the task with the 95 % interval, and on how many items it stands.

    Args:
        metrics: the record's `metrics` of a fine-tuning: `dense`, `dense_tuned` if there is one, `pruned`.
    """
    figure = metrics["pruned"]["task"]["metric"].replace("_", " ")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("model", min_width=len("fine-tuned"))
    for name in ("layers", "parameters", figure, "95 % interval", "items", "prefill tokens/s"):
        table.add_column(name, justify="right", min_width=max(map(len, name.split())))  # words stay whole
    doubted = "" if doubt_of_speed(metrics) is None else IN_DOUBT
    names = {"dense": "dense, as it came", "dense_tuned": "dense, fine-tuned", "pruned": "pruned, fine-tuned"}
    for key, name in names.items():
        if key not in metrics:
            continue
        row, task = metrics[key], metrics[key]["task"]
        speed = row.get("prefill_tokens_per_second")
        table.add_row(
            name,
            str(row["num_layers"]),
            format_count(row["num_parameters"]),
            f"{task['value']:.3f}" if task["value"] < 10 else format_number(task["value"]),
            _interval(*task["interval"]),
            f"{task['num_items']:,}",
            MISSING if speed is None else format_number(speed) + (doubted if key == "pruned" else ""),
        )
    return table


def _interval(low: float, high: float) -> str:
    if math.isnan(low):
        return MISSING
    return f"{low:.3f} to {high:.3f}" if high < 10 else f"{format_number(low)} to {format_number(high)}"
