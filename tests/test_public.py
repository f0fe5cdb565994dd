"""The public names, the registry's pages, and the tables in the docs."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur import cli, errors
from secateur.methods import METHODS

ROOT = Path(__file__).parent.parent
SIGNATURES = Path(__file__).parent / "public_signatures.txt"
OPTIONS = Path(__file__).parent / "public_options.txt"


def public_signatures() -> str:
    """Every public name with its parameters, and the public members of classes with theirs: a line each."""
    lines: list[str] = []
    for name in secateur.__all__:
        thing = getattr(secateur, name)
        if isinstance(thing, dict):
            lines += [name, *(f"    {key}" for key in thing)]
        elif isinstance(thing, type) and issubclass(thing, Exception):
            lines.append(f"{name}({', '.join(base.__name__ for base in thing.__bases__)})")
        else:
            lines += [name, *(f"    {part}" for part in _parameters(thing))]
            lines += [f"  .{line}" for line in _members(thing)] if isinstance(thing, type) else []
    return "\n".join(lines) + "\n"


def _parameters(thing: Any) -> Iterator[str]:
    """`name: type = default`, `*` before those that are given by name; a dataclass's fields, with types as they are written."""
    named = False
    if dataclasses.is_dataclass(thing):
        for field in dataclasses.fields(thing):
            if field.kw_only and not named:
                yield "*"
            named = named or field.kw_only
            made = field.default_factory is not dataclasses.MISSING
            yield _parameter(field.name, field.type, field.default_factory() if made else field.default)
        return
    signature = inspect.signature(thing)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not named:
            yield "*"
        named = named or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        yield _parameter(str(parameter).partition(":")[0].partition("=")[0], parameter.annotation, parameter.default)
    if not isinstance(thing, type):
        yield f"-> {signature.return_annotation}"


def _parameter(name: str, annotation: Any, default: Any) -> str:
    typed = name if annotation is inspect.Parameter.empty else f"{name}: {annotation}"
    if default is dataclasses.MISSING or default is inspect.Parameter.empty:
        return typed
    return f"{typed} = " + re.sub(r"<(\S+) object at \w+>", r"\1()", repr(default))


def _members(thing: type) -> Iterator[str]:
    """The public methods and properties that it or a base of secateur's defines."""
    ours = [base for base in thing.__mro__ if base.__module__.startswith("secateur.")]
    for name in sorted({name for base in ours for name in vars(base) if not name.startswith("_")}):
        member = inspect.getattr_static(thing, name)
        if isinstance(member, property):
            yield f"{name}: {member.fget.__annotations__['return']}"
        elif isinstance(member, (classmethod, staticmethod)) or inspect.isfunction(member):
            function = getattr(member, "__func__", member)
            yield f"{name}({', '.join(_parameters(function))})".replace(", -> ", ") -> ")[:-1]


def public_options() -> str:
    """Every command with its words and options as they are typed, and the settings of methods once: a line each."""
    lines: list[str] = []
    of_methods: dict[str, None] = {}
    for command in cli.COMMANDS:
        lines.append(f"secateur {command}")
        for action in cli._parser(command)._actions:
            typed = ", ".join(name.replace("_", "-") for name in action.option_strings) or str(action.metavar)
            setting = typed.startswith("--") and typed[2:].partition(".")[0] in METHODS
            if not setting:
                lines.append(f"    {typed}")
            elif "." in typed:
                of_methods[f"    {typed}"] = None
    return "\n".join([*lines, "settings of methods", *of_methods]) + "\n"


def test_public_options_are_those_that_are_written_down():
    """The same of the commands' options: `python tests/test_public.py` writes them anew."""
    assert public_options() == OPTIONS.read_text(encoding="utf-8")


def test_public_signatures_are_those_that_are_written_down():
    """A change of one is a change for users: see CONTRIBUTING.md; `python tests/test_public.py` writes them anew."""
    assert public_signatures() == SIGNATURES.read_text(encoding="utf-8")


def test_public_names_are_sorted_and_each_can_be_imported():
    assert secateur.__all__ == sorted(
        secateur.__all__, key=lambda name: (not name.isupper(), name.lower() == name, name)
    )
    assert sorted(secateur._HOME) == sorted(secateur.__all__)
    for name in secateur.__all__:
        assert getattr(secateur, name).__doc__ or name == "METHODS"


def test_every_extra_for_users_is_in_the_readme():
    extras = set(metadata("secateur").get_all("Provides-Extra")) - {"dev", "docs"}
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("\nExtras, as in")[2].partition("\n\n")[0]
    assert extras <= set(re.findall(r"`(\w+)` \(", text))
    assert "eval" in extras


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
        ("estimates", "estimating.md", "| `shortgpt`, `--recover distill` | 13.9"),
        ("allocator", "scaling.md", "| LoRA |"),
        ("weights_once", "scaling.md", "| `gradpruner` | 1.73 B |"),
        ("two_processes", "scaling.md", "| eval: perplexity | yes |"),
        ("compare", "comparison.md", "| `elder` |"),
        ("choosing", "choosing.md", "| [`elder`](methods/elder.md) |"),
        ("compare", "comparison.md", "| calibrated on |"),
        ("compare", "../README.md", "| `elder` |"),
        ("compare", "methods/sleb.md", "| `random` | 93.08 ± 3.39 |"),
        ("references", "methods/shortgpt.md", "| order of all 30 layers | the same |"),
        ("references", "methods/sleb.md", "| SmolLM2-135M | 3 of 30 | the same |"),
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


if __name__ == "__main__":
    SIGNATURES.write_text(public_signatures(), encoding="utf-8")
    OPTIONS.write_text(public_options(), encoding="utf-8")
