"""Two processes (gloo, on the CPU) against one with the same global batch, and what is left when one of them dies.

`benchmarks/two_processes.py` does the same with every phase; here are those that have least in common.
"""

from __future__ import annotations

import filecmp
import subprocess
from pathlib import Path

import pytest
from launching import agreement, launched, launched_by_two
from phases import slug

pytestmark = pytest.mark.slow

SCORED = [f"choose: {name}" for name in ("shortgpt", "angular", "sleb", "shortened-taylor", "laco", "elder (stage 1)")]
TRAINED = ["prune: elder (absorb, distil)", "prune: gradpruner (merge)", "recover: distill", "tune: full"]
PHASES = [*SCORED, "eval: perplexity", *TRAINED]

ROUNDING = 1e-6
"""Relative, of a weight's norm: float32 rounds at 6e-8, and the gradient of a step is summed in another order. A step on half of
the rows would be off by a thousand times as much."""


def run(kind: str, inputs: Path, out: Path, phases: list[str], processes: int, **how: bool) -> Path:
    out.mkdir()
    done = launched("phases.py", kind, str(inputs), str(out), *phases, processes=processes, **how)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def one_process(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run("plain", inputs, tmp_path_factory.mktemp("one") / "out", PHASES, 1)


@pytest.mark.parametrize(("kind", "phases"), [("plain", PHASES), ("fsdp2", TRAINED)], ids=["ddp", "fsdp2"])
def test_two_processes_leave_the_plan_of_one_and_its_weights_to_rounding(
    one_process: Path, inputs: Path, tmp_path: Path, kind: str, phases: list[str]
) -> None:
    two = run(kind, inputs, tmp_path / "two", phases, 2)
    for phase, found in agreement(one_process, two, [slug(phase) for phase in phases]).items():
        assert found["same_plan"], phase
        assert found["same_best_step"], phase
        assert found["scores"] < 1e-4, phase  # IGIA squares gradients that are small at first
        assert found["measured"] < ROUNDING, phase
        assert found["weights"] is None or found["weights"] < ROUNDING, phase


def test_two_machines_leave_the_plan_of_one_process_and_its_weights_to_rounding(
    one_process: Path, inputs: Path, tmp_path: Path
) -> None:
    """What both see is the inputs and the output."""
    (tmp_path / "two").mkdir()
    phases = ["choose: sleb", *TRAINED]
    words = ("plain", str(inputs), str(tmp_path / "two"), *phases)
    for code, said in launched_by_two("phases.py", *words, folder=tmp_path):
        assert code == 0, said[-3000:]
    for phase, found in agreement(one_process, tmp_path / "two", [slug(phase) for phase in phases]).items():
        assert found["same_plan"], phase
        assert found["same_best_step"], phase
        assert found["measured"] < ROUNDING, phase
        assert found["weights"] is None or found["weights"] < ROUNDING, phase


def test_one_process_under_fsdp_writes_whole_weights(one_process: Path, inputs: Path, tmp_path: Path) -> None:
    """As `accelerate launch` starts it for one GPU, where FSDP can have weights wait in the CPU's memory."""
    phases = ["recover: distill", "tune: full"]
    sharded = run("fsdp2", inputs, tmp_path / "sharded", phases, 1, by_launcher=True)
    for phase, found in agreement(one_process, sharded, [slug(phase) for phase in phases]).items():
        assert found["same_plan"], phase
        assert found["same_best_step"], phase
        assert found["weights"] < ROUNDING, phase


@pytest.mark.parametrize(
    ("rank", "stage", "how", "said"),
    [
        ("0", "cut and prove", "bug", "error: ZeroDivisionError: had enough"),
        ("1", "prepare", "killed", "error: another process ended; the report of the launcher says which, and how"),
    ],
)
def test_a_process_that_dies_ends_all_with_its_message_once_and_leaves_nothing_half_written(
    inputs: Path, tmp_path: Path, rank: str, stage: str, how: str, said: str
) -> None:
    options = [f"--data={inputs / 'train.txt'}", "--sequence-length=32", "--num-sequences=8", "--num-eval-sequences=2"]
    words = ["prune", str(inputs / "checkpoint"), "--drop=2", f"--out={tmp_path / 'out'}", *options]
    done = launched("dying.py", "plain", rank, stage, how, *words, processes=2)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "interrupted: "))]
    assert len(lines) == 1
    # The launcher ends the others too, and on a busy machine before they have missed the one that was killed.
    assert lines[0].startswith((said, "interrupted: ") if how == "killed" else said)
    assert {path.name for path in tmp_path.iterdir()} <= {"out.work"}  # to go on from


@pytest.mark.parametrize("kind", ["plain", "fsdp2"])
def test_a_training_that_was_killed_goes_on_in_as_many_processes_to_the_bytes_of_the_undisturbed(
    inputs: Path, tmp_path: Path, kind: str
) -> None:
    def tuned(out: str, when: str, *more: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
        options = ["--train=full", "--max-steps=4", "--batch-size=4", "--drop=2", *more]
        options += ["--checkpoint-minutes=0", f"--data={inputs / 'sums.jsonl'}", f"--out={tmp_path / out}"]
        words = ["tune", str(inputs / "checkpoint"), "--method=shortgpt", *options]
        return launched(
            "dying.py", kind if processes > 1 else "plain", "1", when, "killed", *words, processes=processes
        )

    undisturbed = tuned("undisturbed", "never")
    assert undisturbed.returncode == 0, undisturbed.stderr[-3000:]
    assert tuned("out", "checkpoint 2").returncode != 0
    alone = tuned("out", "never", "--resume", processes=1)
    assert alone.returncode == 2
    assert "had another number of processes (" in alone.stderr
    resumed = tuned("out", "never", "--resume")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert same_file(*(tmp_path / out / "model.safetensors" for out in ("undisturbed", "out")))


def same_file(one: Path, other: Path) -> bool:
    return filecmp.cmp(one, other, shallow=False)
