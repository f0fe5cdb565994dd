"""Decide, prepare, cut, recover if asked to, prove: the methods, the surgery and the evaluation, put together once.

`prune` is what the command line runs; `secateur.in_memory` does the same for a model that is in memory already.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from secateur.budget import plan_within_budget, search_cost
from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.evaluation.generation import generations
from secateur.evaluation.memory import PeakMemory
from secateur.loading import autocast_dtype, load_model, load_tokenizer
from secateur.methods import Cost, Method, Run, method_named
from secateur.plan import PruningPlan, count_to_drop
from secateur.progress import Progress, Silent
from secateur.report.record import describe_model, run_record
from secateur.request import PROMPTS, Pruned, Target, TextSettings, num_to_drop
from secateur.stages import (
    Stages,
    add_speed,
    cut_and_prove,
    cut_and_recover,
    preflight,
    prepare_or_keep_,
    quality,
    sizes,
    with_recovery,
    write_about,
    write_and_prove,
)
from secateur.surgery.checkpoint import check_output, new_directory
from secateur.training.recovery import Recovery, check_recovery

__all__ = ["PROMPTS", "Pruned", "Target", "TextSettings", "num_to_drop", "prune", "score"]

logger = logging.getLogger(__name__)


def prune(
    source: str | Path,
    *,
    method: Method | str,
    text: TextSettings,
    target: Target,
    out: str | Path,
    overwrite: bool = False,
    dtype: str = "auto",
    precision: str = "auto",
    recovery: Recovery | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    prompts: Sequence[str] = PROMPTS,
    speed: bool = True,
    progress: Progress | None = None,
    command: Sequence[str] | None = None,
) -> Pruned:
    """Make a smaller checkpoint of `source` at `out`, and prove it.

    Args:
        source: a hub id or a local checkpoint.
        method: a method with its settings, or its name.
        text: calibration and evaluation text.
        target: how much goes.
        out: the new checkpoint's directory; it is there whole at the end, or not at all.
        overwrite: replace a checkpoint that is at `out`.
        dtype: of the weights: `auto`, `float32`, `bfloat16`, `float16`. With `auto`, 16-bit weights are trained in float32, and
            written as they were stored.
        precision: of forward and backward passes while choosing, preparing and recovering: `auto`, `fp32`, `bf16`. What is
            measured is always measured in the weights' own dtype.
        recovery: training after the cut; none if None.
        revision: the branch, tag or commit of a hub id.
        trust_remote_code: run code that comes with the model.
        seed: of everything random.
        prompts: continued by both models, for people to read.
        speed: measure tokens per second of both.
        progress: who watches.
        command: the command line, for the record.

    Raises:
        RequestError: if something asked for cannot be; nothing was changed.
        RunError: if it failed on the way; nothing is left at `out`.
    """
    method = method_named(method)() if isinstance(method, str) else method
    recovery = recovery or Recovery()
    run = Stages(progress or Silent())
    check_output(out, overwrite=overwrite)
    loading: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    load_dense = partial(load_model, source, dtype=dtype, **loading)
    with PeakMemory() as memory:
        with run.stage("load"):
            tokenizer = load_tokenizer(source, **loading)
            data, held_out = text.load(tokenizer, seed)
            model = load_dense()
            decoder = Decoder(model)
        context = Run(seed=seed, precision=autocast_dtype(precision, decoder.device), progress=run.progress)
        check_recovery(recovery, data, precision=context.precision)
        cost = _cost(method, recovery, target, decoder, data, held_out)
        run.progress.note(preflight(decoder, data, held_out, cost, context))
        about = describe_model(model, id=str(source), revision=revision)
        with run.stage("measure dense"):
            dense = quality(model, held_out, run.progress, "measuring the dense model's perplexity")
            texts = {"dense": generations(model, tokenizer, prompts) if prompts else []}
        with run.stage("choose"):
            plan, budget = _plan(method, decoder, data, held_out, target, dense["perplexity"], context)
        run.progress.note(f"layers to drop: {', '.join(map(str, plan.dropped))} of 0..{plan.num_layers - 1}")
        wide = dtype == "auto"
        preparation = _prepared_(method, decoder, tokenizer, plan, data, held_out, run, context, out, wide=wide)
        metrics, recovered, recovery_report = {"dense": dense}, None, None
        if recovery.trains:
            recovered, metrics["cut"], recovery_report = cut_and_recover(
                decoder, tokenizer, plan, data, held_out, recovery, run, context, out, wide=wide, load_dense=load_dense
            )
        with new_directory(out, overwrite=overwrite) as directory:
            with run.stage("cut and prove"):
                proof, pruned_model = (
                    cut_and_prove(decoder, tokenizer, plan, data, directory, trust_remote_code)
                    if recovered is None
                    else write_and_prove(recovered, tokenizer, directory, data.take(2).input_ids, trust_remote_code)
                )
            with run.stage("measure pruned"):
                pruned = quality(pruned_model, held_out, run.progress, "measuring the pruned model's perplexity")
                texts["pruned"] = generations(pruned_model, tokenizer, prompts) if prompts else []
                dense["size_bytes"], pruned["size_bytes"] = sizes(model, pruned_model, directory)
                if speed:
                    add_speed(dense, pruned, model, pruned_model, run.progress)
            record = run_record(
                command=command or sys.argv,
                model=about,
                method={"name": method.name, "options": method.options()},
                data=data.describe(),
                eval_data=held_out.describe(),
                dropped=plan.dropped,
                scores=plan.scores,
                budget=budget,
                preparation=preparation,
                proof=dataclasses.asdict(proof),
                recovery=recovery_report,
                metrics={**metrics, "pruned": pruned},
                generations={"prompts": list(prompts), **texts},
                timings=run.seconds,
                peak_memory_bytes=memory.bytes,
                seed=seed,
            )
            write_about(directory, source, plan, record)
    return Pruned(path=Path(out), plan=plan, proof=proof, record=record)


def score(
    source: str | Path,
    *,
    method: Method | str,
    text: TextSettings,
    drop: int | float = 0.25,
    dtype: str = "auto",
    precision: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> PruningPlan:
    """Decide only: the plan that `prune` would carry out, with a score for each layer.

    Raises:
        RequestError: if something asked for cannot be.
    """
    method = method_named(method)() if isinstance(method, str) else method
    progress = progress or Silent()
    tokenizer = load_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code)
    data, held_out = text.load(tokenizer, seed)
    model = load_model(source, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
    decoder = Decoder(model)
    count = count_to_drop(drop, decoder.num_layers)
    context = Run(seed=seed, precision=autocast_dtype(precision, decoder.device), progress=progress)
    cost = method.cost(decoder.num_layers, count, data)
    progress.note(preflight(decoder, data, held_out.take(1), Cost(choose_tokens=cost.choose_tokens), context))
    plan = method.plan(decoder, data, drop=count, run=context)
    return dataclasses.replace(
        plan, provenance={**plan.provenance, "model": str(source), "data": data.describe(), "seed": seed}
    )


def _cost(
    method: Method,
    recovery: Recovery,
    target: Target,
    decoder: Decoder,
    data: TokenBatches,
    held_out: TokenBatches,
) -> Cost:
    """What will be used, at most where the number of layers is still to be found.

    Raises:
        RequestError: if that many layers cannot go, or the recovery's budget is less than one window.
    """
    num_layers = decoder.num_layers
    if target.is_budget:
        drop = count_to_drop(1, num_layers)
        return with_recovery(search_cost(method, num_layers, data, held_out), recovery, num_layers, drop, data)
    drop = num_to_drop(target, decoder)
    return with_recovery(method.cost(num_layers, drop, data), recovery, num_layers, drop, data)


def _prepared_(
    method: Method,
    decoder: Decoder,
    tokenizer: Any,
    plan: PruningPlan,
    data: TokenBatches,
    held_out: TokenBatches,
    run: Stages,
    context: Run,
    out: str | Path,
    *,
    wide: bool,
) -> dict[str, Any] | None:
    """Prepare in place, and measure what the layers that go still do; the report, None if the method prepares nothing."""
    if not method.prepares:
        return None
    with run.stage("prepare"):
        report = prepare_or_keep_(method, decoder, tokenizer, data, plan, context, out, wide=wide)
    with run.stage("measure before the cut"):
        gates = torch.full((decoder.num_layers,), method.final_gate())
        with decoder.gate(gates, layers=plan.dropped):
            before = quality(decoder.model, held_out, run.progress, "measuring perplexity just before the cut")
    return {**report, "perplexity_before_cut": before["perplexity"]}


def _plan(
    method: Method,
    decoder: Decoder,
    data: TokenBatches,
    held_out: TokenBatches,
    target: Target,
    dense_perplexity: float,
    run: Run,
) -> tuple[PruningPlan, dict[str, Any] | None]:
    """Which layers go, and how their number was found where it was searched for."""
    if target.is_budget:
        return plan_within_budget(
            method, decoder, data, held_out, target=target, dense_perplexity=dense_perplexity, run=run
        )
    if target.layers is None:
        return method.plan(decoder, data, drop=num_to_drop(target, decoder), run=run), None
    return method.given(target.layers, decoder.num_layers), None
