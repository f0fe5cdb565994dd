"""The tables of docs/choosing.md: from the results of the other benchmarks, what a reader needs to choose a method.

`python benchmarks/choosing.py tables` rewrites them, after any of elder, gradpruner, speed and compare.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import compare  # noqa: E402  (scripts beside this one)
import elder  # noqa: E402
import gradpruner  # noqa: E402
from cells import load_results, markdown, with_tables  # noqa: E402
from secateur.compare.results import Row  # noqa: E402
from secateur.compare.tables import mean_nll, perplexity_text  # noqa: E402
from secateur.methods import METHODS  # noqa: E402
from secateur.report.comparison import MISSING  # noqa: E402

PAGE = HERE.parent / "docs" / "choosing.md"
GENERAL = ("sleb", "elder", "recovery-4-4e-4", "elder-4-4e-4", "recovery-64-4e-4", "elder-64-4e-4")
"""Cells of elder.py: each of the two choices cut alone, then both ways of training at equal tokens, few and many."""
ON_A_TASK = ("gradpruner", "absorb", "shortgpt")
"""Variants of gradpruner.py."""
LAYERS, DROP, WINDOWS, WINDOW = 30, 8, 128, 256
"""What the cost of choosing is stated for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tables")
    parser.parse_args()
    PAGE.write_text(made_anew(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def made_anew(page: str) -> str:
    """The page with its tables made from the results."""
    made = {"general": general, "on-a-task": on_a_task, "speed": speed, "methods": methods}
    return with_tables(page, lambda name: made[name]())


def general() -> str:
    """A smaller general model: cutting alone, and the two ways of training for it."""
    results = {result["id"]: result for result in load_results(elder.CELLS, elder.RESULTS)}
    rows = [results[name] for name in GENERAL]
    body = [
        [f"{row['title']}, cut alone" if row["table"] == "choosing" else row["title"],
         f"{row.get('training_tokens', 0):,}", perplexity_text(row["test"])]
        for row in rows
    ]  # fmt: skip
    return markdown(["what", "trained tokens", "perplexity"], body)


def on_a_task() -> str:
    """A model for one task: accuracy on three."""
    results = load_results(gradpruner.CELLS, gradpruner.RESULTS)
    return gradpruner.summary(results, trainings=("full",), variants=ON_A_TASK)


def speed() -> str:
    """What it buys."""
    record = json.loads((compare.RESULTS / "speed.json").read_text(encoding="utf-8"))
    parameters = {model["model"]: model["num_parameters"] for model in record["models"]}
    ratios = {(row["model"], row["phase"]): row for row in record["speedups"] if row["batch_size"] == 1}
    body = [
        [name, f"{parameters[name] / parameters['dense']:.0%}",
         *(f"{ratios[name, phase]['speedup']:.2f}×" for phase in ("prefill", "decode"))]
        for name in parameters if name != "dense"
    ]  # fmt: skip
    return markdown(["what", "parameters left", "reading a prompt", "writing"], body)


def methods() -> str:
    """Every method: what it needs, what choosing costs, and its figures on the one protocol."""
    rows = max(map(compare.rows_of, compare.FOLDERS.values()), key=_num_done)
    drops = {row.drop for row in rows if row.recovery != "none"}
    data: Any = SimpleNamespace(
        num_sequences=WINDOWS, sequence_length=WINDOW, num_tokens=WINDOWS * WINDOW, batch_size=4
    )
    body = []
    for name, method in METHODS.items():
        tokens = method().cost(LAYERS, DROP, data).choose_tokens
        needs = "weights or gradients" if not method.only_runs else "forward passes" if tokens else "nothing"
        figures = [_perplexity(rows, name, min(drops, default=DROP), recovery) for recovery in ("none", "full")]
        link = f"[`{name}`](methods/{name.removesuffix('-published')}.md)"
        body.append([link, needs, f"{tokens / 1000:,.0f}", *figures])
    head = ["method", "looks at", "choosing costs", "perplexity, no recovery", "… then trained"]
    return markdown(head, body, words=2)


def _num_done(rows: list[Row]) -> int:
    return sum(row.result is not None for row in rows)


def _perplexity(rows: list[Row], method: str, drop: int, recovery: str) -> str:
    asked = [row.result for row in rows if (row.method, row.drop, row.recovery) == (method, drop, recovery)]
    nll = mean_nll([result for result in asked if result is not None])
    if nll is None:
        return MISSING
    return perplexity_text(math.exp(nll) if math.isfinite(nll) else None)


if __name__ == "__main__":
    main()
