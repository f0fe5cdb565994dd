"""Decide, prepare, cut, recover if asked to, prove: the methods, the surgery and the evaluation, put together once.

`prune` is what the command line runs; `secateur.in_memory` does the same for a model that is in memory already.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from secateur.context import check_window
from secateur.decoder import Decoder
from secateur.depth import layer_count
from secateur.errors import RequestError
from secateur.evaluation.memory import PeakMemory
from secateur.loading import Placement, autocast_dtype, is_offloaded, load_config, load_model, load_tokenizer
from secateur.methods import METHODS, Cost, Method, Run, method_named
from secateur.plan import PruningPlan, count_to_drop
from secateur.processes import by_first
from secateur.progress import Progress, Silent
from secateur.report.log import Logged
from secateur.report.record import describe_model, redacted_command, run_record
from secateur.request import PROMPTS, Pruned, Target, TextSettings, num_to_drop
from secateur.resumption import finished, identity, open_work, resumable
from secateur.stages import (
    LESS_WHAT_IS_DONE,
    Stages,
    agreed_plan,
    handed_over,
    preflight,
    write_about,
)
from secateur.surgery.checkpoint import Proof
from secateur.surgery.output import check_output, new_directory
from secateur.surgery.weights import num_bytes
from secateur.text_workbench import TextWorkbench
from secateur.training.recovery import Recovery, check_recovery

__all__ = ["PROMPTS", "Pruned", "Target", "TextSettings", "num_to_drop", "prune", "score"]


def prune(
    source: str | Path,
    *,
    method: Method | str,
    text: TextSettings,
    target: Target,
    out: str | Path,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_minutes: float = 5.0,
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
        resume: go on with the run that was interrupted.
        checkpoint_minutes: weights are kept for that where as much work would be lost otherwise; 0 keeps those of every step.
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
    method.check_launcher(chooses=target.layers is None)
    recovery = recovery or Recovery()
    stages = Stages(Logged(progress or Silent()))
    loading: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    asked = identity(
        model=str(source), method={"name": method.name, **method.options()}, text=asdict(text), target=asdict(target),
        recovery=asdict(recovery), dtype=dtype, precision=precision, revision=revision, seed=seed, prompts=list(prompts),
    )  # fmt: skip
    if resume and by_first(lambda: finished(out, asked, overwrite=overwrite)):
        stages.progress.note(f"the run to {out} is finished already; nothing is left to do")
        return handed_over(out)
    check_output(out, overwrite=overwrite)
    work = by_first(lambda: open_work(out, asked, resume=resume, minutes=checkpoint_minutes))
    with resumable(work, command=redacted_command(command or sys.argv)), PeakMemory() as memory:
        with stages.stage("load"):
            bench = TextWorkbench.loaded(
                source, text=text, target=target, dtype=dtype, precision=precision, seed=seed, prompts=prompts, out=out,
                stages=stages, work=work, loading=loading,
            )  # fmt: skip
            model, data, held_out = bench.decoder.model, bench.data, bench.held_out
        check_recovery(recovery, data, precision=bench.run.precision)
        ahead = preflight(
            bench.decoder, data, held_out, bench.left(bench.cost(method, recovery, target)), bench.run, wide=bench.wide
        )
        stages.progress.note(f"{ahead}{LESS_WHAT_IS_DONE if resume else ''}")
        about = describe_model(model, id=str(source), revision=revision)
        work.begin({**asked, "texts": [data.fingerprint, held_out.fingerprint], "config": about["config_sha256"]})
        with stages.stage("measure dense"):
            dense, dense_texts = bench.measure(model, "dense")
        with stages.stage("choose"):
            plan, budget = bench.choose(method, target, dense["perplexity"])
        stages.progress.note(f"layers to drop: {', '.join(map(str, plan.dropped))} of 0..{plan.num_layers - 1}")
        preparation = bench.prepare_(method, plan) if method.prepares else None
        metrics, recovered, recovery_report = {"dense": dense}, None, None
        if recovery.trains:
            recovered, metrics["cut"], recovery_report = bench.cut_and_recover(recovery, plan)

        def written() -> tuple[Proof, dict[str, Any]]:
            with new_directory(out, overwrite=overwrite, needs=num_bytes(recovered or model)) as directory:
                proof, pruned, texts = bench.finish(plan, recovered, dense, directory, speed=speed)
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
                    proof=asdict(proof),
                    recovery=recovery_report,
                    metrics={**metrics, "pruned": pruned},
                    generations={"prompts": list(prompts), "dense": dense_texts, "pruned": texts},
                    timings=stages.seconds,
                    peak_memory_bytes=memory.bytes,
                    seed=seed,
                )
                write_about(directory, source, plan, record, out=out)
                work.take_along(directory / "secateur")
            return proof, record

        proof, record = by_first(written)
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
    placement: Placement | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> PruningPlan:
    """Decide only: the plan that `prune` would carry out, with a score for each layer.

    The arguments are those of `prune`, and `placement`: where a model goes that is larger than one device.

    Raises:
        RequestError: if something asked for cannot be.
    """
    method = method_named(method)() if isinstance(method, str) else method
    method.check_launcher(chooses=True)
    progress = progress or Silent()
    config = load_config(source, revision=revision, trust_remote_code=trust_remote_code)
    check_window(source, config, text.sequence_length)
    count = count_to_drop(drop, layer_count(config))
    tokenizer = load_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code)
    data = text.load_calibration(tokenizer, seed)
    model = load_model(source, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code, placement=placement)
    if is_offloaded(model) and not method.only_runs:
        able = ", ".join(name for name, other in METHODS.items() if other.only_runs)
        raise RequestError(
            f"{method.name} looks at weights or gradients, which are not there where layers are offloaded; choose one of "
            f"{able}, or give --max-memory more"
        )
    decoder = Decoder(model)
    context = Run(seed=seed, precision=autocast_dtype(precision, decoder.device), progress=progress)
    cost = method.cost(decoder.num_layers, count, data)
    progress.note(
        preflight(decoder, data, data.take(1), Cost(choose_tokens=cost.choose_tokens), context, measures=False)
    )
    plan = agreed_plan(method.plan(decoder, data, drop=count, run=context))
    return replace(plan, provenance={**plan.provenance, "model": str(source), "data": data.describe(), "seed": seed})
