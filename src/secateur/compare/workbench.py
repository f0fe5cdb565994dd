"""One cell: choose layers, prepare, cut, recover, measure; what several cells need is computed once and kept in files.

At most two models are in memory: the dense one, and a working copy where weights are changed (a method's or a recovery's own
teacher comes on top).
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch

from secateur.compare.cells import Cell, plan_id
from secateur.compare.config import Comparison, ModelChoice, slug
from secateur.compare.reading import with_environment
from secateur.compare.results import Results
from secateur.context import check_window
from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.depth import layer_count
from secateur.errors import ModelError, RequestError
from secateur.evaluation.memory import PeakMemory
from secateur.loading import autocast_dtype, load_config, load_model, load_tokenizer
from secateur.methods import Run
from secateur.plan import PruningPlan
from secateur.progress import Progress
from secateur.report.record import config_sha256, git_revision, versions
from secateur.stages import Stages, add_speed, quality, sharing_copy
from secateur.surgery.live import remove_layers_
from secateur.training.precision import in_float32
from secateur.training.recovery import recover_

__all__ = ["Workbench", "check_tasks"]

logger = logging.getLogger(__name__)

Tasks = dict[str, dict[str, float]]
"""Task → `value`, a share of right answers, and its standard error, `stderr`."""


class Workbench:
    """Holds the dense model and the texts while the cells of a comparison are made."""

    def __init__(self, comparison: Comparison, results: Results, progress: Progress) -> None:
        self._comparison, self._results, self._progress = comparison, results, progress
        self._configs: dict[str, Any] = {}
        self._tokenizers: dict[str, Any] = {}
        self._texts: dict[tuple[str, int], tuple[TokenBatches, TokenBatches]] = {}
        self._dense: tuple[str, Decoder] | None = None

    # ---- what can be known before the first expensive step -----------------------------------------------------------

    def num_layers(self, model: ModelChoice) -> int:
        """Layers of a model, by its configuration.

        Raises:
            ModelError: if that cannot be read.
        """
        return layer_count(self._config(model))

    def check_context(self, model: ModelChoice) -> None:
        """Make sure that a model can read a window of the text.

        Raises:
            ModelError: if its configuration cannot be read.
            RequestError: if it cannot.
        """
        check_window(model.model, self._config(model), self._comparison.text.sequence_length)

    def text(self, model: ModelChoice, seed: int) -> tuple[TokenBatches, TokenBatches]:
        """Calibration and held-out windows, as this model's tokenizer makes them.

        Raises:
            ModelError: if there is no tokenizer.
            DataError: if a text cannot be read or is too short.
        """
        key = (model.title, seed)
        if key not in self._texts:
            self._texts[key] = self._comparison.text_here().load(self._tokenizer(model), seed)
        return self._texts[key]

    def fingerprints(self, model: ModelChoice, seed: int) -> dict[str, str]:
        """What tells the texts from others, and the model's architecture: `calibration`, `held_out`, `config`."""
        data, held_out = self.text(model, seed)
        config = config_sha256(self._config(model))[:16]
        return {"calibration": data.fingerprint, "held_out": held_out.fingerprint, "config": config}

    # ---- a cell --------------------------------------------------------------------------------------------------------

    def make(self, cell: Cell, *, most: int) -> dict[str, Any]:
        """The result of a cell, as it goes into its file.

        Args:
            cell: the cell.
            most: how many layers the choice is made for, where it serves other cells too.
        """
        run = Stages(self._progress)
        with PeakMemory() as memory:
            with run.stage("load"):
                decoder = self._decoder(cell.model)
                data, held_out = self.text(cell.model, cell.seed)
            with run.stage("measure dense"):
                dense = self._dense_quality(cell.model, decoder, held_out)
                dense_tasks = self._dense_tasks(cell.model, decoder, cell.tasks)
            context = Run(
                seed=cell.seed,
                precision=autocast_dtype(self._comparison.precision, decoder.device),
                progress=self._progress,
            )
            with run.stage("choose"):
                plan = self._plan(cell, decoder, data, most, context)
            pruned, trained, losses = self._pruned(cell, decoder, data, plan, context, run)
            with run.stage("measure pruned"):
                measured = quality(pruned, held_out, self._progress, "measuring the pruned model's perplexity")
                tasks = self._tasks(pruned, cell) if cell.tasks else {}
            speed = None
            if cell.speed:
                with run.stage("measure speed"):
                    speed = speed_ratios(decoder.model, pruned, self._progress)
        cost = cell.method.method.cost(decoder.num_layers, cell.drop, data)
        text = self._comparison.text
        return {
            "dropped": list(plan.dropped),
            "order": list(plan.order),
            "metrics": {"dense": {**dense, "tasks": dense_tasks}, "pruned": {**measured, "tasks": tasks}},
            "tokens": {"choose": cost.choose_tokens, "prepare": cost.prepare_tokens, **trained},
            "losses": losses,
            "data": {
                "calibration": {**data.describe(), "spec": text.data},
                "held_out": {**held_out.describe(), "spec": text.eval_data or text.data},
            },
            "seed": cell.seed,
            "git_revision": git_revision(),
            "versions": versions(),
            "timings": {
                "seconds": run.seconds,
                "speed": speed,
                "peak_memory_bytes": memory.bytes,
                "threads": torch.get_num_threads(),
            },
        }

    def _pruned(
        self, cell: Cell, decoder: Decoder, data: TokenBatches, plan: PruningPlan, context: Run, run: Stages
    ) -> tuple[Any, dict[str, int], dict[str, list[float]]]:
        """The pruned model; the tokens that were trained on, and the losses, before and after the cut."""
        method, recovery = cell.method.method, cell.recovery.settings
        trained = {"trained_before_cut": 0, "trained_after_cut": 0}
        losses: dict[str, list[float]] = {}
        changes = method.prepares or recovery.trains
        pruned = copy.deepcopy(decoder.model) if changes else sharing_copy(decoder.model)
        if method.prepares:
            with run.stage("prepare"):
                wide = cell.model.dtype == "auto" and method.trains_weights(data)
                with in_float32(pruned, wanted=wide):
                    report = method.prepare_(Decoder(pruned), data, plan, run=context)
            training = report.get("training", {})
            trained["trained_before_cut"] = int(training.get("tokens", 0))
            losses["before_cut"] = _losses(training)
        remove_layers_(pruned, plan.dropped)
        if recovery.trains:
            with run.stage("recover"), _lent(decoder.model) as teacher:
                training = recover_(
                    Decoder(pruned), data, settings=recovery, teacher=teacher, precision=context.precision,
                    wide=cell.model.dtype == "auto", seed=cell.seed, progress=self._progress,
                )  # fmt: skip
            trained["trained_after_cut"] = int(training["tokens"])
            losses["after_cut"] = _losses(training)
        return pruned, trained, losses

    # ---- computed once -------------------------------------------------------------------------------------------------

    def _decoder(self, model: ModelChoice) -> Decoder:
        if self._dense is None or self._dense[0] != model.title:
            self._dense = None  # before the next is loaded
            loaded = load_model(
                model.source, dtype=model.dtype, revision=model.revision, trust_remote_code=model.trust_remote_code
            )
            decoder = Decoder(loaded)
            if decoder.num_layers != self.num_layers(model):
                raise ModelError(
                    f"{model.model} has {decoder.num_layers} layers, but its configuration says {self.num_layers(model)}; "
                    "mend the checkpoint"
                )
            self._dense = (model.title, decoder)
        return self._dense[1]

    def _config(self, model: ModelChoice) -> Any:
        if model.title not in self._configs:
            self._configs[model.title] = load_config(
                model.source, revision=model.revision, trust_remote_code=model.trust_remote_code
            )
        return self._configs[model.title]

    def _tokenizer(self, model: ModelChoice) -> Any:
        if model.title not in self._tokenizers:
            self._tokenizers[model.title] = load_tokenizer(
                model.source, revision=model.revision, trust_remote_code=model.trust_remote_code
            )
        return self._tokenizers[model.title]

    def _dense_quality(self, model: ModelChoice, decoder: Decoder, held_out: TokenBatches) -> dict[str, Any]:
        request = {"model": _asked(model), "held_out": held_out.fingerprint}

        def measure() -> dict[str, Any]:
            return {"value": quality(decoder.model, held_out, self._progress, "measuring the dense model's perplexity")}

        found: dict[str, Any] = self._results.once("dense", slug(model.title), request, measure)["value"]
        return found

    def _dense_tasks(self, model: ModelChoice, decoder: Decoder, tasks: Sequence[str]) -> Tasks:
        """Each task once, so that more can be asked for later; a group gives several values."""
        values: Tasks = {}
        for task in tasks:
            request = {"model": _asked(model), "task": task, "limit": self._comparison.task_limit}

            def measure(task: str = task) -> dict[str, Any]:
                return {"value": task_values(decoder.model, self._tokenizer(model), (task,), self._comparison)}

            values |= self._results.once("dense", f"{slug(model.title)}--{slug(task)}", request, measure)["value"]
        return values

    def _tasks(self, pruned: Any, cell: Cell) -> Tasks:
        return task_values(pruned, self._tokenizer(cell.model), cell.tasks, self._comparison)

    def _plan(self, cell: Cell, decoder: Decoder, data: TokenBatches, most: int, context: Run) -> PruningPlan:
        """The cell's choice: its own, or the beginning of the one for `most` layers where the method is nested."""
        method = cell.method.method
        drop = most if method.nested else cell.drop
        request = {
            "model": _asked(cell.model), "method": method.name, "options": method.options(), "seed": cell.seed,
            "calibration": data.fingerprint, "precision": self._comparison.precision,
        }  # fmt: skip
        fresh: list[PruningPlan] = []

        def choose() -> dict[str, Any]:
            start = time.monotonic()
            fresh.append(method.plan(decoder, data, drop=drop, run=context))
            return {"plan": fresh[0].as_json(), "timings": {"seconds": round(time.monotonic() - start, 3)}}

        found = self._results.once(
            "plans", plan_id(cell), request, choose, enough=lambda kept: len(kept["plan"]["order"]) >= cell.drop
        )
        # What was just made still has in memory what its second stage needs; what was read makes that again, alike.
        plan = fresh[0] if fresh else PruningPlan.of_json(found["plan"])
        return method.shortened(plan, cell.drop)


