"""The tables of `bench`, figure by figure from a record written by hand."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from secateur.report.speed_table import format_flops, show_bench


def record() -> dict[str, Any]:
    def about(name: str, layers: int, seconds: float, memory: int | None) -> dict[str, Any]:
        speeds = [
            {"batch_size": batch, "cuda_graphs": graphs, "prefill_seconds": seconds * batch,
             "first_token_seconds": seconds * batch + 0.001, "decode_tokens_per_second": batch / seconds / (1 - graphs / 2)}
            for batch, graphs in ((1, False), (1, True))
        ]  # fmt: skip
        return {
            "model": name, "num_layers": layers, "num_parameters": layers * 1_000_000, "dtype": "bfloat16",
            "disk_bytes": layers * 2_000_000, "peak_memory_bytes": memory, "prefill_flops": 1_500_000_000,
            "decode_flops": 12_345_678, "weight_bytes": 5_000_000, "cache_bytes": 800, "speeds": speeds,
        }  # fmt: skip

    row = {"model": "small", "batch_size": 1, "cuda_graphs": False, "low": 1.2, "high": 1.345, "ideal_flops": 1.4,
           "ideal_bytes": 1.3}  # fmt: skip
    return {
        "settings": {"prompt_tokens": 128, "new_tokens": 32, "repeats": 5},
        "machine": {"device": "Some GPU", "threads": 2},
        "models": [about("big", 30, 0.1, 7_000_000_000), about("small", 22, 0.08, None)],
        "speedups": [
            {**row, "phase": "prefill", "speedup": 1.25, "of_ideal": 1.25 / 1.4},
            {**row, "phase": "decode", "speedup": 1.29, "of_ideal": 1.29 / 1.3},
            {**row, "phase": "decode", "speedup": 1.31, "of_ideal": 1.31 / 1.3, "cuda_graphs": True},
        ],
    }


def lines(width: int) -> list[str]:
    console = Console(file=StringIO(), width=width, markup=False, emoji=False, highlight=False)
    show_bench(record(), console)
    return console.file.getvalue().splitlines()


def test_each_model_has_its_sizes_and_what_was_not_measured_is_a_dash() -> None:
    rows = {line.strip().split("  ")[0]: line.split() for line in lines(80)}
    assert rows["layers"][-2:] == ["30", "22"]
    assert rows["parameters"][-4:] == ["30", "M", "22", "M"]
    assert rows["weights on disk"][-4:] == ["60", "MB", "44", "MB"]
    assert rows["peak memory, largest batch"][-3:] == ["7", "GB", "–"]
    assert rows["work of a prompt"][-4:] == ["1.5", "GFLOP", "1.5", "GFLOP"]


def test_each_phase_has_both_models_the_ratio_its_spread_and_the_ideals_in_80_columns() -> None:
    shown = lines(80)
    rows = [line.split() for line in shown if line.strip().startswith(("prefill ", "decode ", "… CUDA"))]
    assert rows[0] == ["prefill", "1", "100.0", "80.00", "1.25", "1.20–1.34", "1.40", "1.30", "89", "%"]
    assert rows[1] == ["decode", "1", "10.00", "12.50", "1.29", "1.20–1.34", "1.40", "1.30", "99", "%"]
    assert rows[2] == ["…", "CUDA", "graphs", "1", "20.00", "25.00", "1.31", "1.20–1.34", "1.40", "1.30", "101", "%"]
    assert any(line.strip() == "small against big" for line in shown)
    assert "128 prompt tokens, 32 new tokens, 5 turns, Some GPU, 2 threads, bfloat16" in shown


@pytest.mark.parametrize(
    ("flops", "text"), [(12, "12 FLOP"), (704_256, "704 kFLOP"), (2.5e9, "2.5 GFLOP"), (1.23e15, "1.23 PFLOP")]
)
def test_operations_have_three_figures_and_a_unit(flops: float, text: str) -> None:
    assert format_flops(flops) == text
