"""Ratios turn by turn, their spread and the ideal, computed by hand."""

from __future__ import annotations

import pytest

from secateur.evaluation.flops import Work
from secateur.evaluation.speed import Laps, Workload
from secateur.evaluation.speedup import speedups

ONE, FOUR, GRAPHS = Workload(), Workload(batch_size=4), Workload(cuda_graphs=True)
DENSE = Work(prefill_flops=3000, decode_flops=500, weight_bytes=900, cache_bytes=50)
PRUNED = Work(prefill_flops=2000, decode_flops=400, weight_bytes=700, cache_bytes=25)


def laps(*decode):
    return [Laps(prefill=2 * seconds, first_token=3 * seconds, decode=seconds) for seconds in decode]


def test_ratios_are_taken_turn_by_turn_with_median_and_quartiles():
    # The machine slows down threefold on the way: each ratio stands, a ratio of medians would be 3.6 / 1 = 3.6.
    dense, pruned = laps(1.2, 1.1, 3.6, 3.9, 4.0), laps(1.0, 1.0, 3.0, 3.0, 1.0)
    row = speedups({ONE: dense}, {ONE: pruned}, (DENSE, PRUNED))[2]
    assert (row.phase, row.batch_size, row.cuda_graphs) == ("decode", 1, False)
    assert row.turns == pytest.approx((1.2, 1.1, 1.2, 1.3, 4.0))
    assert (row.low, row.speedup, row.high) == pytest.approx((1.2, 1.2, 1.3))  # of 1.1 1.2 1.2 1.3 4.0


def test_one_turn_has_no_spread():
    row = speedups({ONE: laps(3.0)}, {ONE: laps(2.0)}, (DENSE, PRUNED))[0]
    assert (row.low, row.speedup, row.high) == (1.5, 1.5, 1.5)


def test_prefill_is_held_to_the_flops_and_decode_to_the_bytes_of_weights_and_every_sequences_cache():
    measured = {load: laps(1.3) for load in (ONE, FOUR)}, {load: laps(1.0) for load in (ONE, FOUR)}
    rows = {(row.phase, row.batch_size): row for row in speedups(*measured, (DENSE, PRUNED))}
    prefill, first, one, four = (
        rows[key] for key in (("prefill", 4), ("first_token", 1), ("decode", 1), ("decode", 4))
    )
    for row in (prefill, first):
        assert (row.ideal_flops, row.ideal_bytes) == (1.5, 900 / 700)
        assert row.of_ideal == pytest.approx(1.3 / 1.5)
    assert (one.ideal_flops, one.ideal_bytes) == (1.25, 950 / 725)
    assert four.ideal_bytes == 1100 / 800
    assert four.of_ideal == pytest.approx(1.3 / (1100 / 800))


def test_prompts_are_compared_once_because_graphs_only_write():
    measured = {load: laps(1.3) for load in (ONE, GRAPHS)}
    rows = speedups(measured, measured, (DENSE, PRUNED))
    assert [(row.phase, row.cuda_graphs) for row in rows] == [
        ("prefill", False), ("first_token", False), ("decode", False), ("decode", True),
    ]  # fmt: skip
