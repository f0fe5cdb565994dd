"""What it costs and buys that freed memory goes back to the system (`secateur.allocator`): training steps on a CPU.

    python benchmarks/allocator.py MODEL      # writes results/allocator.json; leave the machine alone meanwhile
    python benchmarks/allocator.py tables     # rewrites the table in docs/scaling.md from it

Every turn is a process of its own, with and without by turns; a step is forward and backward on 4 windows of 256 tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cells import markdown, of_result, with_tables  # noqa: E402  (a script beside this one)

RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "scaling.md"
STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL|tables", help="a checkpoint to train, or the word tables")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--turn", choices=["LoRA", "all weights"], help=argparse.SUPPRESS)
    parser.add_argument("--returned", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model == "tables":
        PAGE.write_text(made_anew(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    elif options.turn:
        print(json.dumps(turn(options.model, options.turn, returned=options.returned)))
    else:
        measure(options.model, options.turns)


def measure(model: str, turns: int) -> None:
    """Both ways by turns, and the result file."""
    from secateur.report.record import versions
    from secateur.values import write_json

    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    for _ in range(turns):
        for kind in ("LoRA", "all weights"):
            for returned in (False, True):
                command = [sys.executable, __file__, model, "--turn", kind, *(["--returned"] if returned else [])]
                done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
                found = rows.setdefault(kind, {}).setdefault("returned" if returned else "kept", [])
                found.append(json.loads(done.stdout.splitlines()[-1]))
    write_json(RESULTS / "allocator.json", {"model": Path(model).resolve().name, "versions": versions(), "rows": rows})
    print(table_of(rows))


def turn(model: str, kind: str, *, returned: bool) -> dict[str, float]:
    """The most memory, in bytes, and the seconds of a step, the first left out."""
    import torch

    from secateur.allocator import return_freed_memory
    from secateur.evaluation.memory import PeakMemory
    from secateur.loading import load_model

    assert not returned or return_freed_memory()
    trained = load_model(model, dtype="float32")
    if kind == "LoRA":
        from peft import LoraConfig, get_peft_model

        trained = get_peft_model(trained, LoraConfig(r=8, target_modules="all-linear"))
    ids = torch.randint(100, 1000, (4, 256), generator=torch.Generator().manual_seed(0))
    seconds = []
    with PeakMemory(interval=0.01) as memory:
        for _ in range(STEPS + 1):
            start = time.perf_counter()
            trained(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            trained.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - start)
    return {"bytes": memory.bytes, "seconds": statistics.median(seconds[1:])}


# ---- the table -----------------------------------------------------------------------------------------------------------


def made_anew(page: str) -> str:
    """The page with its table made from the result."""
    return with_tables(page, lambda name: of_result(name, RESULTS, lambda record: table_of(record["rows"]), str)
                       if name == "allocator" else None)  # fmt: skip


def table_of(rows: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """A row a training; memory is the largest of the turns, time the ratio of two neighbouring turns."""
    body = []
    for kind, found in rows.items():
        kept, returned = (max(one["bytes"] for one in found[way]) for way in ("kept", "returned"))
        ratios = [new["seconds"] / old["seconds"] for old, new in zip(found["kept"], found["returned"], strict=True)]
        time_of = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        body.append([kind, f"{kept / 1e9:.2f} GB", f"{returned / 1e9:.2f} GB", time_of])
    return markdown(["trained", "peak memory, glibc's way", "returned", "time of a step, of glibc's"], body)


if __name__ == "__main__":
    main()
