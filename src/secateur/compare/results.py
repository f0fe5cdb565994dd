"""The folder of a comparison: a JSON file a cell, what was computed once for several, and who works on what.

```
DIR/compare.json       the cells, in order, with their titles: what tables and plots are made from, with the results
DIR/cells/ID.json      a result                 DIR/cells/ID.failed.json   why there is none; it is tried again
DIR/dense/…json        the dense models         DIR/plans/…json            choices of layers      DIR/locks/  claims
DIR/table.md           the tables               DIR/plots/…svg             the plots
```
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from secateur.compare.cells import Cell, differing
from secateur.compare.claims import claimed
from secateur.disk import is_full
from secateur.errors import OutputError, RequestError
from secateur.surgery.output import check_output
from secateur.values import finite, write_json

__all__ = ["STATES", "Results", "Row", "State"]

State = Literal["done", "failed", "running", "left"]
STATES: tuple[State, ...] = ("done", "failed", "running", "left")

_NUMBER: tuple[type, ...] = (int, float)
_NUMBER_OR_NULL: tuple[type, ...] = (int, float, NoneType)
_MEASURED = {
    "perplexity": _NUMBER_OR_NULL, "nll": _NUMBER_OR_NULL, "nll_stderr": _NUMBER_OR_NULL, "num_parameters": _NUMBER,
    "tasks": {...: {"value": _NUMBER, "stderr": _NUMBER}},
}  # fmt: skip
_RESULT = {
    "request": dict,
    "measures": {"tasks": {...: _NUMBER_OR_NULL}, "speed": bool},
    "metrics": {"dense": _MEASURED, "pruned": _MEASURED},
    "tokens": {"trained_before_cut": _NUMBER, "trained_after_cut": _NUMBER},
    "timings": {"seconds": {...: _NUMBER}, "speed": ({"decode": _NUMBER}, NoneType)},
}
"""What is read again of a cell's file, each with its type (`...` is every name); there is more in it."""

_ONCE: dict[str, dict[str, Any]] = {
    "dense": {"request": dict, "value": dict},
    "plans": {"request": dict, "plan": {"order": list}},
}  # fmt: skip
"""The same of what is computed once, by its folder."""

_CELL = {"id": str, "model": str, "method": str, "drop": int, "recovery": str, "seed": int}
"""A line of `compare.json`."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A cell as tables and plots see it: its titles, and its result if there is one."""

    id: str
    model: str
    method: str
    drop: int
    recovery: str
    seed: int
    result: dict[str, Any] | None
    """What `DIR/cells/ID.json` holds."""


