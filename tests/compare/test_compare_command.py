"""`secateur compare` as a command: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from secateur.cli import main
from secateur.compare.config import read_comparison
from secateur.methods import METHODS

NAMES = ["tiny-llama--magnitude--drop2--none--seed0", "tiny-llama--random--drop2--none--seed0"]


def test_dry_run_lists_the_cells_and_does_nothing(config: Any, tmp_path: Path, capsys: Any) -> None:
    path, out = str(config(methods=["magnitude", "random"])), str(tmp_path / "out")
    assert main(["compare", path, "--out", out, "--dry-run", "--quiet"]) == 0
    assert capsys.readouterr().out == f"left     {NAMES[0]}\nleft     {NAMES[1]}\n2 cells: 2 left\n"
    assert not Path(out).exists()
    assert main(["compare", path, "--out", out, "--only", "*--random--*", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["compare", path, "--out", out, "--dry-run", "--quiet"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [f"left     {NAMES[0]}", f"done     {NAMES[1]}"]


def test_it_prints_the_tables_and_tables_makes_the_same_again(config: Any, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert main(["compare", str(config()), "--out", str(out), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    text = (out / "table.md").read_text()
    assert text in captured.out
    plot = (out / "plots" / "tiny-llama-parameters.svg").read_bytes()
    for file in (out / "table.md", *(out / "plots").iterdir()):
        file.unlink()
    assert main(["compare", "--tables", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == [
        str(out / "table.md"), str(out / "plots" / "tiny-llama-parameters.svg")
    ]  # fmt: skip
    assert (out / "table.md").read_text() == text
    assert (out / "plots" / "tiny-llama-parameters.svg").read_bytes() == plot


def test_a_failed_cell_gives_exit_code_1_one_line_and_the_rest(
    config: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("it broke")

    monkeypatch.setattr(METHODS["random"], "plan", broken)
    path, out = str(config(methods=["random", "magnitude"])), str(tmp_path / "out")
    assert main(["compare", path, "--out", out, "--quiet", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: 1 of 2 cells failed, {NAMES[1]} first: ValueError: it broke (")
    assert captured.err.count("\n") == 1
    shown = json.loads(captured.out)
    assert shown["cells"] == {NAMES[1]: "failed", NAMES[0]: "done"}
    assert shown["errors"] == {NAMES[1]: "ValueError: it broke"}
    assert (shown["done"], shown["failed"], shown["left"]) == (1, 1, 0)


def test_where_nobody_watches_in_a_terminal_each_cell_is_a_line_with_what_is_left(
    config: Any, tmp_path: Path, capsys: Any
) -> None:
    assert main(["compare", str(config(methods=["magnitude", "random"])), "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().err.splitlines()
    about = [line for line in lines if line.startswith("tiny-llama--")]
    assert [line.partition(":")[0] for line in about] == NAMES
    assert "; 1 done, 1 left, about " in about[0]
    assert about[1].endswith("; 2 done, 0 left")


ROOT = Path(__file__).parent.parent.parent
CONFIGS = [ROOT / "examples" / "compare.yaml", *sorted((ROOT / "benchmarks").rglob("*.yaml"))]


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if "tasks" not in path.parts], ids=lambda path: str(path.relative_to(ROOT))
)
def test_the_configs_of_this_repository_are_right(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", "model")
    monkeypatch.setenv("DATA", "data")
    assert read_comparison(path).blocks
    assert yaml.safe_load(path.read_text())["models"]
