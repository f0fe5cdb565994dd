"""The ready-made settings in configs/ are settings that their command takes, and say how they are run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from secateur.cli import main

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_the_command_in_a_recipe_takes_it(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = re.findall(r"^#   secateur (.*)$", recipe.read_text(), re.MULTILINE)
    monkeypatch.chdir(ROOT)
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
        assert f"[{recipe.stem}](../configs/{recipe.name})" in page
        assert f"--config configs/{recipe.name} " in page
