"""Where a model is pruned on text and measured on it: each phase of `prune`, done once in a run that goes on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from secateur.errors import TrainingDivergedError
from secateur.evaluation.generation import generations
from secateur.loading import autocast_dtype, load_config, load_model, load_tokenizer
from secateur.methods import Cost, Method, Run
from secateur.plan import PruningPlan, count_to_drop
from secateur.processes import by_first
from secateur.progress import in_one_step
from secateur.request import Target, TextSettings, check_target, num_to_drop
from secateur.resumption import Work
from secateur.stages import (
    Stages,
    add_speed,
    agreed_plan,
    check_cut,
    cut_copy,
    quality,
    sizes,
    with_recovery,
    write_and_prove,
)
from secateur.surgery.checkpoint import Proof, bypassed_logits, save_checkpoint
from secateur.surgery.output import new_directory
from secateur.training.precision import in_float32
from secateur.training.recovery import Recovery, recover_

__all__ = ["TextWorkbench"]


@dataclass(frozen=True, kw_only=True)
class TextWorkbench:
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

    @classmethod
    def loaded(
        cls, source: str | Path, *, text: TextSettings, target: Target, dtype: str, precision: str, seed: int,
        prompts: Sequence[str], out: str | Path, stages: Stages, work: Work, loading: Mapping[str, Any],
    ) -> TextWorkbench:  # fmt: skip
        """With the dense model, its tokenizer and the text, all checked before the weights are read.

        Args:
            source: a hub id or a local checkpoint.
            text: calibration and evaluation text.
            target: how much goes.
            dtype: of the weights, as for `prune`.
            precision: of the passes, as for `prune`.
            seed: of everything random.
            prompts: continued by both models.
            out: the new checkpoint's directory.
            stages: timed.
            work: what is kept for a run that goes on.
            loading: revision and trust_remote_code.

        Raises:
            RequestError: if something asked for cannot be.
            ModelError: if there is no such model.
        """
        config = load_config(source, **loading)
        check_window(source, config, text.sequence_length)
        check_target(target, layer_count(config))
        tokenizer = load_tokenizer(source, **loading)
        data, held_out = text.load(tokenizer, seed)
        decoder = Decoder(load_model(source, dtype=dtype, **loading))
        run = Run(
            seed=seed, precision=autocast_dtype(precision, decoder.device), progress=stages.progress,
            keeping=work.training("prepared"),
        )  # fmt: skip
        return cls(
            decoder=decoder, tokenizer=tokenizer, data=data, held_out=held_out, stages=stages, run=run, wide=dtype == "auto",
            load_dense=lambda: load_model(source, dtype=dtype, **loading),
            trust_remote_code=loading["trust_remote_code"], prompts=prompts, out=out, work=work,
        )  # fmt: skip

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

    def left(self, cost: Cost) -> Cost:
        """The same without the passes that an interrupted run has done; the memory is that of the whole run."""
        work, trains = self.work, cost.prepare_tokens + cost.recover_tokens
        prepare = cost.prepare_tokens * work.left_of("prepared")
        recover = cost.recover_tokens * work.left_of("recovered")
        return replace(
            cost,
            choose_tokens=cost.choose_tokens * work.left_of("choice"),
            prepare_tokens=prepare,
            recover_tokens=recover,
            training_tokens=round(cost.training_tokens * (prepare + recover) / trains)
            if trains
            else cost.training_tokens,
        )

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

    def finish(
        self, plan: PruningPlan, recovered: Any | None, dense: dict[str, Any], directory: Path, *, speed: bool
    ) -> tuple[Proof, dict[str, Any], list[str]]:
        """Write, prove and measure: the proof, and the pruned model's metrics and texts; sizes, and speed, of both are added."""
        model = self.decoder.model
        with self.stages.stage("cut and prove"):
            proof, pruned_model = self._write_and_prove(plan, recovered, directory)
        with self.stages.stage("measure pruned"):
            pruned, texts = self.measure(pruned_model, "pruned")
            dense["size_bytes"], pruned["size_bytes"] = sizes(model, pruned_model, directory)
            if speed:
                add_speed(dense, pruned, model, pruned_model, self.stages.progress)
        return proof, pruned, texts

    def _write_and_prove(self, plan: PruningPlan, recovered: Any | None, directory: Path) -> tuple[Proof, Any]:
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
