"""How a long step says how far it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from listening import Listener
from secateur.progress import duration, in_megabytes


@given(st.lists(st.integers(0, 5 * 10**6)))
def test_what_is_told_in_bytes_is_counted_in_whole_megabytes_and_comes_to_all_of_them(pieces: list[int]) -> None:
    listener = Listener()
    with in_megabytes(listener, "copying", sum(pieces)) as advance:
        for number, piece in enumerate(pieces, start=1):
            advance(piece)
            assert listener.steps[0][2] == sum(pieces[:number]) // 10**6
    assert listener.steps == [["copying (MB)", sum(pieces) // 10**6, sum(pieces) // 10**6]]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0, "1 s"), (40, "40 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h")]
)
def test_a_span_of_time_is_in_the_unit_that_people_would_take(seconds: float, words: str) -> None:
    assert duration(seconds) == words
