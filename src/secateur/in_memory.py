"""Pruning a model that is in memory already, in place: choose, prepare, cut, and fine-tune if asked to."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from secateur.context import check_window
from secateur.data import TokenBatches
from secateur.data.examples import Examples, load_examples
from secateur.data.task import calibration_windows
from secateur.decoder import Decoder
from secateur.loading import autocast_dtype
from secateur.methods import Run
from secateur.methods.elder import Elder
from secateur.methods.gradpruner import GradPruner
from secateur.plan import PruningPlan, count_to_drop
from secateur.progress import Progress, Silent
from secateur.request import TextSettings
from secateur.surgery.live import remove_layers_
from secateur.training.precision import in_float32
from secateur.training.rows import rows_of, rows_of_windows
from secateur.training.supervised import FineTuning, check_fine_tuning, fine_tune_

__all__ = ["elder", "gradpruner"]


def elder(
    model: Any,
    tokenizer: Any,
    data: str | TokenBatches,
    *,
    drop: int | float,
    seed: int = 0,
    precision: str = "auto",
    text: TextSettings | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> PruningPlan:
    """Prune a model in memory by ELDeR, in place: choose, prepare, cut.

    Args:
        model: a `transformers` causal language model.
        tokenizer: its tokenizer.
        data: calibration tokens, or a data SPEC.
        drop: how many layers go, or which share of them.
        seed: of everything random.
        precision: of the passes: `auto`, `fp32`, `bf16`.
        text: how much text to take where `data` is a SPEC.
        progress: who watches.
        settings: fields of `secateur.methods.elder.Elder`.

    Returns:
        The plan that was carried out.

    Raises:
        RequestError: if something asked for cannot be; the model is unchanged.
        TrainingDivergedError: if the loss stops being finite; the model holds the last good weights, all layers in place.
    """
    method = Elder.of(settings)
    decoder = Decoder(model)
    count = count_to_drop(drop, decoder.num_layers)
    if isinstance(data, str):
        text = dataclasses.replace(text or TextSettings(data=data), data=data)
        check_window("the model", model.config, text.sequence_length)
        data, _ = text.load(tokenizer, seed)
    context = Run(seed=seed, precision=autocast_dtype(precision, decoder.device), progress=progress or Silent())
    plan = method.plan(decoder, data, drop=count, run=context)
    with in_float32(model, wanted=method.trains_weights(data)):
        method.prepare_(decoder, data, plan, run=context)
    remove_layers_(model, plan.dropped)
    return plan


def gradpruner(
    model: Any,
    tokenizer: Any,
    data: str | Examples | TokenBatches,
    *,
    drop: int | float,
    tuning: FineTuning | None = None,
    work: str | Path | None = None,
    seed: int = 0,
    precision: str = "auto",
    progress: Progress | None = None,
    **settings: Any,
) -> PruningPlan:
    """Prune a model in memory by GradPruner, in place: score, prune, merge, cut; and fine-tune what is left, if asked to.

    Args:
        model: a `transformers` causal language model.
        tokenizer: its tokenizer.
        data: the task's training examples, a SPEC of them, or windows of plain text.
        drop: how many layers go, or which share of them.
        tuning: fine-tune afterwards, all of `data` as settings say; LoRA's adapters are merged. Not at all if None.
        work: directory of the fine-tuning's checkpoints; none are kept if None.
        seed: of everything random.
        precision: of the passes: `auto`, `fp32`, `bf16`.
        progress: who watches.
        settings: fields of `secateur.methods.gradpruner.GradPruner`.

    Returns:
        The plan that was carried out.

    Raises:
        RequestError: if something asked for cannot be; the model is unchanged.
        TrainingDivergedError: if the loss stops being finite.
    """
    method, decoder = GradPruner.of(settings), Decoder(model)
    count = count_to_drop(drop, decoder.num_layers)
    run = Run(seed=seed, precision=autocast_dtype(precision, decoder.device), progress=progress or Silent())
    if isinstance(data, TokenBatches):
        rows, windows = rows_of_windows(data), data
    else:
        examples = load_examples(data, tokenizer=tokenizer) if isinstance(data, str) else data
        rows = rows_of(examples, model, tokenizer, max_length=(tuning or FineTuning()).max_length)
        windows = calibration_windows(examples, model, tokenizer)
    if tuning is not None:
        check_fine_tuning(decoder, tuning, len(rows), validated=False, precision=run.precision)
    steps = None if tuning is None else tuning.num_steps(len(rows))
    plan = method.plan_on_task(decoder, rows, windows, drop=count, run=run, total_steps=steps)
    method.prepare_(decoder, windows, plan, run=run)
    remove_layers_(model, plan.dropped)
    if tuning is not None:
        with tempfile.TemporaryDirectory() as scratch:
            tuned, _ = fine_tune_(
                Decoder(model), rows, settings=tuning, work=Path(work or scratch), precision=run.precision, seed=seed,
                progress=run.progress, save=work is not None,
            )  # fmt: skip
        if tuning.train == "lora":
            tuned.merge_and_unload()
    return plan
