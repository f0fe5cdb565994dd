"""A comparison on the tiny model and a small text of its own, as a YAML file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

TEXT = {"data": "${TEXT}", "sequence_length": 32, "num_sequences": 8, "num_eval_sequences": 4}
ELDER = {"method": "elder", "title": "ELDeR", "settings": {"joint_steps": 2, "steps": 2, "shortlist": 2}}


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"Sentence {n} says that {n} times {n} is {n * n}.\n\n" for n in range(300)))
    return path


@pytest.fixture(autouse=True)
def _places(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, text_file: Path) -> None:
    monkeypatch.setenv("MODEL", str(tiny_checkpoint))
    monkeypatch.setenv("TEXT", str(text_file))


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Writes a config; what is not given is small."""

    def write(**given: Any) -> Path:
        values = {"models": ["${MODEL}"], "text": TEXT, "methods": ["magnitude"], "drops": [2], **given}
        path = tmp_path / "compare.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not ...}))
        return path

    return write
