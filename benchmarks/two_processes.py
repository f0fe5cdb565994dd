"""Does it matter how many processes do the work? Every phase in one, in two (DDP), and in two that shard (FSDP2).

    python benchmarks/two_processes.py run     # a quarter of an hour on two cores; writes results/two_processes.json
    python benchmarks/two_processes.py deaths  # the second part alone, anew
    python benchmarks/two_processes.py zero    # what trains, under DeepSpeed's ZeRO 1 and 2: pip install deepspeed; five minutes
    python benchmarks/two_processes.py tables  # rewrites the tables in docs/scaling.md

The phases are those of `tests/processes/phases.py`, on a random Llama of six layers, float32, by gloo on CPUs. There accelerate
does not shard, so it is told that the processes have GPUs (`tests/processes/fsdp_on_cpu.py`); what then runs is PyTorch's FSDP2.
DeepSpeed runs on CPUs as it is, and is started by `accelerate launch` with `examples/zero2.yaml`.
Then one of two processes fails on entering each stage of a `prune` (`tests/processes/dying.py`), and the run goes on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests"
RESULT = HERE / "results" / "two_processes.json"
PAGE = HERE.parent / "docs" / "scaling.md"
sys.path[:0] = [str(TESTS), str(TESTS / "processes")]

STAGES = ("load", "measure dense", "choose", "prepare", "cut", "recover", "cut and prove", "measure pruned")
_ONE_ONLY = ("cut and prove", "measure pruned")  # the first process alone does these


def run() -> None:
    """Do everything, and write it down."""
    with scratch() as folder:
        write(written_before() | {
            "versions": {name: version(name) for name in ("torch", "transformers", "accelerate", "peft")},
            "phases": phases(folder), "deaths": all_deaths(folder),
        })  # fmt: skip


def deaths() -> None:
    """Do what fails, and write it down beside what there is."""
    with scratch() as folder:
        write(written_before() | {"deaths": all_deaths(folder)})


def zero() -> None:
    """Do what trains under DeepSpeed, and write it down beside what there is."""
    from launching import agreement
    from phases import ZERO, slug

    names = ("torch", "transformers", "accelerate", "peft", "deepspeed")
    with scratch() as folder:
        for name, processes, stage in (("one", 1, None), ("zero1", 2, 1), ("zero2", 2, 2)):
            held(folder, name, "plain", *ZERO, processes=processes, zero=stage)
        found = {
            name: agreement(folder / "one", folder / name, [slug(phase) for phase in ZERO])
            for name in ("zero1", "zero2")
        }
        rows = {phase: {name: each[slug(phase)] for name, each in found.items()} for phase in ZERO}
        write(written_before() | {"zero": {"versions": {name: version(name) for name in names}, "phases": rows}})


def written_before() -> dict[str, Any]:
    """The result file, of which a part is made anew."""
    return dict(json.loads(RESULT.read_text(encoding="utf-8")))


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder with a model and texts, gone afterwards."""
    from launching import write_inputs

    from tiny_models import ascii_tokenizer, tiny_llama

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        tiny_llama().save_pretrained(folder / "checkpoint")
        ascii_tokenizer().save_pretrained(folder / "checkpoint")
        yield folder


def write(result: dict[str, Any]) -> None:
    """The result file, and the page."""
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    tables()


def phases(folder: Path) -> dict[str, dict[str, Any]]:
    """Phase → `ddp` and `fsdp2`, each held to one process."""
    from launching import agreement
    from phases import PHASES, slug

    for name, kind, processes in (("one", "plain", 1), ("ddp", "plain", 2), ("fsdp2", "fsdp2", 2)):
        held(folder, name, kind, processes=processes)
    slugs = [slug(phase) for phase in PHASES]
    found = {name: agreement(folder / "one", folder / name, slugs) for name in ("ddp", "fsdp2")}
    return {phase: {name: rows[slug(phase)] for name, rows in found.items()} for phase in PHASES}


def held(folder: Path, name: str, kind: str, *phases: str, processes: int, zero: int | None = None) -> None:
    """Do the phases, all if none is named, in so many processes; what they leave is in a folder of that name."""
    from launching import launched

    (folder / name).mkdir()
    done = launched("phases.py", kind, str(folder), str(folder / name), *phases, processes=processes, zero=zero)
    assert done.returncode == 0, done.stderr


