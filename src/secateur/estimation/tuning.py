"""Memory and time of a run of `secateur tune`, phase by phase."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from secateur.context import context_of
from secateur.data import TokenBatches
from secateur.data.task import TaskSettings, calibration_shape, num_held_out
from secateur.depth import layer_count
from secateur.estimation.dry_run import Footprint
from secateur.estimation.estimate import Phase, Setting, flops_per_token, footprint, trained
from secateur.estimation.task_size import TaskSize
from secateur.evaluation.tasks import BATCH_SIZE
from secateur.methods import Cost, Method
from secateur.step import RowSize, Step
from secateur.training.settings import FineTuning

__all__ = ["TuningCost", "tuning_peak", "tuning_phases"]

_SPEED_TOKENS = 128
"""Of the prompt that the speeds of both models are measured on."""


@dataclass(frozen=True, kw_only=True)
class TuningCost:
    """What a fine-tuning that prunes on the way uses, in units of the dense model."""

    config: Any
    """Of the dense model."""

    method: Method
    """Chooses the layers."""

    drop: int
    """How many layers go."""

    tuning: FineTuning
    """How to fine-tune."""

    task: TaskSize
    """How many examples there are."""

    rows: RowSize
    """How long they are."""

    tune_dense: bool = False
    """Whether the dense model is fine-tuned alike."""

    speed: bool = True
    """Whether the speed of both is measured in the end, for which the dense one is read again."""

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the fine-tuning."""
        return self.tuning.num_steps(self.task.num_train)

    @property
    def left(self) -> float:
        """The share of the layers that stay."""
        return 1 - self.drop / layer_count(self.config)

    @cached_property
    def windows(self) -> TokenBatches:
        """What a method calibrates on that looks at plain text."""
        count, length = calibration_shape(int(self.task.num_train * self.rows.mean), context_of(self.config))
        return TokenBatches(torch.zeros(count, length, dtype=torch.long), 4, "estimated")

    @cached_property
    def pruning(self) -> Cost:
        """What choosing the layers and preparing them uses."""
        return self.method.cost_on_task(
            layer_count(self.config), self.drop, self.rows, self.windows, total_steps=self.num_steps
        )

    def tokens(self) -> dict[str, float]:
        """Phase → forward passes, in tokens through the whole dense model; a backward pass counts as what it costs."""
        task, tuning = self.task, self.tuning
        share = num_held_out(task.num_train)
        tested = self._scored(task.num_test or share)
        validations = self.num_steps // tuning.steps_of_epoch(task.num_train)
        validated = validations * self._scored(task.num_validation or min(share, TaskSettings.num_validation))
        learnt_on = self.num_steps * tuning.batch_size * self.rows.padded(tuning.at_once) * tuning.passes_per_token
        return {
            "measure": tested * (1 + self.tune_dense),
            **({"tune dense": learnt_on + validated} if self.tune_dense else {}),
            "choose": self.pruning.choose_tokens,
            **({"prepare": self.pruning.prepare_tokens} if self.pruning.preparing is not None else {}),
            "fine-tune": learnt_on * self.left,
            "validate": validated * self.left,
            "prove": tested * self.left,
        }

    def _scored(self, examples: int) -> float:
        """Tokens that are read to score so many examples: sorted by length, so that there is little padding."""
        return examples * self.task.num_options * self.rows.mean

    def scoring(self, *, without: int = 0) -> Step:
        """A forward pass that scores the longest examples; they are sorted by length, and the shortest taken for average."""
        rows = self.rows
        return Step(
            sequences=BATCH_SIZE,
            tokens=rows.longest,
            logits=min(rows.longest, math.ceil(rows.longest - rows.mean) + rows.learnt),
            without=without,
            cut=True,
        )


