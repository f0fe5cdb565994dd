"""A page's `secateur` commands, run as they stand where its names are files: on a tiny model, little text, for few steps."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from documents import Block
from secateur import PruningPlan, cli
from secateur.cli.recipes import settings_file

READ_ONLY = {
    "secateur demo": "reads its model from the hub; tests/test_sample.py",
    "--converter": "a script of llama.cpp's; tests/surgery/test_convert.py",
    "--tasks": "data sets of the hub; tests/evaluation/test_harness.py",
    ".gguf": "a file that tests/surgery/test_gguf.py writes, and cuts",
    "--max-memory 0=": "needs GPUs; tests/test_placement.py",
    "--hardware h100": "forecasts for models of billions; tests/estimation",
    "--hardware a100": "the same",
}
"""What is in a command that is only read, by its parser → why, and which test has the rest."""

_TEXT = ("--num-sequences", "2", "--sequence-length", "32")
_SHORT: dict[str, Sequence[str]] = {
    "score": _TEXT,
    "prune": (*_TEXT, "--num-eval-sequences", "2"),
    "eval": _TEXT,
    "bench": ("--prompt-tokens", "8", "--new-tokens", "4", "--repeats", "3", "--no-memory"),
    "tune": ("--num-train", "12", "--num-validation", "4", "--num-test", "4", "--max-length", "64"),
}
"""Command → what makes it short."""

_LEARNT = re.compile(r"\bmethod:? (elder(?:-published)?)\b(?!.*\.steps)", re.DOTALL)
"""A method that takes many steps, but for those that a page tells it to take."""

_PLAN = json.dumps(PruningPlan(num_layers=30, order=(12, 25)).as_json())
ROWS = [
    {
        "prompt": f"say {n}:",
        "completion": f" {n}{n}",
        "text": f"Paragraph {n} tells of {n * n} things, and of {n % 7} more.",
    }
    for n in range(300)
]


def dense(place: Path, model: Path) -> None:
    """A checkpoint of that name."""
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(model)


def pruned(place: Path, model: Path) -> None:
    """What `prune` leaves."""
    words = ("prune", str(model), "--method", "random", "--drop", "3", "--data", "python-docs", "--out", str(place))
    assert cli.main([*words, *_SHORT["prune"], "--quiet"]) == 0


def adapter(place: Path, model: Path) -> None:
    """What was trained of the dense model."""
    settings = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), settings).save_pretrained(place)


def rows(place: Path, _: Path) -> None:
    """Text, and a task."""
    file = place if place.suffix else place / "rows.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")


def plan(place: Path, _: Path) -> None:
    """Of a model of 30 layers."""
    place.write_text(_PLAN, encoding="utf-8")


def empty(place: Path, _: Path) -> None:
    """A file that is only named."""
    place.touch()


THERE: dict[str, Callable[[Path, Path], None]] = {
    **dict.fromkeys(("MODEL", "DENSE", "CHECKPOINT", "HuggingFaceTB/SmolLM2-135M-Instruct", "secateur-demo"), dense),
    **dict.fromkeys(("PRUNED", "smaller", "OUT-1", "OUT-2", "OUT-3"), pruned),
    "ADAPTER": adapter,
    "SPEC": rows,
    "task.jsonl": rows,
    "plan.json": plan,
    "convert_hf_to_gguf.py": empty,
}
"""What a page may name and a reader would have by then → who makes it."""


def prepare(blocks: Sequence[Block], folder: Path, model: Path) -> None:
    """Make what a page's blocks name; what is made of the model only where a command names it, as Python makes its own."""
    everywhere = "\n".join(block.text for block in blocks)
    commands = " ".join(word for block in blocks if block.is_shell for words in block.commands() for word in words)
    for name, make in THERE.items():
        if re.search(rf"(?<![\w/-]){re.escape(name)}(?![\w-])", commands if make is pruned else everywhere):
            make(folder / name, model)


def why_read_only(words: Sequence[str]) -> str | None:
    """The part of `READ_ONLY` that a command has."""
    return next((part for part in READ_ONLY if part in " ".join(words)), None)


def run(words: Sequence[str]) -> int:
    """Run a command in the folder of someone who follows a page; the value is its exit code."""
    for flag, name in pairwise(words):
        if flag == "--out" and Path(name).is_dir():
            shutil.rmtree(name)  # of the command before; a reader follows one of the two
    asked, short = " ".join(words) + _settings_of(words), _SHORT.get(words[1], ())
    if re.search("--recover |recover:", asked):
        short = (*short, "--recover-tokens", "128")
    if words[1] == "prune" and (learnt := _LEARNT.search(asked)):
        short = (*short, f"--{learnt[1]}.steps", "2")
    return cli.main([*words[1:], *short])


def _settings_of(words: Sequence[str]) -> str:
    """What the file says that a command names by --config, or the method that is taken where it names none."""
    files = [settings_file(file, words[1]) for flag, file in pairwise(words) if flag == "--config"]
    named = [Path(file).read_text(encoding="utf-8") for file in files]
    return "\n".join(named) or ("" if "--method" in words else "method: elder")