def check_tasks(tasks: Sequence[str], comparison: Comparison) -> None:
    """Make sure that tasks can be measured here.

    Raises:
        RequestError: if they cannot.
    """
    if tasks:
        _harness().HarnessTasks.load(tuple(tasks), **_harness_options(comparison))


def task_values(model: Any, tokenizer: Any, tasks: Sequence[str], comparison: Comparison) -> Tasks:
    """The `value` of each task, with its `stderr`: the one place where a comparison calls the evaluation harness."""
    found = _harness().harness_scores(model, tokenizer, tuple(tasks), **_harness_options(comparison))
    return {score.task: {"value": score.value, "stderr": score.stderr} for score in found}


def _harness_options(comparison: Comparison) -> dict[str, Any]:
    path = comparison.include_path
    return {"limit": comparison.task_limit, "include_path": None if path is None else with_environment(path)}


def _harness() -> Any:
    try:
        return import_module("secateur.evaluation.harness")
    except ImportError as error:
        raise RequestError(f"tasks cannot be measured here ({error}); leave 'tasks' out") from error


def speed_ratios(dense: Any, pruned: Any, progress: Progress) -> dict[str, float] | None:
    """How many times the dense model's speed the pruned one has: the one place where a comparison measures speed."""
    measured: dict[str, dict[str, Any]] = {"dense": {}, "pruned": {}}
    add_speed(measured["dense"], measured["pruned"], dense, pruned, progress)
    names = {kind: f"{kind}_tokens_per_second" for kind in ("prefill", "decode")}
    if not measured["dense"]:  # no room in its context
        return None
    return {kind: measured["pruned"][name] / measured["dense"][name] for kind, name in names.items()}


@contextmanager
def _lent(model: Any) -> Iterator[Any]:
    """The model for somebody who freezes it; what was trainable and its mode come back."""
    trainable = [weight.requires_grad for weight in model.parameters()]
    mode = model.training
    try:
        yield model
    finally:
        for weight, was in zip(model.parameters(), trainable, strict=True):
            weight.requires_grad_(was)
        model.train(mode)


def _asked(model: ModelChoice) -> dict[str, Any]:
    asked = dataclasses.asdict(model)
    del asked["title"]
    return asked


def _losses(training: dict[str, Any]) -> list[float]:
    return [round(step["loss"], 4) for step in training.get("losses", [])]
