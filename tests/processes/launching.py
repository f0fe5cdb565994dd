"""Running the scripts here in one process and in several, and holding what they leave to each other."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

HERE = Path(__file__).parent
EXAMPLES = HERE.parent.parent / "examples"


def launched(
    script: str, *words: str, processes: int, by_launcher: bool | None = None, zero: int | None = None
) -> subprocess.CompletedProcess[str]:
    """A script of this folder, in so many processes; one is left to no launcher unless `by_launcher` says so.

    With `zero`, accelerate's launcher has trainings go through that stage of DeepSpeed's, as the example has it.
    """
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    if zero is not None:
        launch = ["-m", "accelerate.commands.launch", "--config_file", str(EXAMPLES / "zero2.yaml")]
        launch += [f"--num_processes={processes}", f"--main_process_port={free_port()}", f"--zero_stage={zero}"]
    elif not (processes > 1 if by_launcher is None else by_launcher):
        launch = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, *launch, str(HERE / script), *words],
        env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


def launched_by_two(script: str, *words: str, folder: Path) -> list[tuple[int, str]]:
    """A script of this folder in two processes of two launchers, as on two machines: each has a place of its own for what is
    temporary, and is the first of its own processes. The exit code of each, and what it said."""
    port, begun = free_port(), []
    for machine in range(2):
        temporary = folder / f"tmp-{machine}"
        temporary.mkdir()
        launch = ["-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={machine}", "--nproc-per-node=1"]
        launch += ["--master-addr=localhost", f"--master-port={port}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TMPDIR": str(temporary)}
        command = [sys.executable, *launch, str(HERE / script), *words]
        begun.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    said = [each.communicate(timeout=900)[1] for each in begun]  # little enough to wait in a pipe
    return [(each.returncode, text) for each, text in zip(begun, said, strict=True)]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return int(taken.getsockname()[1])


def write_inputs(folder: Path) -> None:
    """Text and a task, beside a `checkpoint` that the caller puts there."""
    lines = [f"Sentence {n} says that {n} times {n} is {n * n}, and nothing else.\n\n" for n in range(500)]
    (folder / "train.txt").write_text("".join(lines[:400]))
    (folder / "test.txt").write_text("".join(lines[400:]))
    sums = [{"text": f"{a} and {b}", "label_text": ("even", "odd")[(a + b) % 2]} for a in range(10) for b in range(3)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))


def agreement(one: Path, other: Path, slugs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each phase: whether the order of the layers is the same, and the largest relative differences.

    `scores` and `measured` are numbers; `weights` is the largest ‖other − one‖ / ‖one‖ of a weight, None without a checkpoint.
    """
    found = {}
    for slug in slugs:
        first, second = (json.loads((folder / f"{slug}.json").read_text()) for folder in (one, other))
        found[slug] = {
            "same_plan": first.get("order") == second.get("order"),
            "same_best_step": first.get("best_step") == second.get("best_step"),
            **{name: apart(first.get(name, []), second.get(name, [])) for name in ("scores", "measured")},
            "weights": weights_apart(one / slug, other / slug) if (one / slug).is_dir() else None,
        }
    return found


def apart(first: Sequence[float], second: Sequence[float]) -> float:
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if not (math.isnan(a) and math.isnan(b))]
    return max((abs(a - b) / max(abs(a), 1e-12) for a, b in pairs), default=0.0)


def weights_apart(one: Path, other: Path) -> float:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    return max(((second[name] - weight).norm() / weight.norm()).item() for name, weight in first.items())
