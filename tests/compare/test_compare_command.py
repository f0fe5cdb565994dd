"""`secateur compare` as a command: what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from secateur.cli import main
from secateur.compare.config import read_comparison
from secateur.compare.results import Results
from secateur.errors import RequestError
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


def test_quiet_says_the_same_on_standard_output_and_nothing_beside_it(config: Any, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "secateur", "compare", str(config()), "--out", str(tmp_path / "out")]
    quiet, loud = (
        subprocess.run([*words, *more], capture_output=True, text=True, check=True)
        for more in (["--quiet"], [])  # the second has nothing left to do
    )
    assert quiet.stderr == ""
    assert "next: " in loud.stderr
    assert "1 cells: 1 done" in loud.stdout
    assert quiet.stdout == loud.stdout


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


CELL = {"id": "a", "model": "m", "method": "x", "drop": 1, "recovery": "none", "seed": 0}


@pytest.mark.parametrize(
    ("index", "result", "says"),
    [
        ("{}", None, "compare.json is damaged (it has no cells); remove it, and run the comparison again"),
        ("[1]", None, "compare.json is damaged (it is not a mapping of names to values)"),
        ("{", None, "compare.json is damaged (Expecting property name"),
        ("[" * 100_000, None, "compare.json is damaged ("),
        ('{"cells": 3}', None, "compare.json is damaged (cells is '3')"),
        ('{"cells": [3]}', None, "compare.json is damaged (cells[0] is not a mapping"),
        ('{"cells": [{"id": "a"}]}', None, "compare.json is damaged (it has no cells[0].model)"),
        (json.dumps({"cells": [CELL]}), "{}", "cells/a.json is damaged (it has no request); remove it"),
        (json.dumps({"cells": [CELL]}), "[]", "cells/a.json is damaged (it is not a mapping"),
    ],
)
def test_tables_of_a_damaged_file_are_refused_in_one_line_that_names_it_and_what_it_lacks(
    tmp_path: Path, capsys: Any, index: str, result: str | None, says: str
) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "compare.json").write_text(index)
    if result is not None:
        (tmp_path / "cells" / "a.json").write_text(result)
    assert main(["compare", "--tables", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}/{says}")
    assert said.count("\n") == 1
    assert "report" not in said


@pytest.mark.parametrize(
    ("names", "value", "says"),
    [
        (("metrics", "pruned", "nll"), ..., "it has no metrics.pruned.nll"),
        (("metrics", "dense"), None, "metrics.dense is not a mapping of names to values"),
        (("metrics", "pruned", "tasks"), {"arc": {"value": 0.5}}, "it has no metrics.pruned.tasks.arc.stderr"),
        (("tokens", "trained_after_cut"), "many", "tokens.trained_after_cut is 'many'"),
        (("timings", "seconds"), {"load": None}, "timings.seconds.load is 'None'"),
        (("timings", "speed"), {"prefill": 1.2}, "it has no timings.speed.decode"),
        (("timings", "speed"), "fast", "timings.speed is not a mapping of names to values"),
    ],
)
def test_a_cell_that_lacks_a_field_is_named_with_the_field_by_tables_and_by_compare(
    config: Any, tmp_path: Path, capsys: Any, names: tuple[str, ...], value: Any, says: str
) -> None:
    out = tmp_path / "out"
    assert main(["compare", str(config()), "--out", str(out), "--quiet"]) == 0
    capsys.readouterr()
    file = out / "cells" / f"{NAMES[0]}.json"
    made = inner = json.loads(file.read_text())
    for name in names[:-1]:
        inner = inner[name]
    if value is ...:
        del inner[names[-1]]
    else:
        inner[names[-1]] = value
    file.write_text(json.dumps(made))
    for words in (["--tables", str(out)], [str(config()), "--out", str(out), "--dry-run"]):
        assert main(["compare", *words]) == 2
        said = capsys.readouterr().err
        assert said == (
            f"error: {file} is damaged ({says}); remove it, and run the comparison again, which makes it anew\n"
        )
    file.unlink()
    assert main(["compare", str(config()), "--out", str(out), "--quiet"]) == 0  # the remedy


def test_tables_of_a_file_in_place_of_a_folder_are_refused_in_one_line(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["compare", "--tables", str(tmp_path / "file")]) == 2
    said = capsys.readouterr().err
    assert said == f"error: {tmp_path}/file holds no comparison (it has no compare.json); give its folder\n"


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


@pytest.mark.parametrize(
    ("kind", "content", "says"),
    [
        ("dense", "{}", "it has no request"),
        ("dense", '{"request": {}, "value": 3}', "value is '3'"),
        ("plans", '{"request": {}, "plan": {}}', "it has no plan.order"),
        ("plans", "[", "Expecting value"),
    ],
)
def test_what_was_computed_once_and_is_damaged_is_named_with_the_remedy(
    tmp_path: Path, kind: str, content: str, says: str
) -> None:
    results = Results(tmp_path)
    results.open()
    (tmp_path / kind / "a.json").write_text(content)
    with pytest.raises(
        RequestError, match=rf"{kind}/a\.json is damaged \({says}.*\); remove it, and run the comparison again"
    ):
        results.once(kind, "a", {}, dict)
