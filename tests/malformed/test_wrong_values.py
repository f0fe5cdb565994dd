"""A value that an option cannot have is one line with that value, before any model is read."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import pytest
from wrong_values import wrong_values

import secateur.assessment
import secateur.benchmark
import secateur.forecast
import secateur.pipeline
import secateur.tuning  # noqa: F401 (these are what reads models)
from secateur import cli

CASES = list(wrong_values())
REMEDIES = ("choose", "expects", "must be", " is one of ", " is a ", " has no option ", "--help")


class ReachedTheModelError(BaseException):
    """The request was taken for a good one."""


@pytest.fixture
def base(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What each command needs, all of it right; a model that is read nevertheless ends the test."""

    def load_model(*_: object, **__: object) -> None:
        raise ReachedTheModelError

    for module in list(sys.modules.values()):
        if module.__name__.startswith("secateur") and hasattr(module, "load_model"):
            monkeypatch.setattr(module, "load_model", load_model)
    monkeypatch.setattr(cli, "_parser", _parser)
    text, task, out = tmp_path / "text.txt", tmp_path / "task.jsonl", str(tmp_path / "out")
    text.write_text("\n\n".join(f"Paragraph {number} is about the number {number}." for number in range(200)))
    rows = [{"text": f"item {number}", "label_text": ("even", "odd")[number % 2]} for number in range(60)]
    task.write_text("\n".join(map(json.dumps, rows)))
    model, windows = str(tiny_checkpoint), ["--sequence-length", "32", "--num-sequences", "4"]
    return {
        "demo": ["--out", out],
        "score": [model, "--data", str(text), *windows],
        "prune": [model, "--data", str(text), "--drop", "2", "--out", out, *windows],
        "tune": [model, "--data", str(task), "--drop", "2", "--out", out],
        "cut": [model, "--layers", "1", "--out", out],
        "check": [model, model],
        "carry": [model, "--plan", "plan.json", "--out", out],
        "eval": [model, "--data", str(text)],
        "bench": [model, model],
        "compare": ["comparison.yaml", "--out", out],
        "estimate": [model, "--drop", "2"],
    }


original = functools.cache(cli._parser)


def _parser(command: str, _: object) -> object:
    return original(command)


@pytest.mark.parametrize(("command", "words", "value"), CASES, ids=[f"{case[0]} {case[1][-1]}" for case in CASES])
def test_a_wrong_value_is_one_line_that_names_it_before_any_model_is_read(
    command: str,
    words: list[str],
    value: str,
    base: dict[str, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([command, *base[command], *words]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    named = "no_such_setting" if "no_such_setting" in value else value
    assert line.startswith("error: ")
    assert named in line
    assert any(remedy in line for remedy in REMEDIES), line
    assert said.out == ""
    assert not (tmp_path / "out").exists()


def test_the_base_is_right_and_reads_the_model(base: dict[str, list[str]]) -> None:
    """Else every case would fail for another reason than its value."""
    for command in ("score", "prune", "tune", "eval"):
        with pytest.raises(ReachedTheModelError):
            cli.main([command, *base[command]])


def test_every_kind_of_wrong_value_is_among_the_cases() -> None:
    assert len(CASES) > 500
    assert {value for _, _, value in CASES} == {
        "x", "1.5", "-1", "nan", "inf", "maybe", '{"no_such_setting": 1}', "[1]", "no-such"
    }  # fmt: skip
