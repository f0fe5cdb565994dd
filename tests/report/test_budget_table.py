"""The table of a search: every row as it was measured, and which was taken."""

from __future__ import annotations

import io
import math

from rich.console import Console

from secateur.report.budget import budget_table
from secateur.report.card import model_card
from secateur.report.comparison import recovered_in_words


def rows_of(budget: dict) -> list[list[str]]:
    file = io.StringIO()
    Console(file=file, width=120).print(budget_table(budget))
    return [line.split() for line in file.getvalue().splitlines() if line.strip() and "──" not in line]


def test_perplexities_are_shown_with_their_increase_and_the_one_taken():
    trials = [
        {"num_dropped": 3, "dropped": [1, 2, 3], "perplexity": 19.8, "increase": 0.1},
        {"num_dropped": 4, "dropped": [1, 2, 3, 4], "perplexity": 23.45, "increase": 0.3028},
        {"num_dropped": 7, "dropped": [1], "perplexity": math.inf, "increase": None},
    ]
    budget = {"kind": "max_ppl_increase", "bound": 0.1, "chosen": 3, "trials": trials}
    assert rows_of(budget) == [
        ["layers", "dropped", "perplexity", "increase"],
        ["3", "19.80", "+10.0", "%", "taken"],
        ["4", "23.45", "+30.3", "%"],
        ["7", "–", "–"],
        ["asked", "for:", "at", "most", "+10", "%"],
    ]


def test_speeds_are_shown_with_the_smaller_of_both():
    trials = [{"num_dropped": 2, "dropped": [1, 2], "prefill": 1.4, "decode": 1.254, "speedup": 1.254}]
    budget = {"kind": "target_speedup", "bound": 1.25, "chosen": 2, "trials": trials}
    assert rows_of(budget) == [
        ["layers", "dropped", "prefill", "decode", "the", "smaller"],
        ["2", "×1.40", "×1.25", "×1.25", "taken"],
        ["asked", "for:", "at", "least", "×1.25"],
    ]


def test_recovery_is_one_line_on_the_card_too_and_nothing_where_there_was_none():
    metrics = {"dense": {"perplexity": 20.0}, "cut": {"perplexity": 45.25}, "pruned": {"perplexity": 38.111}}
    record = {"dropped": [1], "metrics": metrics, "recovery": {"kind": "lora", "steps": 8, "tokens": 32768}}
    words = "recovered (lora) on 32,768 tokens: perplexity 45.25 → 38.11"
    assert recovered_in_words(record) == words
    assert "8 steps on 32,768 tokens: perplexity 45.25 → 38.11" in model_card(record, "org/base")
    assert recovered_in_words({**record, "recovery": None}) is None
    assert "8 steps" not in model_card({**record, "recovery": None}, "org/base")
