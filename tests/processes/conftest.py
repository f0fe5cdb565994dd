"""What all processes read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from launching import write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """Text, a task, and the tiny Llama; a module's own."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    shutil.copytree(tiny_checkpoint, folder / "checkpoint")
    return folder
