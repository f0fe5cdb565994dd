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
        "phase": name, "trains": False, "shards": 1, "tokens": 1_048_576_000, "flops": 17.6e21,
        "weights_bytes": 1_623 * GB, "gradients_bytes": 1_623 * GB,
        "moments_bytes": 3_246 * GB, "kept_bytes": 0, "activations_bytes": 987_654 * 10**6, "memory_bytes": 7_480 * GB,
        "seconds": 359_640.0, **more,
    }  # fmt: skip


def estimate(*phases: dict[str, Any], **more: Any) -> dict[str, Any]:
    memory = max(phase["memory_bytes"] for phase in phases)
    return {
        "command": "prune", "num_layers": 32, "method": "elder", "drop": 8, "dtype": "bfloat16", "devices": 1, "sharded": False,
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
    assert " ".join(row.split()) == "cut and prove 1.049 B 1.62 TB 4.87 TB 988 GB 7.48 TB 99.9 h"
    assert max(map(len, (head, row))) <= 80


SMALL = {"weights_bytes": 16 * GB, "gradients_bytes": 0, "moments_bytes": 0, "memory_bytes": 20 * GB}
FITS = phase("measure", **SMALL)
ALL_WEIGHTS = phase("prepare", **{**SMALL, "trains": True, "moments_bytes": 64 * GB, "memory_bytes": 100 * GB})
BOTH = phase("cut and prove", **{**SMALL, "kept_bytes": 70 * GB, "memory_bytes": 90 * GB})
TOO_LARGE = phase("choose", **{**SMALL, "weights_bytes": 141 * GB, "memory_bytes": 143 * GB})
LONG = phase("choose", **{**SMALL, "activations_bytes": 90 * GB, "memory_bytes": 110 * GB})


@pytest.mark.parametrize(
    ("over", "advised", "not_advised"),
    [
        ([ALL_WEIGHTS], ["--sharded", "LoRA"], ["--device-map"]),
        ([BOTH], ["secateur score", "secateur cut"], ["--sharded", "--device-map"]),
        ([TOO_LARGE, BOTH], ["secateur score (and eval) --device-map auto", "secateur cut"], ["--sharded", "LoRA"]),
        ([TOO_LARGE, ALL_WEIGHTS], ["--device-map auto", "secateur cut"], ["--sharded"]),
        ([LONG, BOTH], ["--batch-size", "--sequence-length"], ["--sharded", "--device-map"]),
    ],
)
def test_what_does_not_fit_says_what_makes_room_and_sharding_only_where_a_training_is_too_large(
    over: list[dict[str, Any]], advised: list[str], not_advised: list[str]
) -> None:
    said = shown(estimate(FITS, *over)).split("it does NOT fit:")[1]
    assert all(word in said for word in advised)
    assert not any(word in said for word in not_advised)
