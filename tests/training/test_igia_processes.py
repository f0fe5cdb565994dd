"""Several processes (gloo, on the CPU) against one with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("scored_by_processes.py")


def scored(checkpoint: Path, folder: Path, processes: int, kind: str) -> list[dict[str, Any]]:
    folder.mkdir()
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *launch, str(SCRIPT), str(checkpoint), str(folder), kind],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sharded"), [("trainer", False), ("loop", True)], ids=["ddp", "fsdp2"])
def test_every_rank_has_the_scores_of_one_process_with_the_same_global_batch(tiny_checkpoint, tmp_path, kind, sharded):
    (alone,) = scored(tiny_checkpoint, tmp_path / "one", 1, kind)
    ranks = scored(tiny_checkpoint, tmp_path / "two", 2, kind)
    for rank in ranks:
        assert rank["sharded"] is sharded
        assert rank["scores"] == ranks[0]["scores"]
        assert rank["scores"] == pytest.approx(alone["scores"], rel=1e-4)
        assert rank["matrix"] == pytest.approx(alone["matrix"], rel=1e-4)
        assert rank["matrix"] == pytest.approx(rank["scores"][2], rel=1e-5)
