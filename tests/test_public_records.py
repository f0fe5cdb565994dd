"""The fields of what `--json` prints, which other people's programs read: those of tiny runs are those that are written down."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.cli import main
from tiny_models import ascii_tokenizer, tiny_llama

RECORDS = Path(__file__).parent / "public_records.txt"

_FREE = ("versions", "timings", "method.options", "recovery.settings", "training.settings")
"""Mappings whose names are those of packages, of stages, or of settings, which stand in `public_signatures.txt`."""

_BY_PLACE = {"git_revision": "null or str"}
"""What depends on where the tests run."""

_TEXT = ("--data", "{at}/text.txt", "--sequence-length=32", "--num-sequences=8")
_PRUNE = ("prune", "{model}", *_TEXT, "--num-eval-sequences=4")

RUNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "prune": (
        (*_PRUNE, "--method=sleb", "--max-ppl-increase=50%", "--recover=lora", "--recover-tokens=64", "--out={at}/pruned"),
        (*_PRUNE, "--method=replaceme", "--drop=2", "--out={at}/replaced"),
    ),
    "tune": (
        (
            "tune", "{model}", "--data={at}/task.jsonl", "--drop=2", "--train=lora", "--max-steps=2", "--num-train=16",
            "--num-validation=8", "--num-test=8", "--tune-dense", "--out={at}/tuned",
        ),
    ),
    "eval": (("eval", "{model}", "{at}/pruned", *_TEXT),),
    "bench": (("bench", "{model}", "{at}/pruned", "--repeats=1", "--prompt-tokens=8", "--new-tokens=4"),),
    "score": (("score", "{model}", "--method=shortgpt", *_TEXT, "--drop=2"),),
    "estimate": (
        ("estimate", "{model}", "--drop=2", "--hardware=h100"),
        ("estimate", "{model}", "--drop=2", "--num-train=100", "--mean-tokens=30", "--max-length=64"),
    ),
}  # fmt: skip
"""Command → runs of it, on a tiny model; a later one may read what an earlier one wrote."""


def fields(value: Any, name: str = "") -> Iterator[str]:
    """Each value in a record by its name and type: `models[].perplexity: float`."""
    if name in _FREE and value is not None:
        yield f"{name}: names to values"
    elif name in _BY_PLACE:
        yield f"{name}: {_BY_PLACE[name]}"
    elif isinstance(value, dict) and value:
        for key, item in value.items():
            yield from fields(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and value:
        for item in value:
            yield from fields(item, f"{name}[]")
    else:
        yield f"{name}: {'null' if value is None else type(value).__name__}"


def public_records(model: Path, at: Path) -> str:
    """Every command with the fields of what it prints with `--json`: a line each."""
    (at / "text.txt").write_text("".join(f"Sentence {n} says that {n} and {n} is {n + n}.\n\n" for n in range(200)))
    rows = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a in range(8) for b in range(5)]
    (at / "task.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines: list[str] = []
    for command, runs in RUNS.items():
        found: set[str] = set()
        for words in runs:
            with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
                assert main([*(word.format(model=model, at=at) for word in words), "--json", "--quiet"]) == 0, (
                    err.getvalue()
                )
            found |= {*fields(json.loads(out.getvalue()))}
        lines += [f"secateur {command}", *(f"    {line}" for line in sorted(found))]
    return "\n".join(lines) + "\n"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="what is written down is of a machine without a GPU")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
def test_the_fields_of_records_are_those_that_are_written_down(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A change of one is a change for users: see CONTRIBUTING.md; `python tests/test_public_records.py` writes them anew."""
    assert public_records(tiny_checkpoint, tmp_path) == RECORDS.read_text(encoding="utf-8")
    for out in ("pruned", "tuned"):
        record = json.loads((tmp_path / out / "secateur" / "record.json").read_text())
        said = {line.strip() for line in RECORDS.read_text(encoding="utf-8").splitlines()}
        assert {*fields(record)} < said


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny"
        tiny_llama().save_pretrained(tiny)
        ascii_tokenizer().save_pretrained(tiny)
        RECORDS.write_text(public_records(tiny, Path(folder)), encoding="utf-8")
