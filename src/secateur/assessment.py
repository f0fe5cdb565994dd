"""Models side by side: the perplexity of each on one text, and how good each is at the same tasks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from secateur.context import check_window
from secateur.data import TokenBatches, evaluation_windows
from secateur.data.text import dataset_on_hub
from secateur.decoder import Decoder
from secateur.errors import DataError, RequestError
from secateur.evaluation.harness import HarnessTasks, mean_score
from secateur.loading import Placement, load_config, load_model, load_tokenizer
from secateur.methods import Run
from secateur.processes import count
from secateur.progress import Progress, Silent, duration
from secateur.report.record import revision_of
from secateur.report.reported import load_run
from secateur.stages import quality, size, tokens_per_second

__all__ = ["evaluate"]

logger = logging.getLogger(__name__)

_FEW_BATCHES = 8
"""Batches of text that are read in about the time that it takes to say how long they will take."""


def evaluate(
    sources: Sequence[str | Path],
    *,
    data: str | None = None,
    sequence_length: int = 256,
    num_sequences: int = 128,
    stride: int | None = None,
    batch_size: int = 4,
    tasks: Sequence[str] = (),
    include_path: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    task_batch_size: int = 16,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    placement: Placement | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Measure each model; what is wrong with any of them, the text or the tasks is said before the first is loaded.

    Args:
        sources: hub ids or local checkpoints.
        data: the SPEC of a text to measure perplexity on.
        sequence_length: tokens a window.
        num_sequences: windows: the first, in order.
        stride: tokens from the start of a window to that of the next; None means `sequence_length`.
        batch_size: windows a forward pass.
        tasks: names of tasks, groups or tags of lm-evaluation-harness.
        include_path: a folder of further task files.
        limit: items of each task: the first; all if None.
        num_fewshot: examples in the prompt; None means what each task says, else 0.
        task_batch_size: sequences a forward pass, for tasks.
        dtype: of the weights: `auto`, `float32`, `bfloat16`, `float16`.
        revision: the branch, tag or commit of a hub id.
        trust_remote_code: run code that comes with a model.
        placement: where a model goes that is larger than one device.
        seed: of the examples in the prompts, and of answers that are sampled.
        progress: who watches.

    Returns:
        One dictionary a model: `model`, `revision` (None for a local checkpoint), `num_layers`, `num_parameters`; with
        `data` `perplexity`, `nll`, `nll_stderr`, `window`, `stride`, `predicted_tokens` and `data`; with `tasks` `tasks`,
        the scores, and `task_mean`, None or their mean accuracy with its `value`, `stderr` and `num_tasks`.

    Raises:
        RequestError: if a model, the text or a task cannot be read, or nothing is to be measured.
    """
    progress = progress or Silent()
    if data is None and not tasks:
        raise RequestError("nothing to measure; give --data for perplexity, --tasks, or both")
    if task_batch_size < 1:
        raise RequestError(f"the batch size of tasks is {task_batch_size}; choose 1 or more")
    for_tasks = {
        "include_path": include_path, "limit": limit, "num_fewshot": num_fewshot, "task_batch_size": task_batch_size,
    }  # fmt: skip
    for_text = {
        "sequence_length": sequence_length, "num_sequences": num_sequences, "stride": stride, "batch_size": batch_size,
    }  # fmt: skip
    _refuse_without_effect("--tasks", tasks, for_tasks)
    _refuse_without_effect("--data", data, for_text)
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if data is not None:
        for source in sources:
            check_window(source, load_config(source, **common), sequence_length)
    tokenizers = [load_tokenizer(source, **common) for source in sources]
    texts = [
        None
        if data is None
        else evaluation_windows(
            data,
            tokenizer,
            sequence_length=sequence_length,
            num_sequences=num_sequences,
            stride=stride,
            batch_size=batch_size,
        )
        for tokenizer in tokenizers
    ]
    found = None
    if tasks:
        found = HarnessTasks.load(
            tasks, include_path=include_path, limit=limit, num_fewshot=num_fewshot, seed=seed, progress=progress
        )
    for source in sources if data is not None else ():
        if _was_calibrated_on(source, str(data)):
            progress.note(
                f"{source} was calibrated on {data}: its perplexity here flatters it; its report has the one on windows that "
                "were held out, or give another text"
            )
    rows = []
    for source, tokenizer, windows in zip(sources, tokenizers, texts, strict=True):
        model = load_model(source, dtype=dtype, placement=placement, **common)
        row: dict[str, Any] = {"model": str(source), "revision": revision_of(model, revision), **size(model)}
        if windows is not None:
            row |= _text_figures(model, windows, str(source), progress)
        if found is not None:
            row |= _task_figures(model, tokenizer, found, task_batch_size, str(source), progress)
        rows.append(row)
        del model  # before the next is loaded
    return rows


def _was_calibrated_on(source: str | Path, data: str) -> bool:
    """Whether a pruned model's record names the very text; of a data set of the hub other splits are evaluated on."""
    try:
        spec = str((load_run(source).record.get("data") or {}).get("spec"))
    except DataError:  # no model of ours
        return False
    if dataset_on_hub(data) is not None:
        return False
    here = Path(data), Path(spec)
    return spec == data or (all(path.exists() for path in here) and here[0].samefile(here[1]))


def _refuse_without_effect(needed: str, given: object, options: Mapping[str, object]) -> None:
    """An option that is not at its default and changes nothing would go unnoticed."""
    parameters = signature(evaluate).parameters
    for name, value in options.items():
        if value != parameters[name].default and not given:
            raise RequestError(
                f"--{name.replace('_', '-')} says nothing without {needed}; give that too, or leave it out"
            )


def _text_figures(model: Any, windows: TokenBatches, name: str, progress: Progress) -> dict[str, Any]:
    if len(windows) > _FEW_BATCHES:
        speed = tokens_per_second(Decoder(model, verify=False), windows.take(windows.batch_size).input_ids, Run())
        tokens, seconds = windows.num_tokens, windows.num_tokens / speed / count()
        progress.note(f"{name}: {tokens / 1e3:,.0f} thousand tokens to read, about {duration(seconds)}")
    measured = quality(model, windows, progress, f"measuring the perplexity of {name}")
    return {**measured, "data": windows.describe()}


def _task_figures(
    model: Any, tokenizer: Any, tasks: HarnessTasks, batch_size: int, name: str, progress: Progress
) -> dict[str, Any]:
    progress.note(f"tasks of {name}: {', '.join(tasks.tasks)}")
    scores = tasks.score(model, tokenizer, batch_size=batch_size, progress=progress)
    mean = mean_score(scores)
    return {
        "tasks": [score.describe() for score in scores],
        "task_mean": None if mean is None else {"value": mean[0], "stderr": mean[1], "num_tasks": len(scores)},
    }
