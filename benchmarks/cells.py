"""What the benchmarks share: cells as data, one JSON a cell as result, and Markdown tables made from them."""

from __future__ import annotations

import json
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secateur.compare.claims import claimed
from secateur.compare.tables import markdown

__all__ = ["load_results", "markdown", "next_cell", "of_result", "run_cells", "with_tables"]


def run_cells(
    cells: Path, results: Path, run_cell: Callable[[dict[str, Any]], dict[str, Any]], only: Sequence[str] | None
) -> None:
    """Do what is not done yet, in the order of the file; each result is written atomically.

    Several processes may do so at once: each takes a cell that no other has taken.
    """
    import torch

    from secateur.values import write_json

    results.mkdir(parents=True, exist_ok=True)
    claims = Path(tempfile.gettempdir(), f"secateur-{results.name}")
    while True:
        with next_cell(cells, results, claims, only) as cell:
            if cell is None:
                return
            print(f"{time.strftime('%H:%M:%S')} {cell['id']} …", flush=True)
            result = run_cell(cell)
            result["machine"] = {"processor": platform.machine(), "threads": torch.get_num_threads()}
            write_json(results / f"{cell['id']}.json", {**cell, **result})
            shown = {key: value for key, value in result.items() if isinstance(value, (int, float, str))}
            print(f"{time.strftime('%H:%M:%S')} {json.dumps(shown)[:400]}", flush=True)


@contextmanager
def next_cell(cells: Path, results: Path, claims: Path, only: Sequence[str] | None) -> Iterator[dict[str, Any] | None]:
    """The first cell without a result that no other process works on; the file is read anew, so that cells can be added."""
    for cell in json.loads(cells.read_text(encoding="utf-8")):
        result = results / f"{cell['id']}.json"
        if result.exists() or (only and cell["id"] not in only):
            continue
        with claimed(claims / cell["id"]) as mine:
            if mine and not result.exists():  # it may have been finished between the two looks
                yield dict(cell)
                return
    yield None


def load_results(cells: Path, results: Path) -> list[dict[str, Any]]:
    """The results in the order of the cells, with the cells' present titles."""
    by_id = {cell["id"]: cell for cell in json.loads(cells.read_text(encoding="utf-8"))}
    order = list(by_id)
    found = [json.loads(file.read_text(encoding="utf-8")) for file in results.glob("*.json")]
    known = [
        {**by_id[result["id"]], **result, **_title(by_id[result["id"]])} for result in found if result["id"] in by_id
    ]
    return sorted(known, key=lambda result: order.index(result["id"]))


def _title(cell: dict[str, Any]) -> dict[str, Any]:
    return {"title": cell["title"]} if "title" in cell else {}


def of_result(
    name: str, results: Path, table: Callable[[dict[str, Any]], str], setting: Callable[[dict[str, Any]], str]
) -> str:
    """The table called like its result file; with `-setting` behind it, the paragraph on what that was measured."""
    result = results / f"{name.removesuffix('-setting')}.json"
    if not result.exists():
        return "Not measured yet."
    record = json.loads(result.read_text(encoding="utf-8"))
    return setting(record) if name.endswith("-setting") else table(record)


def with_tables(page: str, table: Callable[[str], str | None]) -> str:
    """The page with the text between each pair of `<!-- table: NAME -->` … `<!-- end -->` made anew, but where it is None."""

    def made(match: re.Match[str]) -> str:
        new = table(match[2])
        return match[0] if new is None else f"{match[1]}\n{new}\n{match[3]}"

    return re.sub(r"(<!-- table: ([\w-]+) -->)\n.*?(<!-- end -->)", made, page, flags=re.DOTALL)
