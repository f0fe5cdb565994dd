"""The ready-made settings in src/secateur/recipes are settings that their command takes, and say how they are run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from secateur.cli import main

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "src" / "secateur" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_the_command_in_a_recipe_takes_it(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = re.findall(r"^#   secateur (.*)$", recipe.read_text(), re.MULTILINE)
    monkeypatch.chdir(tmp_path)  # they come with the package, wherever one is
    assert main([*shlex.split(line), "--print-config"]) == 0
    assert lost(yaml.safe_load(recipe.read_text()), yaml.safe_load(capsys.readouterr().out)) == []


def lost(asked: dict[str, Any], taken: dict[str, Any]) -> list[str]:
    """Settings that are others, or missing."""
    found = []
    for name, value in asked.items():
        if isinstance(value, dict):
            found += lost(value, taken[name])
        elif taken[name] != (
            str(value) if name in ("drop", "layers") else value
        ):  # a number of layers is printed as text
            found.append(name)
    return found


def test_the_page_has_every_recipe_and_runs_it() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert len(RECIPES) >= 8
    for recipe in RECIPES:
        assert f"[{recipe.stem}](../src/secateur/recipes/{recipe.name})" in page
        assert f"--config {recipe.stem} " in page


def test_those_of_the_published_rows_say_that_they_are_untested() -> None:
    for recipe in RECIPES:
        assert ("# Untested at that size" in recipe.read_text(encoding="utf-8")) == recipe.stem.startswith("published-")


@pytest.mark.parametrize(
    ("words", "value", "remedy"),
    [
        ("prune --config general-smal", "general-smal is no file", "did you mean general-small?"),
        (
            "prune --config zzz",
            "zzz is no file",
            "give a YAML file of options or one of general-small, published-elder",
        ),
        ("prune --config configs/general.yaml", "configs/general.yaml is no file", "did you mean general-small?"),
        ("tune --config general-small", "made for secateur prune", "choose one of finance-classification"),
        ("cut --config general-small", "made for secateur prune", "give a YAML file of options"),
        ("cut --config=zzz", "zzz is no file", "give a YAML file of options"),
    ],
)
def test_a_name_that_is_none_is_refused_with_those_that_are(
    words: str, value: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert value in line
    assert remedy in line


def test_a_file_of_that_name_comes_first_and_a_folder_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["prune", "M", "--data=x", "--out=o", "--config", "quick-look", "--print-config"]
    (tmp_path / "quick-look").mkdir()
    assert main(words) == 0
    assert yaml.safe_load(capsys.readouterr().out)["method"] == "shortgpt"
    (tmp_path / "quick-look").rmdir()
    (tmp_path / "quick-look").write_text("method: sleb\n")
    assert main(words) == 0
    assert yaml.safe_load(capsys.readouterr().out)["method"] == "sleb"


def test_the_help_names_those_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for recipe in RECIPES:
        (command,) = re.findall(r"^#   secateur (\w+)", recipe.read_text(), re.MULTILINE)
        other = {"prune": "tune", "tune": "prune"}[command]
        for asked, there in ((command, True), (other, False)):
            assert main([asked, "--help"]) == 0
            said = "".join(capsys.readouterr().out.split())  # a name may be broken at a dash
            assert (recipe.stem in said) == there, recipe
