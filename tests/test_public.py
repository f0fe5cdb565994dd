"""The public names, the registry's pages, and the tables in the docs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

import secateur
from secateur import errors
from secateur.methods import METHODS

ROOT = Path(__file__).parent.parent


def test_public_names_are_sorted_and_each_can_be_imported():
    assert secateur.__all__ == sorted(
        secateur.__all__, key=lambda name: (not name.isupper(), name.lower() == name, name)
    )
    assert sorted(secateur._HOME) == sorted(secateur.__all__)
    for name in secateur.__all__:
        assert getattr(secateur, name).__doc__ or name == "METHODS"


def test_every_error_is_public_and_stands_in_the_drawn_tree():
    for name in errors.__all__:
        assert name in secateur.__all__
        assert name in errors.__doc__


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_name_its_paper_and_a_page(name):
    method = METHODS[name]
    assert method.name == name
    assert method.paper
    page = ROOT / "docs" / "methods" / f"{name.removesuffix('-published')}.md"
    assert f"`{name}`" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "page", "row"),
    [
        ("elder", "methods/elder.md", "| `sleb` |"),
        ("gradpruner", "methods/gradpruner.md", "| dense |"),
        ("speed", "speed.md", "| decode |"),
        ("cut", "checkpoints.md", "| `secateur cut` |"),
        ("engines", "engines.md", "| cut | mlx "),
        ("faults", "reliability.md", "| `secateur prune` |"),
        ("ceiling", "speed.md", "## Against the ceiling"),
        ("estimates", "estimating.md", "## How near it comes"),
        ("two_processes", "scaling.md", "| eval: perplexity | yes |"),
        ("compare", "comparison.md", "| `elder` |"),
        ("choosing", "choosing.md", "| [`elder`](methods/elder.md) |"),
        ("compare", "comparison.md", "| calibrated on |"),
        ("compare", "../README.md", "| `elder` |"),
        ("references", "methods/shortgpt.md", "| order of all 30 layers | the same |"),
        ("references", "methods/sleb.md", "| choice of 3 of 30 layers | the same |"),
    ],
)
def test_the_tables_in_the_docs_are_those_made_from_the_result_files(name, page, row):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = benchmark  # dataclasses look their module up
    spec.loader.exec_module(benchmark)
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert benchmark.made_anew(text) == text
    assert row in text, "a table is empty"
