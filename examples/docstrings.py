"""A small real task that every Python can make: which part of the standard library does a docstring come from?

    python examples/docstrings.py task        # writes task/train.jsonl and task/test.jsonl

Each row is `text` (the first paragraph of a docstring) and `label_text` (the package), as `secateur tune --data task` reads them.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import random
import sys
from pathlib import Path

PACKAGES = ("asyncio", "email", "http", "logging", "multiprocessing", "unittest")
MOST = 120  # of one package


def main(folder: str | Path) -> None:
    """Collect, shuffle with a fixed seed, and write a fifth of the rows as the test set."""
    rows = [
        {"text": text, "label_text": package}
        for package in PACKAGES
        for text in sorted(paragraphs(package))[:: max(1, len(paragraphs(package)) // MOST)][:MOST]
    ]
    random.Random(0).shuffle(rows)  # noqa: S311  an order, no secret
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, part in (("test", rows[: len(rows) // 5]), ("train", rows[len(rows) // 5 :])):
        Path(folder, f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")


def paragraphs(package: str) -> set[str]:
    """The first paragraphs of the docstrings in a package, without those that name it."""
    root = importlib.import_module(package)
    names = [found.name for found in pkgutil.iter_modules(root.__path__, f"{package}.")]
    foreign = ("__main__", "windows", "win32")  # which run something when imported, or are another system's
    modules = [root, *(importlib.import_module(name) for name in names if not any(word in name for word in foreign))]
    texts = set()
    for module in modules:
        for owner in [module, *(item for _, item in inspect.getmembers(module, inspect.isclass))]:
            for _, item in inspect.getmembers(owner, inspect.isroutine):
                if (getattr(item, "__module__", None) or "").startswith(package):
                    text = " ".join((inspect.getdoc(item) or "").split("\n\n")[0].split())
                    if 5 <= len(text.split()) <= 60 and package not in text.lower():
                        texts.add(text)
    return texts


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "task")
