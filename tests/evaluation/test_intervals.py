"""How sure a figure is: published intervals, and resampling."""

import math
import statistics

import pytest
import torch

from secateur.errors import RequestError
from secateur.evaluation.intervals import (
    TaskResult,
    influence,
    paired_difference,
    smallest_shown,
    standard_error,
    wilson,
)


def result(outcomes, *, metric="accuracy", weights=None):
    weights = tuple(weights or [1] * len(outcomes))
    mean = sum(w * x for w, x in zip(weights, outcomes, strict=True)) / sum(weights)
    return TaskResult(
        metric=metric,
        value=math.exp(mean) if metric == "perplexity" else mean,
        interval=(math.nan, math.nan),
        greater_is_better=metric != "perplexity",
        further={},
        outcomes=tuple(outcomes),
        weights=weights,
    )


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_wilson_interval_is_as_published(right, count, low, high):
    """Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3."""
    assert wilson(right / count, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson(1 - right / count, count) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_equal_weights_give_the_standard_error_of_a_mean():
    values = [1.0, 2.5, 4.0, 0.5]
    assert standard_error(influence(values, [3] * 4)) == pytest.approx(statistics.stdev(values) / 2)


def test_unequal_weights_give_the_standard_error_that_resampling_items_finds():
    draw = torch.Generator().manual_seed(0)
    weights = torch.randint(1, 20, (400,), generator=draw)
    values = torch.randn(400, generator=draw).double() + 5 / weights
    picks = torch.randint(400, (4000, 400), generator=draw)
    means = (weights * values)[picks].sum(1) / weights[picks].sum(1)
    error = standard_error(influence(values.tolist(), weights.tolist()))
    assert error == pytest.approx(means.std().item(), rel=0.05)


def test_the_paired_difference_is_the_mean_of_the_items_differences():
    a, b = [1.0, 1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 1.0]
    differences = [x - y for x, y in zip(a, b, strict=True)]
    margin = 1.959964 * statistics.stdev(differences) / math.sqrt(5)
    assert paired_difference(result(a), result(b)) == pytest.approx((0.2, 0.2 - margin, 0.2 + margin), rel=1e-6)


@pytest.mark.parametrize("count", [1, 6, 60, 1000])
def test_where_no_item_differs_the_share_that_may_is_the_one_of_which_none_is_seen_in_one_of_twenty(count):
    outcomes = [1.0, 0.0] * (count // 2) or [1.0]
    difference, low, high = paired_difference(result(outcomes), result(outcomes))
    assert difference == 0
    assert (1 - high) ** count == pytest.approx(0.05)
    assert low == -high
    if count == 1000:
        assert high == pytest.approx(3 / count, rel=0.01)  # the rule of three
    assert paired_difference(*[result(outcomes, metric="perplexity")] * 2) == (
        pytest.approx((0, 0, 0)) if count > 1 else pytest.approx((0, math.nan, math.nan), nan_ok=True)
    )


def test_where_all_items_differ_alike_some_may_not():
    right, wrong = result([1.0] * 6), result([0.0] * 6)
    others = 1 - 0.05 ** (1 / 6)
    assert paired_difference(right, wrong) == pytest.approx((1, 1 - 2 * others, 1))
    assert paired_difference(wrong, right) == pytest.approx((-1, -1, -1 + 2 * others))
    assert paired_difference(result([1.0]), result([0.0])) == pytest.approx((1, math.nan, math.nan), nan_ok=True)


def test_the_difference_of_two_shares_is_no_more_than_one():
    half, none = result([1.0, 0.0]), result([0.0, 0.0])
    assert paired_difference(half, none) == (0.5, pytest.approx(0.5 - 1.959964 * 0.5), 1)
    assert paired_difference(none, half) == (-0.5, -1, pytest.approx(-0.5 + 1.959964 * 0.5))


def test_the_smallest_difference_shown_is_the_first_whose_interval_leaves_out_none():
    for count in range(3, 120):
        shown = [
            number
            for number in range(1, count)
            if paired_difference(result([1.0] * number + [0.0] * (count - number)), result([0.0] * count))[1] > 0
        ]
        assert smallest_shown(count) == min(shown) / count
    assert (smallest_shown(1), smallest_shown(2), smallest_shown(6)) == (1, 1, 0.5)


def test_the_difference_of_perplexities_is_as_sure_as_resampling_items_finds():
    draw = torch.Generator().manual_seed(0)
    weights = torch.randint(1, 20, (400,), generator=draw)
    hard = torch.rand(400, generator=draw).double() * 3
    a, b = (hard + torch.rand(400, generator=draw).double() * noise for noise in (0.5, 0.2))
    picks = torch.randint(400, (4000, 400), generator=draw)
    resampled = [((weights * x)[picks].sum(1) / weights[picks].sum(1)).exp() for x in (a, b)]
    spread = (resampled[0] - resampled[1]).std().item()
    results = [result(x.tolist(), metric="perplexity", weights=weights.tolist()) for x in (a, b)]
    difference, low, high = paired_difference(*results)
    assert difference == results[0].value - results[1].value
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.05)
    assert difference - low == pytest.approx(high - difference)


def test_results_that_do_not_pair_are_refused():
    with pytest.raises(RequestError, match="cannot compare accuracy with rouge_l"):
        paired_difference(result([1.0]), result([1.0], metric="rouge_l"))
    with pytest.raises(RequestError, match=r"other items \(1 and 2\)"):
        paired_difference(result([1.0]), result([1.0, 0.0]))
