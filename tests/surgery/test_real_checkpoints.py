"""Real checkpoints, cut file to file and proven: `SECATEUR_CHECKPOINTS=FOLDER`, a folder a model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from secateur.surgery.check import check_pair
from secateur.surgery.files import cut_checkpoint

FOLDER = Path(os.environ.get("SECATEUR_CHECKPOINTS", "."))
CHECKPOINTS = (
    sorted(path.parent for path in FOLDER.glob("*/config.json")) if "SECATEUR_CHECKPOINTS" in os.environ else []
)


@pytest.mark.real
@pytest.mark.skipif(not CHECKPOINTS, reason="SECATEUR_CHECKPOINTS names no folder of checkpoints")
@pytest.mark.parametrize("dense", CHECKPOINTS, ids=lambda path: path.name)
@pytest.mark.parametrize("dropped", [(1, 2), (0,), (-1,)], ids=["middle", "first", "last"])
def test_a_real_checkpoint_without_some_layers_computes_what_it_computes_with_them_bypassed(
    dense: Path, dropped: tuple[int, ...], tmp_path: Path
) -> None:
    if dropped == (-1,):
        dropped = (cut_checkpoint(dense, tmp_path / "unused", (0,), dry_run=True).num_layers - 1,)
    cut_checkpoint(dense, tmp_path / "pruned", dropped)
    found = check_pair(dense, tmp_path / "pruned")
    assert found.proven
    assert found.dropped == dropped
