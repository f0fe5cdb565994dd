"""Runs as their directories would have them, small enough to be reckoned by hand."""

from __future__ import annotations

import copy
from typing import Any

from secateur.report.reported import ReportedRun

RECORD: dict[str, Any] = {
    "secateur_version": "0.1.0", "created": "2026-11-26T08:23:27+00:00", "command": "secateur prune m --drop 2",
    "model": {"id": "models/m", "revision": None, "num_layers": 6, "num_parameters": 1000},
    "method": {"name": "elder", "options": {}},
    "data": {"spec": "a.txt", "fingerprint": "f1"}, "eval_data": {"spec": "b.txt", "fingerprint": "f2"},
    "dropped": [1, 2], "scores": [0.5, 0.1, 0.2, 1.0, 0.25, None],
    "preparation": {
        "perplexity_before_cut": 22.0,
        "training": {"steps": 2, "tokens": 64, "losses": [{"step": 0, "loss": 3.0}, {"step": 1, "loss": 2.0}]},
    },
    "recovery": None, "training": None,
    "proof": {"tokens": 64, "max_difference": 0.0, "tolerance": 1e-4, "generated_tokens": 24, "max_cache_gap": 0.0},
    "metrics": {
        "dense": {"num_layers": 6, "num_parameters": 1000, "perplexity": 20.0, "decode_tokens_per_second": 10.0,
                  "prefill_tokens_per_second": 100.0},
        "pruned": {"num_layers": 4, "num_parameters": 700, "perplexity": 25.0, "decode_tokens_per_second": 13.0,
                   "prefill_tokens_per_second": 140.0},
    },
    "generations": {"prompts": ["<b>Paris</b>"], "dense": ["is <script>alert(1)</script>"], "pruned": ["was\x00 & is"]},
    "timings": {"load": 1.0}, "peak_memory_bytes": 2_000_000_000, "seed": 0, "versions": {"torch": "2.13"},
}  # fmt: skip
PLAN = {
    "merges": {"2": 3},
    "provenance": {"weights_by_round": [[0.9, 0.8, 0.7, 1.0, 0.9, 0.5], [0.5, 0.1, 0.2, 1.0, 0.25, 0.1]]},
}


def run(name: str = "out", **changes: Any) -> ReportedRun:
    record = copy.deepcopy(RECORD)
    for place, value in changes.items():
        *path, last = place.split("__")
        inner = record
        for part in path:
            inner = inner[part]
        inner[last] = value
    return ReportedRun(name=name, record=record, plan=PLAN)


def tuned(value: float, against: float) -> ReportedRun:
    def task(value: float) -> dict[str, Any]:
        return {"metric": "accuracy", "value": value, "interval": [value - 0.1, value + 0.1], "num_items": 300,
                "greater_is_better": True}  # fmt: skip

    metrics = {
        "dense": {"num_parameters": 1000, "task": task(0.2)},
        "dense_tuned": {"num_parameters": 1000, "task": task(against)},
        "pruned": {"num_parameters": 700, "task": task(value)},
    }
    return run(metrics=metrics, generations=None, preparation=None)


def large(name: str = "large", num_layers: int = 80) -> ReportedRun:
    """Many layers, scores of many sizes, long texts, and something in every section."""
    layers = range(num_layers)
    training = {
        "losses": [{"step": 10 * step, "loss": 1200.0 / (step + 1)} for step in range(30)],
        "validation": [{"step": 100 * step, "score": 0.9981 + 0.0001 * step} for step in range(4)],
    }
    record = run(
        name, model__num_layers=num_layers, model__id="an-owner/a-model-whose-name-is-quite-long-7B-instruct-v0.3",
        dropped=list(layers[-20:]), scores=[10.0 ** (-layer / 9) for layer in layers], training=training, recovery=training,
        metrics__dense__perplexity=14_321.0, metrics__cut={"perplexity": 91_234.5}, metrics__pruned__perplexity=21_234.5,
        metrics__dense__num_parameters=7_241_732_096, metrics__pruned__num_parameters=5_431_299_072,
        command="secateur prune " + "a-word-without-any-space-that-is-as-long-as-a-line-of-a-phone-and-longer-still " * 3,
        generations={"prompts": ["a prompt"], "dense": ["word " * 60], "pruned": ["x" * 200]},
    ).record  # fmt: skip
    history = [[abs((layer * step) % 7 - 3) / 3 for layer in layers] for step in range(1, 100)]
    plan = {"merges": {str(num_layers - 1): 59}, "provenance": {"scores_by_step": history, "stability": 0.4}}
    return ReportedRun(name=name, record=record, plan=plan)


def blocks(num_layers: int = 32, drop: int = 8) -> ReportedRun:
    """A choice of one block, with the distance across every other."""
    layers = range(num_layers)
    distances = [
        [
            (1 - 0.9 ** (length * (1 + 3 * abs(start - 20) / num_layers))) / 2 if start + length <= num_layers else None
            for length in range(1, num_layers)
        ]
        for start in layers
    ]
    made = run("blocks", model__num_layers=num_layers, dropped=list(range(20, 20 + drop)), scores=[0.1] * num_layers)
    return ReportedRun(name=made.name, record=made.record, plan={"provenance": {"distances": distances}})


def thirty() -> ReportedRun:
    """As many layers as the sample model has, every fifth of them dropped, and the first far above the others."""
    scores = [40.0, *((7 * layer % 29 + 1) / 10 for layer in range(1, 30))]
    return run("thirty", model__num_layers=30, scores=scores, dropped=list(range(3, 30, 5)))


def nominated() -> ReportedRun:
    """ELDeR where the loss decided among the three layers with the smallest weights, and not as the weights would have."""
    made = run("nominated", dropped=[1, 2], scores=[0.4, 0.0, 0.0, 1.0, 0.9, 0.8], method__options={"shortlist": 2})
    provenance = {
        "weights_by_round": [[0.9, 0.8, 0.9, 1.0, 0.9, 0.9], [0.4, 0.25, 0.6, 1.0, 0.9, 0.8]],
        "weight_steps": [4, 30],
        "shortlist_losses": [{"0": 3.5, "1": 3.25, "2": 3.0}, {"0": 3.75, "1": 3.6875}],
    }
    return ReportedRun(name=made.name, record=made.record, plan={"order": [2, 1], "provenance": provenance})


PAGES: dict[str, list[ReportedRun]] = {
    "one run": [run()],
    "thirty layers": [thirty()],
    "a shortlist": [nominated()],
    "a block": [blocks()],
    "a task": [tuned(0.8, 0.85)],
    "a large model": [large("a-run-whose-name-is-long-enough-to-be-broken-on-a-phone")],
    "runs of one size": [
        run("elder", metrics__pruned__perplexity=25.02),
        run("shortgpt-with-lora", metrics__pruned__perplexity=25.0),
        run("sleb", metrics__pruned__perplexity=25.01),
        run("random", metrics__pruned__perplexity=44.0),
    ],
    "several runs": [
        run("a"),
        large("elder-with-recovery-25-percent"),
        run("b", metrics__pruned__perplexity=22.0),
        tuned(0.8, 0.9),
    ],
}
"""What the page is looked at with: every kind of it."""
