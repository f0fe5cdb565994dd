"""An estimate in a terminal of 80 columns."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from secateur.report.estimate_table import show_estimate

GB = 10**9


def phase(name: str, **more: Any) -> dict[str, Any]:
    return {
        "phase": name, "tokens": 1_048_576_000, "flops": 17.6e21, "weights_bytes": 1_623 * GB, "gradients_bytes": 1_623 * GB,
        "moments_bytes": 3_246 * GB, "kept_bytes": 0, "activations_bytes": 987_654 * 10**6, "memory_bytes": 7_480 * GB,
        "seconds": 359_640.0, **more,
    }  # fmt: skip


def estimate(*phases: dict[str, Any], **more: Any) -> dict[str, Any]:
    memory = max(phase["memory_bytes"] for phase in phases)
    return {
        "num_layers": 32, "method": "elder", "drop": 8, "dtype": "bfloat16", "devices": 1, "sharded": False,
        "hardware": {"name": "h100", "flops_per_second": 396e12, "memory_bytes": 80 * GB, "measured": False},
        "memory_bytes": memory, "fits": memory <= 80 * GB, "seconds": 30.0, "phases": phases, **more,
    }  # fmt: skip


def shown(found: dict[str, Any], width: int = 80) -> str:
    file = io.StringIO()
    show_estimate(found, Console(file=file, width=width, force_terminal=False, markup=False, emoji=False))
    return file.getvalue()


def test_the_widest_figures_and_all_headings_are_whole_in_80_columns() -> None:
    text = shown(estimate(phase("cut and prove"), phase("measure")))
    head, _, row = [line for line in text.splitlines() if line.strip()][:3]
    assert "…" not in text
    assert head.split() == ["phase", "tokens", "weights", "training", "passing", "peak", "time"]
    assert row.split() == "cut and prove 1.049 B 1.62 TB 4.87 TB 988 GB 7.48 TB 99.9 h".split()
    assert max(map(len, (head, row))) <= 80