class Results:
    """What lies in the folder of a comparison."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().absolute()

    def check(self) -> None:
        """Make sure that results can be written here; nothing is created.

        Raises:
            OutputError: if something else is there, or it cannot be written to.
        """
        if not (self.folder / "compare.json").is_file() and not (self.folder / "locks").is_dir():
            check_output(self.folder)

    def open(self) -> None:
        """Make the folders, or find them.

        Raises:
            OutputError: if they cannot be made.
        """
        try:
            for name in ("cells", "dense", "plans", "locks"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if is_full(error):
                raise
            raise OutputError(f"cannot write to {self.folder}: {error.strerror}; choose another --out") from error

    # ---- cells -----------------------------------------------------------------------------------------------------

    def file(self, id: str) -> Path:  # noqa: A002
        """Where the result of a cell lies, or will lie."""
        return self.folder / "cells" / f"{id}.json"

    def failure_file(self, id: str) -> Path:  # noqa: A002
        """Where it says why there is none."""
        return self.folder / "cells" / f"{id}.failed.json"

    def result(self, id: str) -> dict[str, Any] | None:  # noqa: A002
        """The result of a cell, if it is there."""
        return _read(self.file(id), _RESULT)

    def failure(self, id: str) -> str | None:  # noqa: A002
        """Why there is none, if it was tried."""
        found = _read(self.failure_file(id), {"error": str})
        return None if found is None else str(found["error"])

    def claim(self, id: str, *, wait: bool = False) -> AbstractContextManager[bool]:  # noqa: A002
        """Hold what is called so, a cell or something that several need; the value says whether it could be had."""
        return claimed(self.folder / "locks" / f"{id}.lock", wait=wait)

    def state(self, id: str) -> State:  # noqa: A002
        """How far a cell is."""
        if self.file(id).is_file():
            return "done"
        if (self.folder / "locks" / f"{id}.lock").exists():
            with self.claim(id) as free:
                if not free:
                    return "running"
        return "failed" if self.failure_file(id).is_file() else "left"

    def finish(self, id: str, result: dict[str, Any]) -> None:  # noqa: A002
        """Write a result; an earlier failure is forgotten."""
        write_json(self.file(id), result)
        self.failure_file(id).unlink(missing_ok=True)

    def fail(self, id: str, failure: dict[str, Any]) -> None:  # noqa: A002
        """Write why there is no result."""
        write_json(self.failure_file(id), failure)

    def sweep(self, id: str) -> None:  # noqa: A002
        """Remove what a process that was killed while it wrote has left; for whoever holds the cell."""
        for name in (self.file(id).name, self.failure_file(id).name):
            for left in self.file(id).parent.glob(f".{name}.*"):
                left.unlink(missing_ok=True)

    def check_made_alike(self, requests: Mapping[str, dict[str, Any]]) -> None:
        """Refuse results that were made with other settings than are asked for now.

        Raises:
            RequestError: if there is one.
        """
        for name, asked in requests.items():
            made = self.result(name)
            other = None if made is None else differing(asked, made.get("request"))
            if other:
                raise RequestError(
                    f"{name} was made with other settings ({other}); choose another --out, or make such cells anew "
                    "with --remake"
                )

    # ---- what is computed once ---------------------------------------------------------------------------------------

    def once(
        self,
        kind: str,
        name: str,
        request: dict[str, Any],
        make: Callable[[], dict[str, Any]],
        *,
        enough: Callable[[dict[str, Any]], bool] = lambda found: True,  # noqa: ARG005
    ) -> dict[str, Any]:
        """What `DIR/KIND/NAME.json` holds for this request; made, by one process alone, if it holds something else.

        Args:
            kind: the folder.
            name: of the file.
            request: all that decides its content.
            make: makes the content.
            enough: whether content that was kept will do.
        """
        file = self.folder / kind / f"{name}.json"
        with self.claim(f"{kind}--{name}", wait=True):
            found = _read(file, _ONCE[kind])
            if found is None or differing(request, found.get("request")) or not enough(found):
                found = finite({"request": request, **make()})
                write_json(file, found)
        return found

    # ---- what tables and plots are made from -------------------------------------------------------------------------

    def index(self, cells: Sequence[Cell]) -> None:
        """Write which cells there are, with their titles, in order."""
        rows = [
            {
                "id": cell.id, "model": cell.model.title, "method": cell.method.title, "drop": cell.drop,
                "recovery": cell.recovery.title, "seed": cell.seed,
            }
            for cell in cells
        ]  # fmt: skip
        write_json(self.folder / "compare.json", {"cells": rows})

    def rows(self) -> list[Row]:
        """The cells of the last config that was run here, in its order.

        Raises:
            RequestError: if there is no comparison here, or a file of it is damaged.
        """
        file = self.folder / "compare.json"
        index = _read(file, {"cells": list})
        if index is None:
            raise RequestError(f"{self.folder} holds no comparison (it has no {file.name}); give its folder")
        for number, cell in enumerate(index["cells"]):
            if wrong := _unlike(cell, _CELL, f"cells[{number}]"):
                raise _damaged(file, wrong)
        return [Row(**{name: cell[name] for name in _CELL}, result=self.result(cell["id"])) for cell in index["cells"]]


def _read(file: Path, shape: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """What a file holds, None if there is none.

    Args:
        file: a JSON file.
        shape: what must be in it: names, each with a type, several or such a mapping; `...` is every name.

    Raises:
        RequestError: if it cannot be read, or holds something else.
    """
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RequestError(f"cannot read {file}: {error.strerror}; make it readable") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(file, str(error)) from error
    if wrong := _unlike(found, shape or {}):
        raise _damaged(file, wrong)
    return found


def _unlike(value: Any, shape: Any, name: str = "") -> str | None:
    """What speaks against a value having a shape, None if nothing does."""
    if isinstance(shape, tuple) and isinstance(shape[0], Mapping):
        return None if value is None and NoneType in shape else _unlike(value, shape[0], name)
    if not isinstance(shape, Mapping):
        return None if isinstance(value, shape) else f"{name} is {str(value)[:40]!r}"
    if not isinstance(value, dict):
        return f"{name or 'it'} is not a mapping of names to values"
    every = dict.fromkeys(value, shape[...]) if ... in shape else shape
    for key, wanted in every.items():
        inner = f"{name}.{key}" if name else key
        wrong = _unlike(value[key], wanted, inner) if key in value else f"it has no {inner}"
        if wrong:
            return wrong
    return None


def _damaged(file: Path, what: str) -> RequestError:
    return RequestError(f"{file} is damaged ({what}); remove it, and run the comparison again, which makes it anew")
