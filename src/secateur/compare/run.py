"""All cells of a comparison: what is done is skipped, what fails is written down, and tables and plots come of it."""

from __future__ import annotations

import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from secateur.compare.cells import (
    Cell,
    cells_of,
    chosen,
    differing,
    lacks,
    largest_drops,
    measures_of,
    plan_id,
    request_of,
)
from secateur.compare.config import read_comparison, recovery_names_of_file
from secateur.compare.results import STATES, Results, State
from secateur.compare.tables import perplexity_text, write_tables
from secateur.compare.workbench import Workbench, check_tasks
from secateur.disk import full_disk_named, is_full
from secateur.errors import RequestError, SecateurError, WriteError
from secateur.progress import Progress, Silent, duration
from secateur.report.log import Logged, logging_to
from secateur.training.recovery import check_recovery

__all__ = ["Outcome", "compare", "make_tables"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How far a comparison is."""

    folder: Path
    """Where everything lies."""

    states: dict[str, State]
    """Of every cell that was asked for, by id."""

    errors: dict[str, str] = field(default_factory=dict)
    """Why a cell failed, one line each."""

    seconds_left: float | None = None
    """About how long what is left takes, judged by what is done; None if nothing is."""

    def count(self, state: State) -> int:
        """How many cells are so far."""
        return Counter(self.states.values())[state]


def compare(
    config: str | Path,
    out: str | Path,
    *,
    only: str | None = None,
    max_minutes: float | None = None,
    dry_run: bool = False,
    remake: bool = False,
    progress: Progress | None = None,
    command: str = "",
) -> Outcome:
    """Make the cells that are not done, then the tables and plots of all that are.

    Several processes may do so in one folder at the same time. A cell is written in one piece when it is done; a run that was
    stopped, however, goes on where it was, and ends with the files of one that was not, but for their `timings`.

    Args:
        config: the YAML file; see `secateur.compare.config`.
        out: the folder of the results.
        only: a pattern of ids; other cells are left alone.
        max_minutes: no cell is started that would not be done by then, judged by those that are done.
        dry_run: only say which cells there are, and how far.
        remake: make cells anew whose settings have changed, instead of refusing.
        progress: who watches.
        command: the command line, without secrets, for the log in `DIR/run.log`.

    Raises:
        RequestError: if something asked for cannot be; nothing was changed.
        WriteError: if a result cannot be written.
    """
    start, progress = time.monotonic(), Logged(progress or Silent())
    if max_minutes is not None and not max_minutes >= 0:
        raise RequestError(f"--max-minutes must be 0 or more, not {max_minutes:g}")
    comparison = read_comparison(config)
    results = Results(out)
    results.check()
    bench = Workbench(comparison, results, progress)
    for model in comparison.models:
        bench.check_context(model)
    every = cells_of(comparison, {model.title: bench.num_layers(model) for model in comparison.models})
    cells = chosen(every, only)
    check_tasks(sorted({task for cell in cells for task in cell.tasks}), comparison)
    matrix = _Matrix(
        cells=cells,
        requests={cell.id: request_of(cell, comparison, bench.fingerprints(cell.model, cell.seed)) for cell in cells},
        measures={cell.id: measures_of(cell, comparison) for cell in cells},
        most=largest_drops(every),
        results=results,
    )
    _check_recoveries(cells, bench)
    if not remake:
        results.check_made_alike(matrix.requests)
    if dry_run:
        return matrix.outcome()
    go_on = "what is done is kept: make room, and run the same command to go on"
    try:
        with full_disk_named(results.folder, then=go_on):
            results.open()
            results.index(every)
            with logging_to(results.folder / "run.log", command):
                _make_all(bench, matrix, progress, _Limit(start, max_minutes))
            make_tables(out, progress=progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"what is done is kept in {out}; run the same command to go on") from None
    except OSError as error:
        raise WriteError(f"cannot write to {out}: {error.strerror or error}; {go_on}") from error
    return matrix.outcome()


def _check_recoveries(cells: Sequence[Cell], bench: Workbench) -> None:
    """Refuse a recovery that `prune` would refuse: a budget below one window, or fields that the Trainer does not take."""
    for cell in {(cell.model.title, cell.recovery.title): cell for cell in cells}.values():
        data, _ = bench.text(cell.model, cell.seed)
        with recovery_names_of_file():
            check_recovery(cell.recovery.settings, data)


def make_tables(out: str | Path, *, progress: Progress | None = None) -> list[Path]:
    """Write `table.md` and the plots of a comparison from the results that are there; the files that were written.

    Raises:
        RequestError: if there is no comparison at `out`.
    """
    results = Results(out)
    rows = results.rows()
    written = [write_tables(rows, results.folder / "table.md")]
    try:
        from secateur.compare.plots import write_plots
    except ImportError:
        (progress or Silent()).note("no plots were made: they need matplotlib (pip install 'secateur[plots]')")
        return written
    return [*written, *write_plots(rows, results.folder / "plots")]


@dataclass(frozen=True)
class _Limit:
    """When to stop."""

    start: float
    minutes: float | None

    def forbids(self, seconds: float) -> bool:
        """Whether something that takes so long would end too late."""
        if self.minutes is None:
            return False
        gone = time.monotonic() - self.start
        return gone + seconds > 60 * self.minutes or gone >= 60 * self.minutes


@dataclass(frozen=True, kw_only=True)
class _Matrix:
    """The cells that were asked for, and what there is of them."""

    cells: Sequence[Cell]
    requests: Mapping[str, dict[str, Any]]
    measures: Mapping[str, dict[str, Any]]
    most: Mapping[str, int]
    results: Results

    def is_done(self, cell: Cell) -> bool:
        """Whether there is a result, of these settings, with all that is to be measured."""
        made = self.results.result(cell.id)
        if made is None or differing(self.requests[cell.id], made.get("request")):
            return False
        return not lacks(made, self.measures[cell.id])

    def outcome(self, finished: str | None = None) -> Outcome:
        """How far the cells are; `finished` is one that this process still holds, and is done with."""
        states: dict[str, State] = {}
        for cell in self.cells:
            if self.is_done(cell):
                states[cell.id] = "done"
            else:
                state = "failed" if cell.id == finished else self.results.state(cell.id)
                states[cell.id] = "left" if state == "done" else state
        expected = self.expected_seconds()
        times = [expected(cell) for cell in self.cells if states[cell.id] in ("left", "running")]
        known = [seconds for seconds in times if seconds is not None]
        return Outcome(
            folder=self.results.folder,
            states=states,
            errors={name: self.results.failure(name) or "" for name, state in states.items() if state == "failed"},
            seconds_left=sum(known) if known and len(known) == len(times) else None,
        )

    def expected_seconds(self) -> Callable[[Cell], float | None]:
        """How long a cell takes: the mean of those with its method and recovery, else with its recovery, else of all."""
        kinds: dict[tuple[str, ...], list[float]] = {}
        for cell in self.cells:
            made = self.results.result(cell.id)
            if made is not None:
                for key in _kinds(cell):
                    kinds.setdefault(key, []).append(sum(made["timings"]["seconds"].values()))
        return lambda cell: next((mean(kinds[key]) for key in _kinds(cell) if key in kinds), None)


def _kinds(cell: Cell) -> tuple[tuple[str, ...], ...]:
    """What a cell's time is judged by, the nearest first."""
    return (cell.method.title, cell.recovery.title), (cell.recovery.title,), ()


def _make_all(bench: Workbench, matrix: _Matrix, progress: Progress, limit: _Limit) -> None:
    """Each cell that is neither done nor somebody else's, in order, until one would end too late."""
    left = [cell for cell in matrix.cells if not matrix.is_done(cell)]
    with progress.track(f"comparing {len(matrix.cells)} cells", len(matrix.cells)) as advance:
        advance(len(matrix.cells) - len(left))
        for cell in left:
            if limit.forbids(matrix.expected_seconds()(cell) or 0.0):
                progress.note(f"stopped before {cell.id}: it would not be done in time")
                return
            with matrix.results.claim(cell.id) as mine:
                if mine and not matrix.is_done(cell):
                    matrix.results.sweep(cell.id)
                    said = _made(bench, matrix, cell)
                    progress.note(f"{said}; {_so_far(matrix.outcome(finished=cell.id))}")
            advance(1)


def _made(bench: Workbench, matrix: _Matrix, cell: Cell) -> str:
    """Make one cell, or write down why it cannot be made; a line about it."""
    start, request = time.monotonic(), matrix.requests[cell.id]
    try:
        result = bench.make(cell, most=matrix.most[plan_id(cell)])
    except Exception as error:  # whatever it is, the other cells do not depend on it
        if is_full(error):
            raise
        logger.debug("%s failed", cell.id, exc_info=True)
        line = " ".join(str(error).split()) or type(error).__name__
        line = line if isinstance(error, SecateurError) else f"{type(error).__name__}: {line}"
        failure = {"id": cell.id, "request": request, "error": line, "traceback": traceback.format_exc()}
        matrix.results.fail(cell.id, failure)
        return f"{cell.id} failed: {line}"
    about = {"id": cell.id, "request": request, "measures": matrix.measures[cell.id]}
    matrix.results.finish(cell.id, {**about, **result})
    metrics = result["metrics"]
    return (
        f"{cell.id}: perplexity {perplexity_text(metrics['pruned']['perplexity'])} "
        f"(dense {perplexity_text(metrics['dense']['perplexity'])}) in {duration(time.monotonic() - start)}"
    )


def _so_far(outcome: Outcome) -> str:
    counts = {state: outcome.count(state) for state in STATES}
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count or state in ("done", "left"))
    if outcome.seconds_left and counts["left"]:
        said += f", about {duration(outcome.seconds_left)} to go"
    return said
