"""What benchmarks/gpu/run.sh packs on one machine is what it unpacks on another, and what it is told wrong it says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu" / "run.sh"


def run(*arguments: object, inputs: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PART_SIZE": "1M"} | ({"INPUTS": str(inputs)} if inputs else {})
    return subprocess.run(
        [str(SCRIPT), *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    model, data = tmp_path / "a model", tmp_path / "data"
    (data / "wikitext2").mkdir(parents=True)
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(os.urandom(3 * 2**19))  # more than a part, and random bytes stay as many
    (data / "wikitext2" / "test.txt").write_text("a text")
    return model, data


def test_parts_are_small_enough_and_together_give_what_was_packed(sources: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = sources
    parts, inputs = tmp_path / "parts", tmp_path / "inputs"
    assert run("pack", model, data, parts).returncode == 0
    sizes = [part.stat().st_size for part in parts.glob("inputs.tar.gz.*")]
    assert len(sizes) == 2
    assert max(sizes) <= 2**20
    assert run("unpack", parts, inputs=inputs).returncode == 0
    for source, name in ((model, "model"), (data, "data")):
        files = [file.relative_to(source) for file in source.rglob("*") if file.is_file()]
        assert files
        assert all((inputs / name / file).read_bytes() == (source / file).read_bytes() for file in files)


def test_a_missing_or_damaged_part_is_named_and_nothing_is_unpacked(sources: tuple[Path, Path], tmp_path: Path) -> None:
    parts, inputs = tmp_path / "parts", tmp_path / "inputs"
    assert run("pack", *sources, parts).returncode == 0
    with (parts / "inputs.tar.gz.ab").open("r+b") as part:
        part.write(b"damage")
    said = run("unpack", parts, inputs=inputs)
    assert said.returncode == 2
    assert "inputs.tar.gz.ab" in said.stdout + said.stderr
    assert "bring it again" in said.stderr
    (parts / "inputs.tar.gz.ab").unlink()
    assert run("unpack", parts, inputs=inputs).returncode == 2
    assert not inputs.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "benchmarks/gpu/run.sh pack"),
        (("speeed",), "benchmarks/gpu/run.sh pack"),
        (("pack", "nowhere", ".", "parts"), "nowhere is no checkpoint directory"),
    ],
)
def test_a_wrong_request_ends_with_2_and_says_what_to_give(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert said in result.stdout + result.stderr