def tuning_phases(cost: TuningCost, setting: Setting) -> list[Phase]:
    """The phases of a run of `secateur tune`: measure, tune the dense model, choose, prepare, fine-tune, validate, prove.

    Raises:
        ModelError: if the model cannot be run without data.
    """
    rows, tuning = cost.rows, cost.tuning
    mean = max(1, round(rows.mean))
    of_step = flops_per_token(cost.config, mean, min(rows.logits(tuning.at_once), mean))
    of_scoring = flops_per_token(cost.config, mean, min(rows.learnt, mean))
    of_windows = flops_per_token(cost.config, cost.windows.sequence_length)
    # What is chosen on windows, and not on examples, runs over their tokens alone, and makes all their logits.
    of_choosing = of_windows if cost.pruning.choosing.tokens is None else of_step
    per_token = {"tune dense": of_step, "choose": of_choosing, "prepare": of_windows, "fine-tune": of_step}
    return [
        replace(phase, flops=phase.tokens * per_token.get(phase.name, of_scoring)) for phase in _phases(cost, setting)
    ]


def tuning_peak(cost: TuningCost, setting: Setting) -> float:
    """The most memory of all phases, on each device, in bytes.

    Raises:
        ModelError: if the model cannot be run without data.
    """
    return max(phase.memory_bytes for phase in _phases(cost, setting))


def _phases(cost: TuningCost, setting: Setting) -> Iterator[Phase]:
    """The phases with tokens and heaviest step, without their operations."""
    tokens = cost.tokens()
    full = cost.tuning.train == "full"
    # 16-bit weights that are to be trained are in float32 from the choice of layers to the end of the training.
    wide = replace(setting, dtype=torch.float32) if full and setting.wide and setting.dtype.itemsize == 2 else setting

    def step_of(step: Step, of: Setting) -> Footprint:
        return footprint(cost.config, step, cost.windows, of)

    def training_of(without: int) -> tuple[Footprint, Footprint, Step]:
        """A step of the training, the scoring of the validation examples meanwhile, and what the first is."""
        step = cost.tuning.step(cost.rows, without=without)
        training, scoring = step_of(step, wide), step_of(cost.scoring(without=without), wide)
        kept = training.moments_bytes + (0 if full else training.trained_bytes)  # of AdamW, and the adapters
        return training, replace(scoring, kept_bytes=kept), step

    plain = replace(setting, precision=None)  # models are measured in the precision of their weights
    dense = step_of(cost.scoring(), plain)
    yield Phase(name="measure", tokens=tokens["measure"], step=dense)
    if cost.tune_dense:
        training, scoring, step = training_of(0)
        heaviest = _beside(max(training, scoring, key=lambda each: each.peak_bytes), dense.weights_bytes)
        phase = Phase(name="tune dense", tokens=tokens["tune dense"], step=heaviest, beside_bytes=dense.weights_bytes)
        yield trained(phase, step, setting)
    yield Phase(name="choose", tokens=tokens["choose"], step=step_of(cost.pruning.choosing, wide))
    if cost.pruning.preparing is not None:
        step = cost.pruning.preparing
        phase = Phase(name="prepare", tokens=tokens["prepare"], step=step_of(step, wide))
        yield trained(phase, step, setting)
    training, scoring, step = training_of(cost.drop)
    yield trained(Phase(name="fine-tune", tokens=tokens["fine-tune"], step=training), step, setting)
    yield trained(Phase(name="validate", tokens=tokens["validate"], step=scoring), step, setting)
    # What is written is loaded again beside what was trained, and measured; for its speed the dense model is there, too.
    pruned = step_of(cost.scoring(without=cost.drop), plain)
    proof = replace(pruned, kept_bytes=pruned.weights_bytes)
    if cost.speed:
        one = Step(sequences=1, tokens=_SPEED_TOKENS, without=cost.drop, cut=True)
        timed = replace(step_of(one, plain), kept_bytes=pruned.weights_bytes + dense.weights_bytes)
        proof = max(proof, timed, key=lambda each: each.peak_bytes)
    yield Phase(name="prove", tokens=tokens["prove"], step=proof)


def _beside(step: Footprint, weights: int) -> Footprint:
    """A step while another model lies beside what it runs."""
    return replace(
        step,
        weights_bytes=step.weights_bytes + weights,
        step_bytes=step.step_bytes + weights,
        update_bytes=step.update_bytes + weights if step.update_bytes else 0,
    )
