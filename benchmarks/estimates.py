"""How near `secateur estimate` comes: peak memory and time of real runs beside what was estimated from the configuration.

    python benchmarks/estimates.py run MODEL DATA     # DATA as for elder.py; writes results/estimates.json, on an idle machine
    python benchmarks/estimates.py tables             # rewrites the table in docs/estimating.md from it

Each run is `secateur.prune` in a process of its own, as with SECATEUR_RETURN_MEMORY=1, without speed and samples,
which are not estimated. Time is that of choosing, preparing, recovering and measuring; loading and writing depend on the disk.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cells import markdown, with_tables  # noqa: E402  (a script beside this one)

RESULT = HERE / "results" / "estimates.json"
PAGE = HERE.parent / "docs" / "estimating.md"

DROP = 8
TEXT: dict[str, Any] = {"sequence_length": 256, "num_sequences": 16, "num_eval_sequences": 16, "batch_size": 4}
NOT_ESTIMATED = ("load", "cut", "cut and prove")
RUNS: dict[str, dict[str, Any]] = {
    # what the table says: method, its settings, recovery, text, dtype
    "`shortgpt`": {"method": "shortgpt"},
    "`shortgpt`, windows of 1,024 tokens": {"method": "shortgpt", "text": {"sequence_length": 1024, "num_sequences": 8,
                                                                        "num_eval_sequences": 4}},
    "`shortened-taylor`": {"method": "shortened-taylor"},
    "`gradpruner`": {"method": "gradpruner", "settings": {"merge": "none"}},
    "`elder`": {"method": "elder", "settings": {"joint_steps": 8, "measured_start": False, "shortlist": 1}},
    "`elder-published`": {"method": "elder-published", "settings": {"first_steps": 2, "round_steps": 1}},
    "`shortgpt`, `--recover lora`": {"method": "shortgpt", "recovery": {"recover": "lora"}},
    "`shortgpt`, `--recover full`": {"method": "shortgpt", "recovery": {"recover": "full"}},
    "`shortgpt`, `--recover distill`": {"method": "shortgpt", "recovery": {"recover": "distill"}},
    "`shortgpt`, bfloat16": {"method": "shortgpt", "dtype": "bfloat16"},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("model")
    run.add_argument("data", type=Path)
    run.add_argument("--only", nargs="*", help="what the table calls them")
    commands.add_parser("tables")
    options = parser.parse_args()
    if options.command == "run":
        measure(options.model, options.data, options.only)
    else:
        PAGE.write_text(made_anew(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def measure(model: str, data: Path, only: list[str] | None) -> None:
    """Every run in a process of its own, its estimate just before it."""
    from secateur.plan import write_json
    from secateur.report.record import versions

    found = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.exists() else {}
    processes = multiprocessing.get_context("spawn")
    for name, asked in RUNS.items():
        if only and name not in only:
            continue
        with processes.Pool(1) as pool:
            estimated = pool.apply(estimate_one, (model, asked))
        with processes.Pool(1) as pool:
            measured = pool.apply(run_one, (model, str(data), asked))
        found[name] = {"estimated": estimated, "measured": measured}
        print(name, json.dumps(found[name]), flush=True)
        rows = {key: found[key] for key in RUNS if key in found}
        write_json(RESULT, {"model": Path(model).resolve().name, "versions": versions(), "rows": rows})


def estimate_one(model: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What `secateur estimate` says."""
    from secateur.allocator import return_freed_memory
    from secateur.forecast import forecast
    from secateur.methods import METHODS
    from secateur.training.recovery import Recovery

    return_freed_memory()
    found = forecast(
        model,
        method=METHODS[asked["method"]](**asked.get("settings", {})),
        drop=DROP,
        recovery=Recovery(**asked.get("recovery", {})),
        dtype=asked.get("dtype", "auto"),
        **{**TEXT, **asked.get("text", {})},
    )
    return {"memory_bytes": found["memory_bytes"], "seconds": found["seconds"], "hardware": found["hardware"]["name"]}


def run_one(model: str, data: str, asked: dict[str, Any]) -> dict[str, Any]:
    """The real thing."""
    from secateur.allocator import return_freed_memory
    from secateur.methods import METHODS
    from secateur.pipeline import prune
    from secateur.request import Target, TextSettings
    from secateur.training.recovery import Recovery

    return_freed_memory()
    train, test = (str(min(Path(data).rglob(f"{part}*.txt"))) for part in ("train", "test"))
    with tempfile.TemporaryDirectory() as scratch:
        record = prune(
            model,
            method=METHODS[asked["method"]](**asked.get("settings", {})),
            text=TextSettings(data=train, eval_data=test, **{**TEXT, **asked.get("text", {})}),
            target=Target(drop=DROP),
            recovery=Recovery(**asked.get("recovery", {})),
            out=Path(scratch) / "out",
            dtype=asked.get("dtype", "auto"),
            prompts=(),
            speed=False,
        ).record
    timings = {name: seconds for name, seconds in record["timings"].items() if name not in NOT_ESTIMATED}
    return {"memory_bytes": record["peak_memory_bytes"], "seconds": sum(timings.values()), "timings": record["timings"]}


# ---- the table -----------------------------------------------------------------------------------------------------------


def made_anew(page: str) -> str:
    """The page with its table made from the result."""
    return with_tables(page, table)


def table(_: str) -> str:
    """A row a run."""
    if not RESULT.exists():
        return "Not measured yet."
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    body = []
    for name, row in rows.items():
        cells = [name]
        for key, scale in (("memory_bytes", 1e9), ("seconds", 1.0)):
            estimated, measured = (row[which][key] / scale for which in ("estimated", "measured"))
            cells += [f"{estimated:.3g}", f"{measured:.3g}", f"{100 * (estimated / measured - 1):+.0f} %"]
        body.append(cells)
    head = ["run", "memory, GB: estimated", "measured", "off by", "time, s: estimated", "measured", "off by"]
    return markdown(head, body)


if __name__ == "__main__":
    main()
