"""Decide, prepare, cut, recover if asked to, prove: the methods, the surgery and the evaluation, put together once.

`prune` is what the command line runs; `secateur.in_memory` does the same for a model that is in memory already.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from secateur.budget import plan_within_budget, search_cost
from secateur.context import check_window
from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.depth import layer_count
from secateur.errors import RequestError, TrainingDivergedError
from secateur.evaluation.generation import generations
from secateur.evaluation.memory import PeakMemory
from secateur.loading import Placement, autocast_dtype, is_offloaded, load_config, load_model, load_tokenizer
from secateur.methods import METHODS, Cost, Method, Run, method_named
from secateur.plan import PruningPlan, count_to_drop
from secateur.processes import by_first
from secateur.progress import Progress, Silent, in_one_step
from secateur.report.log import Logged
from secateur.report.record import describe_model, redacted_command, run_record
from secateur.request import PROMPTS, Pruned, Target, TextSettings, check_target, num_to_drop
from secateur.resumption import Work, finished, identity, open_work, resumable
from secateur.stages import (
    LESS_WHAT_IS_DONE,
    Stages,
    add_speed,
    agreed_plan,
    check_cut,
    cut_copy,
    handed_over,
    preflight,
    quality,
    sizes,
    with_recovery,
    write_about,
    write_and_prove,
)
from secateur.surgery.checkpoint import Proof, bypassed_logits, save_checkpoint
from secateur.surgery.output import check_output, new_directory
from secateur.surgery.weights import num_bytes
from secateur.training.precision import in_float32
from secateur.training.recovery import Recovery, check_recovery, recover_

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
    if resume and by_first(lambda: finished(out)):
        by_first(lambda: open_work(out, asked, resume=True)).forget()
        return handed_over(out)
    check_output(out, overwrite=overwrite)
    work = by_first(lambda: open_work(out, asked, resume=resume, minutes=checkpoint_minutes))
    with resumable(work, command=redacted_command(command or sys.argv)), PeakMemory() as memory:
        with stages.stage("load"):
            config = load_config(source, **loading)
            check_window(source, config, text.sequence_length)
            check_target(target, layer_count(config))
            tokenizer = load_tokenizer(source, **loading)
            data, held_out = text.load(tokenizer, seed)
            model = load_model(source, dtype=dtype, **loading)
            decoder = Decoder(model)
        bench = _Workbench(
            decoder=decoder, tokenizer=tokenizer, data=data, held_out=held_out, stages=stages, out=out, wide=dtype == "auto",
            run=Run(
                seed=seed, precision=autocast_dtype(precision, decoder.device), progress=stages.progress,
                keeping=work.training("prepared"),
            ),
            load_dense=lambda: load_model(source, dtype=dtype, **loading),
            trust_remote_code=trust_remote_code, prompts=prompts, work=work,
        )  # fmt: skip
        check_recovery(recovery, data, precision=bench.run.precision)
        ahead = preflight(decoder, data, held_out, bench.cost(method, recovery, target), bench.run, wide=bench.wide)
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
            with new_directory(out, overwrite=overwrite, needs=num_bytes(recovered or decoder.model)) as directory:
                with stages.stage("cut and prove"):
                    proof, pruned_model = bench.write_and_prove(plan, recovered, directory)
                with stages.stage("measure pruned"):
                    pruned, texts = bench.measure(pruned_model, "pruned")
                    dense["size_bytes"], pruned["size_bytes"] = sizes(model, pruned_model, directory)
                    if speed:
                        add_speed(dense, pruned, model, pruned_model, stages.progress)
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
    data, held_out = text.load(tokenizer, seed)
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
    progress.note(preflight(decoder, data, held_out.take(1), Cost(choose_tokens=cost.choose_tokens), context))
    plan = agreed_plan(method.plan(decoder, data, drop=count, run=context))
    return replace(plan, provenance={**plan.provenance, "model": str(source), "data": data.describe(), "seed": seed})


@dataclass(frozen=True, kw_only=True)
class _Workbench:
    """A dense model, and what it is pruned and measured with."""

    decoder: Decoder
    tokenizer: Any
    data: TokenBatches
    held_out: TokenBatches
    stages: Stages
    run: Run
    out: str | Path
    load_dense: Callable[[], Any]  # read again: the decoder's model may have been prepared, or trained
    wide: bool  # 16-bit weights are trained in float32
    trust_remote_code: bool
    prompts: Sequence[str]
    work: Work

    def cost(self, method: Method, recovery: Recovery, target: Target) -> Cost:
        """What will be used, at most where the number of layers is still to be found.

        Raises:
            RequestError: if that many layers cannot go, or the recovery's budget is less than one window.
        """
        num_layers, data = self.decoder.num_layers, self.data
        if target.is_budget:
            drop = count_to_drop(1, num_layers)
            return with_recovery(search_cost(method, num_layers, data, self.held_out), recovery, num_layers, drop, data)
        drop = num_to_drop(target, self.decoder)
        return with_recovery(method.cost(num_layers, drop, data), recovery, num_layers, drop, data)

    def measure(self, model: Any, name: str) -> tuple[dict[str, Any], list[str]]:
        """A model's size and perplexity, and what it writes after the prompts; of the dense model once in a run."""

        def make() -> dict[str, Any]:
            metrics = quality(model, self.held_out, self.run.progress, f"measuring the {name} model's perplexity")
            return {
                "metrics": metrics,
                "texts": generations(model, self.tokenizer, self.prompts, progress=self.run.progress)
                if self.prompts
                else [],
            }

        found = self.work.once(name, make) if name == "dense" else make()
        return found["metrics"], found["texts"]

    def choose(
        self, method: Method, target: Target, dense_perplexity: float
    ) -> tuple[PruningPlan, dict[str, Any] | None]:
        """Which layers go, and how their number was found where it was searched for; decided once in a run."""
        # What was just made still has in memory what its second stage needs; what was read makes that again, alike.
        return self.work.once_plan(lambda: self._chosen(method, target, dense_perplexity))

    def _chosen(
        self, method: Method, target: Target, dense_perplexity: float
    ) -> tuple[PruningPlan, dict[str, Any] | None]:
        decoder = self.decoder
        if target.is_budget:
            plan, budget = plan_within_budget(
                method, decoder, self.data, self.held_out, target=target, dense_perplexity=dense_perplexity, run=self.run
            )  # fmt: skip
            return agreed_plan(plan), budget
        if target.layers is None:
            return agreed_plan(method.plan(decoder, self.data, drop=num_to_drop(target, decoder), run=self.run)), None
        given = method.given(target.layers, decoder.num_layers)
        return agreed_plan(method.completed(given, decoder, self.data, self.run)), None

    def prepare_(self, method: Method, plan: PruningPlan) -> dict[str, Any]:
        """Prepare in place, and measure what the layers that go still do; the report."""
        decoder = self.decoder

        def make_() -> dict[str, Any]:
            with (
                self._kept_if_diverged(decoder.model, "all layers in place"),
                in_float32(decoder.model, wanted=self.wide and method.trains_weights(self.data)),
            ):
                return method.prepare_(decoder, self.data, plan, run=self.run)

        with self.stages.stage("prepare"):
            report = self.work.once_with_weights_("prepared", decoder.model, make_)
        with self.stages.stage("measure before the cut"):
            gates = torch.full((decoder.num_layers,), method.final_gate())
            with decoder.gate(gates, layers=plan.dropped):
                description = "measuring perplexity just before the cut"
                before = quality(decoder.model, self.held_out, self.run.progress, description)
        return {**report, "perplexity_before_cut": before["perplexity"]}

    def cut_and_recover(self, recovery: Recovery, plan: PruningPlan) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Cut a copy, hold it to the bypassed model, measure it, and train it; its kept layers are the decoder's own.

        The teacher is the dense model read again: what `decoder` holds may have been prepared, and is about to be trained.
        """
        proof_ids, progress = self.data.take(2).input_ids, self.run.progress
        with self.stages.stage("cut"):
            expected = bypassed_logits(self.decoder, plan.dropped, proof_ids)
            pruned = cut_copy(self.decoder, plan.dropped)
            difference = check_cut(bypassed_logits(Decoder(pruned), (), proof_ids), expected)
        with self.stages.stage("measure before recovery"):
            before = quality(pruned, self.held_out, progress, "measuring perplexity before the recovery")

        def make_() -> dict[str, Any]:
            with self._kept_if_diverged(pruned, "with the layers removed"):
                return recover_(
                    Decoder(pruned), self.data, settings=recovery, teacher=self.load_dense() if recovery.needs_teacher else None,
                    precision=self.run.precision, wide=self.wide, seed=self.run.seed, progress=progress,
                    keeping=self.work.training("recovered"),
                )  # fmt: skip

        with self.stages.stage("recover"):
            report = self.work.once_with_weights_("recovered", pruned, make_)
        return pruned, before, {"settings": asdict(recovery), "cut_difference": difference, **report}

    def write_and_prove(self, plan: PruningPlan, recovered: Any | None, directory: Path) -> tuple[Proof, Any]:
        """Write a cut copy, held to the bypassed model, or the model that was recovered after its cut, held to itself."""
        model, expected, proof_ids = recovered, None, self.data.take(2).input_ids
        if recovered is None:
            expected = bypassed_logits(self.decoder, plan.dropped, proof_ids)
            model = cut_copy(self.decoder, plan.dropped)
        with in_one_step(self.run.progress, "writing the model and proving it"):
            return write_and_prove(
                model, self.tokenizer, directory, proof_ids, self.trust_remote_code, dense=lambda: Decoder(self.load_dense()),
                expected=expected,
            )  # fmt: skip

    @contextmanager
    def _kept_if_diverged(self, model: Any, state: str) -> Iterator[None]:
        """Save, beside `out`, the last good weights that a training inside gives up with; the error says where they are."""
        try:
            yield
        except TrainingDivergedError as error:
            kept = by_first(lambda: self._save_last_good(model))
            self.work.forget()  # it would diverge again
            raise TrainingDivergedError(f"{error} (saved, {state}, to {kept})") from error

    def _save_last_good(self, model: Any) -> str:
        places = (f"{Path(self.out)}.last-good{number or ''}" for number in itertools.count())
        kept = next(place for place in places if not Path(place).exists())
        with new_directory(kept) as directory:
            save_checkpoint(model, self.tokenizer, directory)
        return kept
