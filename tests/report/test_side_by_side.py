"""Tables of models side by side: every figure stands where it belongs, in any width."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console

from secateur.report.side_by_side import perplexity_table, tasks_table


def drawn(table: Any, width: int = 100) -> list[str]:
    console = Console(width=width, markup=False)
    with console.capture() as captured:
        console.print(table)
    return [" ".join(line.split()) for line in captured.get().splitlines() if line.strip(" ─")]


def row(model: str, layers: int, **more: Any) -> dict[str, Any]:
    return {"model": model, "num_layers": layers, "num_parameters": layers * 4_000_000, **more}


def text(value: float, stride: int = 256) -> dict[str, Any]:
    return {"perplexity": value, "nll_stderr": 0.05, "predicted_tokens": 4080, "window": 256, "stride": stride}


def score(task: str, metric: str, value: float, stderr: float) -> dict[str, Any]:
    return {"task": task, "metric": metric, "value": value, "stderr": stderr, "num_items": 200, "num_fewshot": 0}


def test_perplexity_alone_is_a_row_a_model_and_its_error_in_its_own_unit():
    head, dense, pruned = drawn(perplexity_table([row("dense", 30, **text(20.0)), row("small", 24, **text(2000.0))]))
    assert head == "model layers parameters perplexity ± (1 s.e.) tokens window"
    assert dense == "dense 30 120 M 20.00 1.00 4,080 256"  # 20 · 0.05
    assert pruned == "small 24 96 M 2,000 100.0 4,080 256"


def test_the_stride_is_a_column_where_windows_overlap():
    head, line = drawn(perplexity_table([row("dense", 30, **text(20.0, stride=64))]))
    assert head.endswith("window stride")
    assert line.endswith("256 64")


def test_a_path_is_its_last_part_where_that_tells_the_models_apart():
    def called(*sources: str) -> list[str]:
        rows = [row(source, 30, **text(20.0)) for source in sources]
        return [line.split()[0] for line in drawn(perplexity_table(rows))[1:]]

    assert called("/some/where/dense", "out/small") == ["dense", "out/small"]  # the second may be a hub's
    assert called("/some/where/dense", "./a/small/", "owner/name") == ["dense", "small", "owner/name"]
    assert called("/a/b/same", "/c/d/same") == ["/a/b/same", "/c/d/same"]


def test_tasks_are_a_row_a_task_and_a_column_a_model():
    mean = {"value": 0.55, "stderr": 0.025, "num_tasks": 2}
    first = [score("piqa", "acc_norm", 0.6, 0.03), score("gone", "acc", 0.5, 0.04)]
    second = [score("piqa", "acc_norm", 0.5, 0.031), score("gone", "acc", 0.25, math.nan)]
    rows = [
        row("dense", 30, **text(20.0), tasks=first, task_mean=mean),
        row("small", 24, **text(40.0), tasks=second, task_mean={**mean, "value": 0.375, "stderr": math.nan}),
    ]
    assert drawn(tasks_table(rows)) == [
        "metric on dense small",
        "layers 30 24",
        "parameters 120 M 96 M",
        "perplexity 4,080 tokens 20.00 ± 1.00 40.00 ± 2.00",
        "piqa, acc_norm 200 items 0.600 ± 0.030 0.500 ± 0.031",
        "gone, acc 200 items 0.500 ± 0.040 0.250 ± –",
        "mean 2 tasks 0.550 ± 0.025 0.375 ± –",
        "± one standard error; windows of 256 tokens; prompts with no examples",
    ]


def test_tasks_without_perplexity_or_mean_of_other_metrics_and_tokenizers_are_drawn():
    other = [{**score("wiki", "word_perplexity", 1234.0, 20.0), "num_fewshot": 5}]
    rows = [row("dense", 30, tasks=other, task_mean=None)]
    lines = drawn(tasks_table(rows))
    assert "wiki, word_perplexity 200 items 1,234 ± 20.00" in lines
    assert lines[-1] == "± one standard error; prompts with 5 examples"
    assert not any(line.startswith(("mean", "perplexity")) for line in lines)
    lengths = [
        row(str(n), 30, **{**text(20.0, stride=32), "predicted_tokens": n}, tasks=other, task_mean=None)
        for n in (70, 9, 80)
    ]
    lines = drawn(tasks_table(lengths))
    assert "9 to 80 tokens" in next(line for line in lines if line.startswith("perplexity"))
    assert "windows of 256 tokens, a stride of 32" in lines[-1]


def test_a_narrow_terminal_folds_long_names_and_keeps_the_figures():
    rows = [row("/a/very/long/path/to/a/checkpoint" * 3, 30, tasks=[score("piqa", "acc", 0.6, 0.03)], task_mean=None)]
    assert any("0.600 ± 0.030" in line for line in drawn(tasks_table(rows), width=60))
