"""What `secateur doctor` found, as a table of the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table
from rich.text import Text

__all__ = ["findings_table"]

_STYLES = {"ok": "green", "missing": "dim", "warning": "yellow"}


def findings_table(findings: Iterable[tuple[str, str, str]]) -> Table:
    """A row a finding.

    Args:
        findings: what was looked at, `ok`, `missing` or `warning`, and what is to be said.
    """
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "", "found"):
        table.add_column(name, overflow="fold")
    for what, state, says in findings:
        table.add_row(Text(what), Text(state, style=_STYLES[state]), Text(says))
    return table
