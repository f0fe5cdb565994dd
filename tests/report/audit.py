"""Hold report pages to axe-core's rules, in light and dark and at two widths.

    python tests/report/audit.py OUT/secateur/report.html

prints each finding as impact, rule, element and reason, and ends with 1 if one of them is serious or critical. With
`--pictures DIR` it leaves what each looked like. axe-core is that of the package axe-core-python; a newer one is had by
`npm pack axe-core`, and given as `--axe` or by the environment as AXE.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from browser import Page, browser


def _axe() -> Path | None:
    """The file of axe-core: AXE, or what the package axe-core-python brings."""
    if named := os.environ.get("AXE"):
        return Path(named)
    package = importlib.util.find_spec("axe_core_python")
    return Path(package.origin).with_name("axe.min.js") if package and package.origin else None


AXE = _axe()
WIDTHS = (1280, 390)
GRAVE = ("serious", "critical")


def findings(page: Page, axe: str) -> list[dict[str, Any]]:
    """What axe-core finds on the page that is open, every disclosure opened."""
    page.value("document.querySelectorAll('details').forEach(part => part.open = true)")
    page.value(axe)
    run = "axe.run(document, {resultTypes: ['violations']}).then(found => found.violations)"
    found: list[dict[str, Any]] = page.value(run)
    return found


def views(page: Page, file: Path) -> Iterator[str]:
    """Show the page in each way in turn; the name of the way."""
    for width in WIDTHS:
        for dark in (False, True):
            page.open(file, width=width, dark=dark)
            yield f"{width}-{'dark' if dark else 'light'}"


def described(finding: dict[str, Any]) -> str:
    """A finding in two lines: what and how bad, then the first place and the reason."""
    first = finding["nodes"][0]
    return (
        f"  {finding['impact']} {finding['id']} ×{len(finding['nodes'])}: {finding['help']}\n"
        f"    {first['target'][0]}: {' '.join(first['failureSummary'].split())}"
    )


def main() -> int:
    """Audit the pages that are named."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("pages", type=Path, nargs="+")
    parser.add_argument("--axe", type=Path, default=AXE, help="axe.min.js, as of npm pack axe-core")
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    if options.axe is None:
        parser.error("axe-core is not here: pip install axe-core-python, or give --axe axe.min.js")
    axe, grave = options.axe.read_text(encoding="utf-8"), 0
    with browser() as page:
        for file in options.pages:
            for view in views(page, file):
                if options.pictures:
                    options.pictures.mkdir(parents=True, exist_ok=True)
                    name = f"{file.resolve().parent.parent.name}-{view}.png"
                    (options.pictures / name).write_bytes(page.picture())
                found = findings(page, axe)
                grave += sum(each["impact"] in GRAVE for each in found)
                print(f"{file} {view}: {len(found)} findings", *map(described, found), sep="\n")  # noqa: T201
    return 1 if grave else 0


if __name__ == "__main__":
    sys.exit(main())
