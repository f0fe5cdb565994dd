"""A broken checkpoint, plan or file is one line that names it, and nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from damage import NEEDS_WEIGHTS, OF_CONFIG, OF_TOKENIZER, OF_WEIGHTS, PLANS, SETTINGS, TASKS, TEXTS

from secateur.cli import main

REMEDIES = ("; ", "--help", "must be", " is not ")
CHECKPOINTS = {**OF_CONFIG, **OF_WEIGHTS, **OF_TOKENIZER}
READ_TEXT = ("prune", "eval", "tune")
COMMANDS = (*READ_TEXT, "cut", "check", "check as pruned", "check --files-only", "bench", "estimate")

AS_PRUNED = ("check as pruned", "check --files-only")
"""Commands that are given the cut model as the one that is broken."""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a text and a task, both good."""
    text = "\n\n".join(f"Paragraph {number} is about the number {number}." for number in range(200))
    (tmp_path / "text.txt").write_text(text)
    rows = [{"text": f"item {number}", "label_text": ("even", "odd")[number % 2]} for number in range(60)]
    (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.fixture(scope="module")
def cut_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint without its layer 1."""
    out = tmp_path_factory.mktemp("cut") / "model"
    assert main(["cut", str(tiny_checkpoint), "--layers", "1", "--out", str(out), "--quiet"]) == 0
    return out


def words_of(command: str, checkpoint: Path, good: Path, files: Path) -> list[str]:
    """The command on a checkpoint, everything else right."""
    model, out = str(checkpoint), str(files / "out")
    text = ["--data", str(files / "text.txt"), "--sequence-length", "32", "--num-sequences", "4"]
    return {
        "prune": ["prune", model, *text, "--method", "shortgpt", "--drop", "2", "--out", out],
        "eval": ["eval", model, *text[:2]],
        "tune": ["tune", model, "--data", str(files / "task.jsonl"), "--drop", "2", "--out", out],
        "cut": ["cut", model, "--layers", "1", "--out", out],
        "check": ["check", model, str(good)],
        "check as pruned": ["check", str(good), model],
        "check --files-only": ["check", str(good), model, "--files-only"],
        "bench": ["bench", model, str(good)],
        "estimate": ["estimate", model, "--drop", "2"],
    }[command]


def needs(command: str, damage: str) -> bool:
    """Whether the command reads what is broken."""
    if damage in OF_TOKENIZER:
        return command in READ_TEXT
    return command != "estimate" or (damage in OF_CONFIG and damage not in NEEDS_WEIGHTS)


@pytest.mark.parametrize(
    ("command", "damage"),
    [(command, damage) for damage in CHECKPOINTS for command in COMMANDS if needs(command, damage)],
)
def test_a_broken_checkpoint_is_one_line_that_names_it(
    command: str,
    damage: str,
    tiny_checkpoint: Path,
    cut_checkpoint: Path,
    files: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken, is_cut = files / "broken-model", command in AS_PRUNED
    shutil.copytree(cut_checkpoint if is_cut else tiny_checkpoint, broken)
    CHECKPOINTS[damage](broken)
    words = words_of(command, broken, tiny_checkpoint if is_cut else cut_checkpoint, files)
    refused(words, "llama model" if command == "estimate" and "activation" in damage else "broken-model", files, capsys)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("command", ["cut", "carry"])
def test_a_broken_plan_is_one_line(
    command: str, plan: str, tiny_checkpoint: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(files / "the-plan.json", PLANS[plan])
    words = [command, str(tiny_checkpoint), "--plan", str(files / "the-plan.json"), "--out", str(files / "out")]
    refused(words, "", files, capsys)


@pytest.mark.parametrize("task", TASKS)
def test_a_broken_task_is_one_line(
    task: str, tiny_checkpoint: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(files / "task.jsonl", TASKS[task])
    refused(words_of("tune", tiny_checkpoint, tiny_checkpoint, files), "", files, capsys)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("command", ["prune", "eval"])
def test_a_broken_text_is_one_line(
    command: str, text: str, tiny_checkpoint: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(files / "text.txt", TEXTS[text])
    refused(words_of(command, tiny_checkpoint, tiny_checkpoint, files), "", files, capsys)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("command", ["prune", "tune"])
def test_a_broken_settings_file_is_one_line(
    command: str, settings: str, tiny_checkpoint: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(files / "settings.yaml", SETTINGS[settings])
    words = words_of(command, tiny_checkpoint, tiny_checkpoint, files)
    refused([*words, "--config", str(files / "settings.yaml")], "", files, capsys)


def written(file: Path, content: bytes | None) -> None:
    """The file with the content; none if None."""
    if content is None:
        file.unlink(missing_ok=True)
    else:
        file.write_bytes(content)


def refused(words: list[str], named: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run it: one line with the name and a remedy, exit code 1 or 2, and nothing at the output."""
    code = main([*words, "--quiet"])
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert code in (1, 2), said
    assert len(said.err.splitlines()) == 1, said.err
    (line,) = lines
    assert "please report" not in line
    assert named in line
    assert any(remedy in line for remedy in REMEDIES), line
    assert said.out == "" or words[0] == "check"  # its findings are a table
    assert not [place for place in files.iterdir() if place.name.startswith("out")]
