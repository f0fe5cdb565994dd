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

from secateur.compare.cells import Cell, cells_of, chosen, differing, largest_drops, request_of
from secateur.compare.config import read_comparison
from secateur.compare.results import Results, State
from secateur.compare.tables import perplexity_text, write_tables
from secateur.compare.workbench import Workbench, check_tasks
from secateur.errors import RequestError, SecateurError, WriteError
from secateur.progress import Progress, Silent
from secateur.stages import duration

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

    Raises:
        RequestError: if something asked for cannot be; nothing was changed.
        WriteError: if a result cannot be written.
    """
    start, progress = time.monotonic(), progress or Silent()
    if max_minutes is not None and not max_minutes >= 0:
        raise RequestError(f"--max-minutes must be 0 or more, not {max_minutes:g}")
    comparison = read_comparison(config)
    results = Results(out)
    results.check()
    bench = Workbench(comparison, results, progress)
    every = cells_of(comparison, {model.title: bench.num_layers(model) for model in comparison.models})
    cells = chosen(every, only)
    check_tasks([task for cell in cells for task in cell.tasks])
    requests = {
        cell.id: request_of(cell, comparison, bench.fingerprints(cell.model, cell.seed)) for cell in cells
    }  # fmt: skip
    if not remake:
        results.check_made_alike(requests)
    if dry_run:
        return _outcome(results, cells, requests)
    results.open()
    results.index(every)
    try:
        _make_all(bench, results, cells, requests, largest_drops(every), progress, _Limit(start, max_minutes))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"what is done is kept in {out}; run the same command to go on") from None
    except OSError as error:
        raise WriteError(
            f"cannot write to {out}: {error.strerror or error}; make room, and run the same command to go on"
        ) from error
    make_tables(out, progress=progress)
    return _outcome(results, cells, requests)


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


def _make_all(
    bench: Workbench,
    results: Results,
    cells: Sequence[Cell],
    requests: Mapping[str, dict[str, Any]],
    most: Mapping[str, int],
    progress: Progress,
    limit: _Limit,
) -> None:
    """Each cell that is neither done nor somebody else's, in order, until one would end too late."""
    from secateur.compare.cells import plan_id

    left = [cell for cell in cells if not _is_done(results, cell, requests)]
    with progress.track(f"comparing {len(cells)} cells", len(cells)) as advance:
        advance(len(cells) - len(left))
        for cell in left:
            expected = _expected_seconds(results, cells)(cell)
            if limit.forbids(expected or 0.0):
                progress.note(f"stopped before {cell.id}: it would not be done in time")
                return
            with results.claim(cell.id) as mine:
                if mine and not _is_done(results, cell, requests):
                    results.sweep(cell.id)
                    said = _made(bench, results, cell, requests[cell.id], most[plan_id(cell)])
                    progress.note(f"{said}; {_so_far(_outcome(results, cells, requests, running=cell.id))}")
            advance(1)


def _made(bench: Workbench, results: Results, cell: Cell, request: dict[str, Any], most: int) -> str:
    """Make one cell, or write down why it cannot be made; a line about it."""
    start = time.monotonic()
    try:
        result = bench.make(cell, request, most)
    except Exception as error:  # whatever it is, the other cells do not depend on it
        logger.debug("%s failed", cell.id, exc_info=True)
        line = " ".join(str(error).split()) or type(error).__name__
        line = line if isinstance(error, SecateurError) else f"{type(error).__name__}: {line}"
        results.fail(cell.id, {"id": cell.id, "request": request, "error": line, "traceback": traceback.format_exc()})
        return f"{cell.id} failed: {line}"
    results.finish(cell.id, result)
    metrics = result["metrics"]
    return (
        f"{cell.id}: perplexity {perplexity_text(metrics['pruned']['perplexity'])} "
        f"(dense {perplexity_text(metrics['dense']['perplexity'])}) in {duration(time.monotonic() - start)}"
    )


def _is_done(results: Results, cell: Cell, requests: Mapping[str, dict[str, Any]]) -> bool:
    made = results.result(cell.id)
    return made is not None and differing(requests[cell.id], made.get("request")) is None


def _outcome(
    results: Results, cells: Sequence[Cell], requests: Mapping[str, dict[str, Any]], running: str | None = None
) -> Outcome:
    """How far the cells are; `running` is one that this process holds and has just dealt with."""
    states: dict[str, State] = {}
    for cell in cells:
        if cell.id == running:
            states[cell.id] = "done" if _is_done(results, cell, requests) else "failed"
        else:
            state = results.state(cell.id)
            states[cell.id] = "left" if state == "done" and not _is_done(results, cell, requests) else state
    errors = {name: results.failure(name) or "" for name, state in states.items() if state == "failed"}
    expected = _expected_seconds(results, cells)
    times = [expected(cell) for cell in cells if states[cell.id] in ("left", "running")]
    known = [seconds for seconds in times if seconds is not None]
    return Outcome(
        folder=results.folder,
        states=states,
        errors=errors,
        seconds_left=sum(known) if len(known) == len(times) else None,
    )


def _expected_seconds(results: Results, cells: Sequence[Cell]) -> Callable[[Cell], float | None]:
    """How long a cell takes: the mean of those with its method and recovery, else with its recovery, else of all."""
    kinds: dict[tuple[str, ...], list[float]] = {}
    for cell in cells:
        made = results.result(cell.id)
        if made is not None:
            seconds = sum(made["timings"]["seconds"].values())
            for key in ((cell.method.title, cell.recovery.title), (cell.recovery.title,), ()):
                kinds.setdefault(key, []).append(seconds)

    def expected(cell: Cell) -> float | None:
        for key in ((cell.method.title, cell.recovery.title), (cell.recovery.title,), ()):
            if key in kinds:
                return mean(kinds[key])
        return None

    return expected


def _so_far(outcome: Outcome) -> str:
    counts = {state: outcome.count(state) for state in ("done", "failed", "running", "left")}
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count or state in ("done", "left"))
    if outcome.seconds_left and counts["left"]:
        said += f", about {duration(outcome.seconds_left)} to go"
    return said
