"""Every method on one protocol: the tables of docs/comparison.md, made from the cells that `secateur compare` has left.

    MODEL=… DATA=… secateur compare benchmarks/comparison.yaml --out benchmarks/results/comparison
    python benchmarks/compare.py tables        # rewrite the tables in docs/comparison.md from the results

How to run the first in pieces stands in comparison.yaml. Of its folder `compare.json`, `cells/` and `plots/` are kept in the
repository; the rest can be made again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cells import with_tables  # noqa: E402  (a script beside this one)
from secateur.compare.results import Results, Row  # noqa: E402
from secateur.compare.run import make_tables  # noqa: E402
from secateur.compare.tables import table  # noqa: E402

RESULTS = HERE / "results" / "comparison"
PAGE = HERE.parent / "docs" / "comparison.md"
PLOTS = "../benchmarks/results/comparison/plots"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tables")
    parser.parse_args()
    make_tables(RESULTS)
    PAGE.write_text(made_anew(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def made_anew(page: str) -> str:
    """The page with its tables made from the results."""
    rows = Results(RESULTS).rows()
    return with_tables(page, lambda name: part(name, rows))


def part(name: str, rows: list[Row]) -> str:
    """A table, or the plots; what there are no results for yet is said to be missing."""
    if name == "progress":
        return f"{sum(row.result is not None for row in rows)} of {len(rows)} cells are done."
    if name == "plots":
        plots = sorted((RESULTS / "plots").glob("*.svg"))
        return "\n\n".join(f"![{plot.stem}]({PLOTS}/{plot.name})" for plot in plots) or "No cell is done yet."
    return table(name, rows) or "No cell is done yet."


if __name__ == "__main__":
    main()
