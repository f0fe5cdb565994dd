"""What the benchmarks share: cells as data, one JSON a cell as result, and Markdown tables made from them."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def run_cells(
    cells: Path, results: Path, run_cell: Callable[[dict[str, Any]], dict[str, Any]], only: Sequence[str] | None
) -> None:
    """Do what is not done yet, in the order of the file; each result is written atomically."""
    import torch

    from secateur.plan import write_json

    results.mkdir(parents=True, exist_ok=True)
    while cell := next_cell(cells, results, only):
        print(f"{time.strftime('%H:%M:%S')} {cell['id']} …", flush=True)
        result = run_cell(cell)
        result["machine"] = {"processor": platform.machine(), "threads": torch.get_num_threads()}
        write_json(results / f"{cell['id']}.json", {**cell, **result})
        shown = {key: value for key, value in result.items() if isinstance(value, (int, float, str))}
        print(f"{time.strftime('%H:%M:%S')} {json.dumps(shown)[:400]}", flush=True)


def next_cell(cells: Path, results: Path, only: Sequence[str] | None) -> dict[str, Any] | None:
    """The first cell without a result; the file is read anew each time, so that cells can be added meanwhile."""
    for cell in json.loads(cells.read_text(encoding="utf-8")):
        if not (results / f"{cell['id']}.json").exists() and (not only or cell["id"] in only):
            return dict(cell)
    return None


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


def with_tables(page: str, table: Callable[[str], str]) -> str:
    """The page with the text between each pair of `<!-- table: NAME -->` … `<!-- end -->` made anew."""

    def made(match: re.Match[str]) -> str:
        return f"{match[1]}\n{table(match[2])}\n{match[3]}"

    return re.sub(r"(<!-- table: ([\w-]+) -->)\n.*?(<!-- end -->)", made, page, flags=re.DOTALL)


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns after the first are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
