"""The cells of a comparison: one model, method, number of layers, recovery and seed each, with a name that says so."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from secateur.compare.config import Comparison, MethodChoice, ModelChoice, RecoveryChoice, slug
from secateur.errors import RequestError
from secateur.plan import count_to_drop
from secateur.values import finite

__all__ = ["Cell", "cells_of", "chosen", "differing", "lacks", "largest_drops", "measures_of", "plan_id", "request_of"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One of the things that are measured."""

    model: ModelChoice
    method: MethodChoice
    drop: int
    """Layers that go."""

    recovery: RecoveryChoice
    seed: int
    tasks: tuple[str, ...] = ()
    speed: bool = False

    @property
    def id(self) -> str:
        """`MODEL--METHOD--dropK--RECOVERY--seedS`, the name of its file."""
        parts = (self.model.title, self.method.title, f"drop{self.drop}", self.recovery.title, f"seed{self.seed}")
        return "--".join(map(slug, parts))


def cells_of(comparison: Comparison, num_layers: Mapping[str, int]) -> list[Cell]:
    """All cells, each once, in the order of the file; one that stands in several blocks has the tasks of all.

    Args:
        comparison: what is to be compared.
        num_layers: of each model, by its title.

    Raises:
        PlanError: if no layer or every layer of a model would go.
    """
    cells: dict[str, Cell] = {}
    for model in comparison.models:
        for block in comparison.blocks:
            drops = dict.fromkeys(count_to_drop(drop, num_layers[model.title]) for drop in block.drops)
            for drop in drops:
                for recovery in block.recoveries:
                    for method in block.methods:
                        for seed in block.seeds:
                            cell = Cell(
                                model=model, method=method, drop=drop, recovery=recovery, seed=seed,
                                tasks=block.tasks, speed=block.speed,
                            )  # fmt: skip
                            cells[cell.id] = _both(cells.get(cell.id, cell), cell)
    return list(cells.values())


def _both(first: Cell, second: Cell) -> Cell:
    tasks = tuple(dict.fromkeys((*first.tasks, *second.tasks)))
    return replace(first, tasks=tasks, speed=first.speed or second.speed)


def chosen(cells: Sequence[Cell], pattern: str | None) -> list[Cell]:
    """The cells whose id matches a pattern such as `*--elder--drop8--*`; all without one.

    Raises:
        RequestError: if none does.
    """
    found = [cell for cell in cells if pattern is None or fnmatchcase(cell.id, pattern)]
    if not found:
        raise RequestError(f"no cell is called '{pattern}'; the first is called {cells[0].id} (* stands for anything)")
    return found


def plan_id(cell: Cell) -> str:
    """Cells of one such id share one choice of layers: of a nested method one serves all numbers of layers."""
    parts = [cell.model.title, cell.method.title, f"seed{cell.seed}"]
    if not cell.method.method.nested:
        parts.insert(2, f"drop{cell.drop}")
    return "--".join(map(slug, parts))


def largest_drops(cells: Sequence[Cell]) -> dict[str, int]:
    """The most layers that any cell needs of a choice, by `plan_id`."""
    most: dict[str, int] = {}
    for cell in cells:
        most[plan_id(cell)] = max(most.get(plan_id(cell), 0), cell.drop)
    return most


def request_of(cell: Cell, comparison: Comparison, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """All that decides what is in a cell's file but for what is measured, as plain JSON values; titles do not.

    Args:
        cell: the cell.
        comparison: where it stands.
        fingerprints: of what the places in the file hold on this machine: texts and the model's configuration.
    """
    model = dataclasses.asdict(cell.model)
    del model["title"]
    recovery: dict[str, Any] = {"kind": "none"}
    if cell.recovery.settings.trains:  # the settings of what is not done decide nothing
        recovery = dataclasses.asdict(cell.recovery.settings)
    asked = {
        "model": model,
        "method": cell.method.method.name,
        "options": cell.method.method.options(),
        "drop": cell.drop,
        "recovery": recovery,
        "seed": cell.seed,
        "text": dataclasses.asdict(comparison.text),
        "fingerprints": dict(fingerprints),
        "precision": comparison.precision,
    }
    plain: dict[str, Any] = json.loads(json.dumps(finite(asked)))
    return plain


def measures_of(cell: Cell, comparison: Comparison) -> dict[str, Any]:
    """What is measured of a cell beside its perplexity: each task with its limit, and the speed."""
    return {"tasks": dict.fromkeys(cell.tasks, comparison.task_limit), "speed": cell.speed}


def lacks(result: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a result lacks something that is to be measured now; more than that does no harm."""
    made = result["measures"]
    missing = [task for task, limit in wanted["tasks"].items() if made["tasks"].get(task, -1) != limit]
    return bool(missing) or (wanted["speed"] and not made["speed"])


def differing(asked: Any, made: Any, name: str = "") -> str | None:
    """The first setting in which two requests differ, as `text.num_sequences: 64, was 128`; None if they are the same."""
    if isinstance(asked, dict) and isinstance(made, dict):
        for key in [*asked, *(key for key in made if key not in asked)]:
            found = differing(asked.get(key), made.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return None
    return None if asked == made else f"{name}: {asked!r}, was {made!r}"
