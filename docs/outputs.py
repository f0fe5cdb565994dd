"""Run the README's commands and write what they print into it: python docs/outputs.py CHECKPOINT [NAME …].

CHECKPOINT is the sample model that `secateur demo` caches. Each block between `<!-- output: NAME -->` and `<!-- end -->` becomes
the command and its real output; names given afterwards limit which.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"

COMMANDS = {
    "prune": "secateur prune MODEL --method shortgpt --data python-docs --num-sequences 16 --drop 20% --out smaller",
    "score": "secateur score MODEL --method shortgpt --data python-docs --num-sequences 16 --drop 25%",
    "tune": "python examples/docstrings.py task && "
    "secateur tune MODEL --data task --drop 20% --train full --num-train 240 --num-validation 40 --num-test 60 "
    "--epochs 2 --learning-rate 1e-4 --out tuned",
    "eval": "secateur eval MODEL smaller --data python-docs --num-sequences 16",
    "config": "secateur prune MODEL --config run.yaml --layers 12-14 --out smaller-too",
    "python": "python example.py",
}
"""What runs, in one temporary directory, in this order; MODEL stands for the checkpoint."""

WHOLE = ("score",)
"""Where every layer is shown."""


def main(checkpoint: str, names: list[str]) -> None:
    """Run and rewrite."""
    text = README.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run.yaml").write_text(_block(text, "yaml"), encoding="utf-8")
        example = _block(text, "python")
        (Path(folder) / "example.py").write_text(example, encoding="utf-8")
        (Path(folder) / "MODEL").symlink_to(Path(checkpoint).absolute())
        (Path(folder) / "examples").symlink_to(README.parent / "examples")
        for name, command in COMMANDS.items():
            if names and name not in names:
                continue
            done = subprocess.run(  # noqa: S602  the commands stand above
                command, shell=True, cwd=folder, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"error: {command}: {done.stderr}")
            lines = [line for line in done.stdout.splitlines() if line.strip()]
            printed = "\n".join(lines if name in WHOLE else shortened(lines))
            language, shown = ("text", printed) if name == "python" else ("console", f"$ {command}\n{printed}")
            block = f"<!-- output: {name} -->\n```{language}\n{shown}\n```\n<!-- end -->"
            text = re.sub(rf"<!-- output: {name} -->.*?<!-- end -->", lambda _, new=block: new, text, flags=re.DOTALL)
            README.write_text(text, encoding="utf-8")


def shortened(lines: list[str]) -> list[str]:
    """The lines, of more than eight layers in a row the first three and the last two, and how many there are between."""
    found: list[str] = []
    for of_a_layer, group in itertools.groupby(lines, lambda line: bool(re.match(r" +\d+ .*(kept|dropped)$", line))):
        rows = list(group)
        if of_a_layer and len(rows) > 8:
            rows = [*rows[:3], f"    …  {len(rows) - 5} more layers", *rows[-2:]]
        found += rows
    return found


def _block(text: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    assert found, f"README.md has no {language} block"  # noqa: S101
    return found[1]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
