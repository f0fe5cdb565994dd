"""What is known of a pair of checkpoints, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from secateur.surgery.findings import Check

__all__ = ["show_check"]

_SIGNS = {True: "holds", False: "differs", None: "–"}


def show_check(check: Check, console: Console) -> None:
    """A row a finding; in the end what it comes to, if nothing differs."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("looked at", "", "found"):
        table.add_column(name, overflow="fold")
    for finding in check.findings:
        table.add_row(finding.what, _SIGNS[finding.holds], finding.words)
    console.print(table)
    if check.layer_by_layer:
        console.print("run with the layers on the disk, one in memory at a time", soft_wrap=True)
    if check.proven and check.dropped is not None:
        ran = all(finding.holds for finding in check.findings)
        console.print(
            f"{'proven' if ran else 'proven by the files alone'}: {check.pruned} is {check.dense} without "
            f"{'layers' if len(check.dropped) > 1 else 'layer'} {', '.join(map(str, check.dropped))}",
            soft_wrap=True,
        )
