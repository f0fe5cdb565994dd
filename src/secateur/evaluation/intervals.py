"""One figure of a model on a task, how sure it is, and how sure its difference from another model's is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from secateur.errors import DataError, RequestError

if TYPE_CHECKING:
    from secateur.data.examples import Examples

__all__ = [
    "TaskResult",
    "Z",
    "at_least_one",
    "influence",
    "paired_difference",
    "smallest_shown",
    "standard_error",
    "wilson",
]

Z = 1.959963984540054
"""Standard errors to either side of the mean that hold the normal distribution's middle 95 %."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One figure of a model on a task, how sure it is, and each item's share in it."""

    metric: str
    """`accuracy`, `perplexity`, `rouge_l`, or `rouge_l_bertscore` for the mean of the two."""

    value: float
    """The figure: the weighted mean of `outcomes`, or exp of it for perplexity."""

    interval: tuple[float, float]
    """Its 95 % interval over items; NaN where one item says nothing about others."""

    greater_is_better: bool
    """Whether the better of two models has the larger value."""

    further: dict[str, float | None]
    """What else was measured; None for what could not be."""

    outcomes: tuple[float, ...] = field(repr=False)
    """One number an item, in their order: 1 right and 0 wrong, nats a token, or the score."""

    weights: tuple[int, ...] = field(repr=False)
    """What each item counts for: the tokens of its completion for perplexity, else 1."""

    @property
    def num_items(self) -> int:
        """Items scored."""
        return len(self.outcomes)

    def describe(self) -> dict[str, Any]:
        """What a record says about this result: everything but the items."""
        return {
            "metric": self.metric,
            "value": self.value,
            "interval": list(self.interval),
            "num_items": self.num_items,
            "greater_is_better": self.greater_is_better,
            **self.further,
        }


def paired_difference(a: TaskResult, b: TaskResult) -> tuple[float, float, float]:
    """`a.value − b.value` of two models on the same items, and its 95 % interval (difference, low, high).

    Items that are hard for both do not widen it, as they do in each model's own interval. Normal approximation of the
    items' differences; for perplexity their effect on each value to first order (the delta method).

    Shares of which every item differs alike, as where no item differs at all, have no spread to go by: what is known is that
    the share of other items is at most 1 − 0.05^(1/n), by 95 % (about 3/n), and each of those differs by 1 at most either way.

    Raises:
        RequestError: if the two are of other metrics or other items.
    """
    if a.metric != b.metric:
        raise RequestError(f"cannot compare {a.metric} with {b.metric}; score both models by one metric")
    if a.weights != b.weights:
        raise RequestError(
            f"the results are of other items ({a.num_items} and {b.num_items}) or another tokenizer; "
            "score both models on the same"
        )
    alike = {x - y for x, y in zip(a.outcomes, b.outcomes, strict=True)}
    if a.metric != "perplexity" and len(alike) == 1 and (alike == {0.0} or a.num_items > 1):
        others, each = 1 - 0.05 ** (1 / a.num_items), alike.pop()
        return each, each - others * (1 + each), each + others * (1 - each)
    effects = [
        influence(result.outcomes, result.weights) * (result.value if result.metric == "perplexity" else 1.0)
        for result in (a, b)
    ]
    difference = a.value - b.value
    margin = Z * standard_error(effects[0] - effects[1])
    most = 1.0 if a.metric == "accuracy" else math.inf  # of a few items the approximation goes beyond what can be
    return difference, max(difference - margin, -most), min(difference + margin, most)


def smallest_shown(num_items: int) -> float:
    """The smallest difference of two accuracies whose 95 % interval on so many items leaves out 0, a share.

    That is if no item differs the other way: k of n items do so where k/n > z²/(n − 1 + z²).
    """
    least = math.floor(num_items * Z * Z / (num_items - 1 + Z * Z)) + 1
    return min(least, num_items) / num_items


def at_least_one(examples: Examples) -> Examples:
    """The examples, of which a figure needs one.

    Raises:
        DataError: if there is none.
    """
    if not len(examples):
        raise DataError("there are no items to score; give one or more")
    return examples


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` (Wilson 1927), which also near 0 and 1 stays within them."""
    spread = Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def influence(outcomes: Sequence[float], weights: Sequence[int]) -> Tensor:
    """How far each item takes the mean Σwx/Σw from where it is: w·(x − mean)/Σw, (items,) float64."""
    values, shares = torch.tensor(outcomes, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)
    shares = shares / shares.sum()
    return shares * (values - (shares * values).sum())


def standard_error(influence: Tensor) -> float:
    """The ratio estimator's standard error; of equal weights that of a mean, s/√n. NaN for one item."""
    count = len(influence)
    return math.sqrt(count / (count - 1) * influence.square().sum().item()) if count > 1 else math.nan
