"""What the page and the card say was done to the weights, against what the record says."""

from __future__ import annotations

from typing import Any

import pytest
from made_up_runs import run

from secateur.report.card import model_card
from secateur.report.page import report_page
from secateur.report.weights import changed_in_words, dense_in_words, weight_changes

ABSORBED = {"layers": [3, 4], "into": 2, "alpha": 0.3, "error_before": 0.06144, "error_after": 0.02365}
TRAINED = {"steps": 32, "tokens": 16384, "losses": []}
RECOVERED = {"kind": "lora", "steps": 4, "tokens": 512, "rate": 0.001}


def record(**changes: Any) -> dict[str, Any]:
    return {
        "dropped": [3, 4],
        "method": {"name": "elder", "options": {"train": "full", "learning_rate": 1e-4, "distil": 0.5}},
        "data": {"spec": "/home/me/python.txt"},
        "eval_data": {"spec": "/home/me/other.txt"},
        "metrics": {"cut": {"perplexity": 45.25}, "pruned": {"perplexity": 38.111}},
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "clause"),
    [
        ({}, ""),
        ({"preparation": {}}, ""),
        (
            {"preparation": {"training": TRAINED}},
            "what stays was trained on 16,384 tokens of python.txt, the dense model was not",
        ),
        ({"recovery": RECOVERED}, "what stays was trained on 512 tokens of python.txt, the dense model was not"),
        (
            {"preparation": {"absorb": [ABSORBED], "training": TRAINED}, "recovery": RECOVERED},
            "what stays was fitted to stand for what went and trained on 16,384 tokens of python.txt before the cut and 512 "
            "tokens after it, the dense model was not",
        ),
        ({"preparation": {"folds": [{"into": 2, "layers": [3]}]}}, "what stays was merged with what went"),
    ],
)
def test_the_clause_equals_the_words_by_hand(changes: dict[str, Any], clause: str) -> None:
    assert changed_in_words(record(**changes)) == clause


def test_every_change_is_in_the_order_that_it_was_made_in() -> None:
    merge = {"layer": 5, "into": 2, "entries": 1000, "added": 200}
    preparation = {"absorb": [ABSORBED, {"layers": [0, 0], "into": None}], "merge": [merge], "training": TRAINED}
    done = weight_changes(record(preparation=preparation, recovery=RECOVERED))
    assert [(each.when, each.what, each.how) for each in done] == [
        ("before the cut", "layers 3–4 absorbed by layer 2", "relative error of its output 0.0614 → 0.0237"),
        ("before the cut", "layer 5 merged into layer 2", "200 of 1,000 entries were added"),
        ("before the cut", "all weights trained, the dense model as teacher",
         "32 steps on 16,384 tokens of python.txt, learning rate up to 0.0001"),
        ("after the cut", "low-rank adapters trained, then merged",
         "4 steps on 512 tokens of python.txt, learning rate up to 0.001: perplexity 45.25 → 38.11"),
    ]  # fmt: skip


def test_a_fine_tuning_is_a_change_and_says_nothing_of_the_dense_model() -> None:
    training = {"settings": {"train": "lora", "learning_rate": 2e-4}, "steps": 8}
    tuned = record(training=training, data={"train": {"spec": "sums.jsonl", "examples": 16}})
    (done,) = weight_changes(tuned)
    assert (done.what, done.how) == (
        "fine-tuned with LoRA", "8 steps on 16 examples of sums.jsonl, learning rate up to 0.0002",
    )  # fmt: skip
    assert dense_in_words(tuned) == changed_in_words(tuned) == ""


def test_training_on_the_text_that_is_measured_on_is_said() -> None:
    other, same = (record(recovery=RECOVERED, eval_data={"spec": spec}) for spec in ("b.txt", "/home/me/python.txt"))
    assert "The dense model was not trained" in dense_in_words(other)
    assert "other windows of the text that was trained on" not in dense_in_words(other)
    assert "other windows of the text that was trained on" in dense_in_words(same)
    assert dense_in_words(record()) == ""


def test_page_and_card_tell_of_it_and_of_weights_that_are_as_they_were() -> None:
    page, card = report_page([run()]), model_card(record(preparation={"training": TRAINED}), "org/base")
    assert "What was done to the weights" in page
    assert "what stays was trained on 64 tokens of a.txt, the dense model was not" in page
    assert "- before the cut, all weights trained" in card
    assert "The dense model was not trained" in card
    assert "have the weights that they had" in report_page([run(preparation=None)])
    assert "have the weights that they had" in model_card(record(), "org/base")
