"""The speeds in a run's record, by a fake clock."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.evaluation import speed
from secateur.evaluation.speed import Laps
from secateur.methods import Cost, Run
from secateur.progress import Silent
from secateur.stages import add_speed, preflight, tokens_per_second


@pytest.mark.parametrize(
    ("context", "prompt_tokens", "new_tokens"), [(512, 128, 24), (64, 40, 24), (20, 10, 10), (2, 1, 1), (1, 0, 0)]
)
def test_speeds_are_tokens_over_median_seconds_of_as_many_tokens_as_the_context_has_room_for(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, context: int, prompt_tokens: int, new_tokens: int
) -> None:
    seconds = iter([9.0, 9.0, 2.0, 4.0, 1.0, 5.0, 9.0, 3.0])  # dense and pruned in turn: a warm-up, then three turns

    def time_once(_: Any, prompt: Any, *__: Any, **___: Any) -> Laps:
        assert prompt.shape == (1, prompt_tokens)
        taken = next(seconds)
        return Laps(prefill=taken, first_token=0.0, decode=2 * taken)

    monkeypatch.setattr(speed, "time_once", time_once)
    tiny_model.config.max_position_embeddings = context
    dense: dict[str, Any] = {}
    pruned: dict[str, Any] = {}
    add_speed(dense, pruned, tiny_model, tiny_model, Silent())
    if not new_tokens:
        assert dense == pruned == {}
        return
    for metrics, median, turns in ((dense, 2.0, (2.0, 1.0, 9.0)), (pruned, 4.0, (4.0, 5.0, 3.0))):
        assert metrics == {
            "prefill_tokens_per_second": prompt_tokens / median,
            "decode_tokens_per_second": new_tokens / (2 * median),
            "prefill_tokens_per_second_by_turn": [prompt_tokens / turn for turn in turns],
            "decode_tokens_per_second_by_turn": [new_tokens / (2 * turn) for turn in turns],
        }


def test_the_speed_of_a_run_is_that_of_the_fastest_pass_of_a_few(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Any
) -> None:
    """By a clock of ours: one pass of 4 s, then 1.5, 0.25 and 1 s; after 2 s no further one begins."""
    now = iter([0.0, 0.0, 4.0, 4.0])
    monkeypatch.setattr("secateur.stages.time.perf_counter", lambda: next(now))
    ids = torch.arange(3, 35).unsqueeze(0)
    assert tokens_per_second(Decoder(tiny_model), ids, Run()) == pytest.approx(32 / 4)
    now = iter([0.0, 0.0, 1.5, 1.5, 1.5, 1.75, 1.75, 1.75, 2.75, 2.75])
    assert tokens_per_second(Decoder(tiny_model), ids, Run()) == pytest.approx(32 / 0.25)


@pytest.mark.parametrize(
    ("cost", "measures", "said"),
    [
        (Cost(), True, "1 thousand tokens of forward passes to measure with, none to choose by, about"),
        (Cost(), False, "no tokens of forward passes to choose by, about"),
        (Cost(choose_tokens=500), False, "500 tokens of forward passes, about"),
        (Cost(choose_tokens=9000), True, "10 thousand tokens of forward passes, about"),
        (
            Cost(prepare_tokens=9000, training_tokens=1500),
            True,
            "10 thousand tokens of forward passes or their like (1,500 tokens trained on), about",
        ),
    ],
)
def test_the_line_ahead_counts_the_passes_and_says_which_there_are_none_of(
    tiny_model: Any, cost: Cost, measures: bool, said: str
) -> None:
    windows = TokenBatches(torch.arange(3, 67).repeat(6).view(6, 64), batch_size=2, spec="made up")
    assert f", {said} " in preflight(Decoder(tiny_model), windows, windows, cost, Run(), measures=measures)
