"""How sure a figure is: published intervals, and resampling."""

import math
import statistics

import pytest
import torch

from secateur.errors import RequestError
from secateur.evaluation.intervals import TaskResult, influence, paired_difference, standard_error, wilson


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
    assert paired_difference(result(a), result(a)) == (0, 0, 0)


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
