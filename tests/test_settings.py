"""What settings may be: each rule at its bounds, and the line that a broken one says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from secateur.errors import RequestError
from secateur.settings import check_above_zero, check_at_least, check_choices, check_divides, check_shares


@dataclass
class Settings:
    number: float | None = None
    whole: int = 12
    choice: Literal["a", "b"] = "a"
    perhaps: Literal["a", "b"] | None = None


RULES: dict[str, tuple[Callable[[Settings], None], tuple[Any, ...], tuple[Any, ...], str]] = {
    "above zero": (
        lambda settings: check_above_zero(settings, "whole", "number"),
        (1, 5e-324, None), (0, -1.5, math.nan, math.inf), "number must be above 0, not {:g}",
    ),
    "at least": (
        lambda settings: check_at_least(settings, 2, "whole", "number"),
        (2, 2.5, None), (1, math.nan, math.inf), "number must be 2 or more, not {:g}",
    ),
    "shares": (
        lambda settings: check_shares(settings, "number"),
        (0, 0.5, 1, None), (-0.1, 1.1, math.nan), "number is a share, not {:g}; choose 0..1",
    ),
    "divides": (
        lambda settings: check_divides(settings, "number", "whole"),
        (1, 6, 12, None), (5, 24), "number={} does not divide whole=12",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_number_within_the_bounds_passes_and_one_beyond_is_refused_by_name_and_value(rule: str) -> None:
    check, right, wrong, message = RULES[rule]
    for number in right:
        check(Settings(number=number))
    for number in wrong:
        with pytest.raises(RequestError) as caught:
            check(Settings(number=number))
        assert str(caught.value) == message.format(number)


def test_choices_are_those_that_the_types_name() -> None:
    check_choices(Settings(choice="b"), "choice", "perhaps")
    for wrong, name in ((Settings(choice="c"), "choice"), (Settings(perhaps="c"), "perhaps")):  # type: ignore[arg-type]
        with pytest.raises(RequestError, match=f"{name} is one of a, b, not 'c'"):
            check_choices(wrong, "choice", "perhaps")
    with pytest.raises(RequestError, match="choice is one of a, b, not 'None'"):
        check_choices(Settings(choice=None), "choice")  # type: ignore[arg-type]