def all_deaths(folder: Path) -> list[dict[str, Any]]:
    """Each stage, by an error and by a signal."""
    pruned(folder, "0", "none", "error")
    expected = written(folder)
    return [death(folder, stage, how, expected) for stage in STAGES for how in ("error", "killed")]


def death(folder: Path, stage: str, how: str, expected: dict[str, str]) -> dict[str, Any]:
    """What one process that fails leaves, what is said, and whether the run that goes on ends as one that nothing disturbed."""
    rank = "0" if stage in _ONE_ONLY else "1"
    shutil.rmtree(folder / "deaths")
    start = time.monotonic()
    done = pruned(folder, rank, stage, how)
    found = {
        "stage": stage,
        "how": how,
        "rank": int(rank),
        "exit": done.returncode,
        "said": [line for line in done.stderr.splitlines() if line.startswith("error: ")],
        "left": sorted(file.name for file in (folder / "deaths").iterdir()),
        "seconds": round(time.monotonic() - start, 1),
    }
    again = ["--resume"] if (folder / "deaths" / "out.work").exists() else []
    done = pruned(folder, rank, "none", how, *again)
    clean = [file.name for file in (folder / "deaths").iterdir()] == ["out"]
    return found | {"equal": done.returncode == 0 and clean and written(folder) == expected}


def pruned(folder: Path, rank: str, stage: str, how: str, *more: str) -> Any:
    """Two processes prune, of which one may fail."""
    from launching import launched

    (folder / "deaths").mkdir(exist_ok=True)
    words = [
        "prune", str(folder / "checkpoint"), "--drop=2", f"--data={folder / 'train.txt'}", f"--out={folder / 'deaths' / 'out'}",
        "--recover=full", "--sequence-length=32", "--num-sequences=8", "--num-eval-sequences=2", *more,
    ]  # fmt: skip
    return launched("dying.py", "plain", rank, stage, how, *words, processes=2)


def written(folder: Path) -> dict[str, str]:
    """What must be equal: the files of the checkpoint that are no prose, by their hash."""
    out = folder / "deaths" / "out"
    files = [file for file in out.iterdir() if file.suffix in (".safetensors", ".json")] if out.exists() else []
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def tables() -> None:
    """Rewrite the tables of the page."""
    PAGE.write_text(made_anew(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def made_anew(page: str) -> str:
    """The page with its tables made of the result."""
    sys.path.insert(0, str(HERE))
    from cells import markdown, with_tables

    result = json.loads(RESULT.read_text(encoding="utf-8"))
    deaths = [
        [
            row["stage"],
            row["how"],
            "; ".join(row["said"]) or "(the launcher's report)",
            beside(row["left"]),
            "yes" if row["equal"] else "**no**",
        ]
        for row in result["deaths"]
    ]
    made = {
        "phases": held_to_one(result["phases"], {"ddp": "DDP", "fsdp2": "FSDP2"}),
        "zero": held_to_one(result["zero"]["phases"], {"zero1": "ZeRO 1", "zero2": "ZeRO 2"}),
        "deaths": markdown(["stage", "how", "said", "left", "equal"], deaths, words=4),
    }
    return with_tables(page, made.get)


def held_to_one(phases: dict[str, Any], ways: dict[str, str]) -> str:
    """A table of phases, each way of doing them beside the others."""
    from cells import markdown

    header = ["phase", *(title for name in ways.values() for title in (f"{name}: same plan", "figures", "weights"))]
    rows = [[phase, *(cell for way in ways for cell in in_cells(found[way]))] for phase, found in phases.items()]
    return markdown(header, rows, words=2)


def in_cells(found: dict[str, Any]) -> list[str]:
    """Whether a phase chose alike, and the largest relative differences."""
    same = found["same_plan"] and found["same_best_step"]
    weights = "" if found["weights"] is None else share(found["weights"])
    return ["yes" if same else "**no**", share(max(found["scores"], found["measured"])), weights]


def share(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}"


def beside(left: list[str]) -> str:
    """What lies where OUT was to be: never OUT itself; a killed process cannot clear away what it was writing."""
    return ", ".join("a hidden `.tmp` folder" if name.endswith(".tmp") else f"`{name}`" for name in left) or "nothing"


if __name__ == "__main__":
    {"run": run, "deaths": deaths, "zero": zero, "tables": tables}[sys.argv[1]]()
