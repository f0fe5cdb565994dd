"""How ELDeR's weights of the layers are learned: the settings of its first stage, which is `secateur.methods.gates`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from secateur.errors import RequestError
from secateur.methods.base import Step
from secateur.settings import GateKind, check_above_zero, check_at_least

if TYPE_CHECKING:
    from secateur.data import TokenBatches

__all__ = ["ROWS_PER_STEP", "ROW_TOKENS", "GateLearning"]

ROW_TOKENS = 128
ROWS_PER_STEP = 8
"""What a step of the joint choice reads."""


@dataclass(frozen=True, kw_only=True)
class GateLearning:
    """How the weights of the layers are learned."""

    selection: Literal["joint", "greedy"] = "joint"
    """All layers at once under a budget, or one a round as published."""

    gate: GateKind = "residual"
    """What the weight of a layer multiplies: its change to the stream (residual), or its whole output."""

    gate_sequences: int | None = 8
    """Calibration windows to learn the weights on; all of them if null."""

    joint_steps: int = 40
    """Joint: steps of 8 rows of 128 tokens."""

    joint_rate: float = 0.25
    """Joint: how far a weight moves per nat of removal cost and step."""

    measured_start: bool = True
    """Joint: start from what removing each layer alone costs, one pass from each layer to the end, instead of from nothing."""

    explore: float = 0.25
    """Joint: share of the gates drawn uniformly, to measure what removal costs."""

    lambda_1: float = 0.1
    """Greedy: pressure on the weights, the factor of their l1 norm."""

    gate_learning_rate: float = 0.05
    """Greedy: learning rate of Adam on the weights."""

    first_steps: int = 15
    """Greedy: steps of the first round."""

    round_steps: int = 8
    """Greedy: steps of each later round."""

    warm_start: bool = True
    """Greedy: whether a round starts from the last round's weights, or from 1."""

    fixed_batch: bool = True
    """Greedy: whether every step sees all windows, or the next batch of them."""

    shortlist: int = 5
    """How many layers compete for each place by the calibration loss itself: the weights nominate them; 1 trusts the weights."""

    def __post_init__(self) -> None:
        check_above_zero(
            self, "gate_sequences", "joint_steps", "joint_rate", "gate_learning_rate", "first_steps", "round_steps", "shortlist",
        )  # fmt: skip
        if not 0 < self.explore <= 1:
            raise RequestError(f"explore is a share above 0 and at most 1, not {self.explore:g}")
        check_at_least(self, 0, "lambda_1")
        if self.selection == "joint" and self.gate != "residual":
            raise RequestError(
                "the joint choice needs layers that can be absent: set gate to residual, or selection to greedy"
            )

    def choosing_tokens(self, num_layers: int, drop: int, data: TokenBatches) -> float:
        """What choosing costs, in tokens forward through the whole model; a backward pass for the gates counts 1.2."""
        windows = min(self.gate_sequences or data.num_sequences, data.num_sequences)
        tokens = windows * data.sequence_length
        left = [1 - done / num_layers for done in range(drop)]
        tried = 0.6 * self.shortlist * tokens if self.shortlist > 1 else 0.0
        if self.selection == "joint":
            trials = 0.6 * tokens * sum(drop + self.shortlist - 1 - done for done in range(drop))
            alone = (1 + 0.6 * num_layers) * tokens if self.measured_start else 0.0
            learned = 2.2 * self.joint_steps * min(tokens, ROWS_PER_STEP * ROW_TOKENS)
            return alone + learned + (trials if tried else 0.0)
        per_step = tokens if self.fixed_batch else min(tokens, data.batch_size * data.sequence_length)
        return sum(
            share * (2.2 * per_step * steps + tried)
            for share, steps in zip(left, self.steps_by_round(drop), strict=True)
        )

    def choosing_step(self, data: TokenBatches) -> Step:
        """A step on the weights of the layers."""
        if self.selection == "joint":
            return Step(trains="gates", sequences=ROWS_PER_STEP, tokens=min(ROW_TOKENS, data.sequence_length))
        return Step(trains="gates")

    def steps_by_round(self, drop: int) -> list[int]:
        """Greedy: the steps of each round."""
        return [self.first_steps] + [self.round_steps] * (drop - 1)
