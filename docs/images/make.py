"""Draw the README's picture from the record of a real run: python docs/images/make.py OUT/secateur/record.json."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from rich.console import Console

from secateur.report.console import show_pruned


def main(record: str) -> None:
    """Print what `secateur prune` printed at the end of that run, and keep it as an SVG."""
    console = Console(record=True, width=110, markup=False, emoji=False, highlight=False, force_terminal=True)
    show_pruned(json.loads(Path(record).read_text(encoding="utf-8")), "secateur-demo", console)
    picture = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="secateur demo"), flags=re.DOTALL)
    (Path(__file__).parent / "demo.svg").write_text(picture, encoding="utf-8")  # no font from elsewhere


if __name__ == "__main__":
    main(sys.argv[1])
