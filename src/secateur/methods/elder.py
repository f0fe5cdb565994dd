"""ELDeR / TRSP (arXiv 2505.18232; ACL 2026): learn which layers matter, prepare their removal, then remove them.

Stage 1 learns a scalar `s[l]` for each layer, the model's weights frozen, by minimising `L(W, X) + λ1·Σ|s[l]|`; after each
round the layer with the smallest `s` joins the set P and is bypassed while the rest are learned again (section 3.1).

Stage 2 trains the weights with `L(W, X) + λ2·Σ_{l in P} ‖X_out[l] − X_in[l]‖` (section 3.2), P still active, and only then
removes P. See `secateur.training.removal` for the reduction of the norm, which the paper leaves open.

Deviations, each a setting: `Elder` has the defaults that measured best on SmolLM2-135M (docs/methods/elder.md has the
ablations), `ElderPublished` the published form. Ours are the residual gate, a pressure λ1 that is felt within few steps on
one fixed batch, a short list checked by the loss itself, and in stage 2 *absorb* (arXiv 2505.02819), *distil* and *fade*.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from secateur.data import TokenBatches
from secateur.decoder import Decoder, GateKind, evaluating
from secateur.errors import RequestError, TrainingDivergedError
from secateur.methods.base import Cost, Method, Run, next_token_loss
from secateur.methods.sleb import removal_losses
from secateur.plan import LayerScores, PruningPlan
from secateur.surgery.absorb import AbsorbForm, absorb_
from secateur.training.removal import RemovalTraining, train_towards_removal_

__all__ = ["Elder", "ElderPublished", "on_budget"]


@dataclass(frozen=True, kw_only=True)
class Elder(RemovalTraining, Method):
    """ELDeR with the settings that measured best."""

    name: ClassVar[str] = "elder"
    paper: ClassVar[str] = "arXiv 2505.18232"
    prepares: ClassVar[bool] = True

    # Stage 1: choose the layers.
    gate: GateKind = "residual"
    """What the weight of a layer multiplies: its change to the stream (residual), or its whole output."""

    selection: Literal["greedy", "joint"] = "greedy"
    """A layer a round, or all at once under a budget for the sum of the weights."""

    lambda_1: float = 0.1
    """Pressure on the weights: factor of their l1 norm."""

    gate_learning_rate: float = 0.05
    """Learning rate of Adam on the weights."""

    first_steps: int = 15
    """Steps of the first round."""

    round_steps: int = 8
    """Steps of each later round, from the last round's weights."""

    warm_start: bool = True
    """Whether a round starts from the last round's weights, or from 1."""

    gate_sequences: int | None = 8
    """Calibration windows to learn the weights on; all of them if null."""

    fixed_batch: bool = True
    """Whether every step sees all of those windows, or the next batch of them."""

    shortlist: int = 1
    """How many layers with the smallest weights are tried by the calibration loss itself in each round; 1 trusts the weights."""

    # Stage 2: make them removable; the fields of RemovalTraining, with these defaults.
    fade_over: float | None = 0.0
    distil: float = 1.0
    learning_rate: float = 1e-4

    absorb: AbsorbForm | None = "projection"
    """Fold what the layers did into the projection before them first (arXiv 2505.02819); they are bypassed from then on."""

    absorb_alpha: float = 0.1
    """Pull of absorb towards the weights as they are."""

    prepare: bool = True
    """Whether there is a second stage at all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("first_steps", "round_steps", "shortlist", "gate_learning_rate", "gate_sequences"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise RequestError(f"{name} must be above 0, not {value:g}")
        if self.lambda_1 < 0 or self.absorb_alpha < 0:
            raise RequestError("lambda_1 and absorb_alpha must be 0 or more")
        if self.absorb is not None and self.prepare and self.fade_over != 0:
            raise RequestError("absorb replaces the layers that go, so they cannot stay active: set fade_over to 0")

    # ---- stage 1 ----------------------------------------------------------------------------------------------------

    def plan(self, decoder: Decoder, data: TokenBatches, *, drop: int, run: Run | None = None) -> PruningPlan:
        """Stage 1: learn a weight a layer, and choose those that end lowest."""
        run = run or Run()
        data = data.take(self.gate_sequences) if self.gate_sequences else data
        choose = self._choose_jointly if self.selection == "joint" else self._choose_greedily
        with _frozen(decoder):
            order, weights, history = choose(decoder, data, drop, run)
        scores = LayerScores(tuple(weights), self.name)
        return self._planned(order, scores, weights_by_round=history)

    def _choose_greedily(
        self, decoder: Decoder, data: TokenBatches, drop: int, run: Run
    ) -> tuple[list[int], list[float], list[list[float]]]:
        num_layers = decoder.num_layers
        gates = torch.ones(num_layers, requires_grad=True)
        final = [1.0] * num_layers
        order: list[int] = []
        history: list[list[float]] = []
        rounds = self._steps(drop)
        with run.progress.track("learning the weight of each layer", sum(rounds)) as advance:
            for steps in rounds:
                active = [layer for layer in range(num_layers) if layer not in order]
                if not self.warm_start:
                    gates = torch.ones(num_layers, requires_grad=True)
                slopes = self._learn(decoder, data, gates, active, order, steps, run, advance)
                values = gates.detach().tolist()
                final = [values[layer] if layer in active else final[layer] for layer in range(num_layers)]
                history.append([round(value, 5) for value in final])
                # Several weights can reach 0: of those the one goes that the loss pushes down hardest.
                ranked = sorted(active, key=lambda layer: (values[layer], -slopes[layer], layer))
                order.append(self._lowest(decoder, data, ranked[: self.shortlist], order, run))
        return order, final, history

    def _lowest(self, decoder: Decoder, data: TokenBatches, listed: list[int], order: list[int], run: Run) -> int:
        """The layer with the smallest weight; of a short list of them, the one whose removal costs least."""
        if len(listed) == 1:
            return listed[0]
        losses = removal_losses(decoder, data, order, listed, run)
        return min(listed, key=lambda layer: losses[layer])

    def _choose_jointly(
        self, decoder: Decoder, data: TokenBatches, drop: int, run: Run
    ) -> tuple[list[int], list[float], list[list[float]]]:
        """All weights at once: after each step they are projected onto `0 ≤ s ≤ 1, Σs = budget`, the budget falling from
        all layers to those that stay over the first half of the steps."""
        num_layers, steps = decoder.num_layers, sum(self._steps(drop))
        gates = torch.ones(num_layers, requires_grad=True)
        history: list[list[float]] = []

        def project(step: int) -> None:
            fallen = min(1.0, 2 * (step + 1) / steps)
            gates.data = on_budget(gates.data, num_layers - drop * fallen)
            history.append([round(value, 5) for value in gates.tolist()])

        with run.progress.track("learning the weights of all layers", steps) as advance:
            self._learn(decoder, data, gates, range(num_layers), (), steps, run, advance, project)
        values = gates.detach().tolist()
        return list(LayerScores(tuple(values)).lowest(drop)), values, history[:: max(1, steps // 8)]

    def _learn(
        self,
        decoder: Decoder,
        data: TokenBatches,
        gates: Tensor,
        active: Sequence[int],
        bypassed: Collection[int],
        steps: int,
        run: Run,
        advance: Callable[[int], None],
        project: Callable[[int], None] | None = None,
    ) -> list[float]:
        """Minimise `L + λ1·Σ|s|` over the gates of the active layers, in place; gates are kept at 0 or above.

        Returns:
            The last `∂L/∂s`, a number a layer.
        """
        slopes = [0.0] * decoder.num_layers
        optimizer = torch.optim.Adam([gates], lr=self.gate_learning_rate)
        batches = list(data)
        for step in range(steps):
            optimizer.zero_grad()
            for input_ids in batches if self.fixed_batch else [batches[step % len(batches)]]:
                with (
                    run.autocast(decoder),
                    decoder.bypass(bypassed),
                    decoder.gate(gates, kind=self.gate, layers=active),
                ):
                    loss = next_token_loss(decoder.logits(input_ids), input_ids)
                share = len(input_ids) / data.num_sequences if self.fixed_batch else 1.0
                (share * loss).backward()
                if not math.isfinite(loss.item()):
                    raise TrainingDivergedError(
                        f"the loss became {loss.item()} while the layer weights were learned; nothing was changed: try a "
                        f"lower gate_learning_rate (now {self.gate_learning_rate:g}), fp32 precision, or other text"
                    )
            assert gates.grad is not None  # noqa: S101  the loss depends on every active gate
            slopes = gates.grad.tolist()
            if project is None:  # under a budget the l1 norm is a constant
                (self.lambda_1 * gates[list(active)].abs().sum()).backward()
            optimizer.step()
            with torch.no_grad():
                gates.clamp_(min=0)
            if project is not None:
                project(step)
            advance(1)
        return slopes

    def _steps(self, drop: int) -> list[int]:
        return [self.first_steps] + [self.round_steps] * (drop - 1)

    # ---- stage 2 ----------------------------------------------------------------------------------------------------

    def prepare_(
        self, decoder: Decoder, data: TokenBatches, plan: PruningPlan, *, run: Run | None = None
    ) -> dict[str, Any]:
        """Stage 2: absorb and train, as the settings say; the layers are still there afterwards.

        Raises:
            TrainingDivergedError: if the loss stops being finite; the model then holds the last good weights.
        """
        if not self.prepare:
            return {}
        run = run or Run()
        report: dict[str, Any] = {}
        teacher = copy.deepcopy(decoder.model) if self.distil > 0 else None
        if self.absorb is not None:
            report["absorb"] = absorb_(
                decoder,
                plan.dropped,
                data,
                form=self.absorb,
                alpha=self.absorb_alpha,
                precision=run.precision,
                progress=run.progress,
            )
        if self.steps != 0:
            report["training"] = train_towards_removal_(
                decoder,
                plan.dropped,
                data,
                settings=self,
                teacher=teacher,
                precision=run.precision,
                seed=run.seed,
                progress=run.progress,
            )
        return report

    def final_gate(self) -> float:
        """What is left of the layers that go when stage 2 ends: 1 if they are fully active, 0 if nothing is."""
        return self.fade_at(1.0) if self.prepare else 1.0

    def cost(self, num_layers: int, drop: int, data: TokenBatches) -> Cost:
        """Gate steps run forward and backward through what is left; training also needs the weights' gradients."""
        chosen = min(self.gate_sequences or data.num_sequences, data.num_sequences) * data.sequence_length
        per_step = chosen if self.fixed_batch else min(chosen, data.batch_size * data.sequence_length)
        shares = [1.0] * drop if self.selection == "joint" else [1 - done / num_layers for done in range(drop)]
        tried = sum(shares) * self.shortlist * chosen * 0.6 if self.shortlist > 1 else 0.0
        choose = 2.2 * per_step * sum(n * share for n, share in zip(self._steps(drop), shares, strict=True)) + tried
        trained = self.num_steps(data) * self.sequences_per_step * data.sequence_length if self.prepare else 0
        left = 1 - drop / num_layers if self.fade_over == 0 else 1.0
        absorbed = 2 * data.num_tokens * 0.6 if self.absorb and self.prepare else 0.0
        teaching = trained if self.distil > 0 else 0
        copies = (
            1.0 if not trained else 2.0 if self.train == "lora" else 5.0
        )  # weights, gradients, two moments, last good
        return Cost(
            choose_tokens=choose,
            prepare_tokens=absorbed + 3.3 * trained * left + teaching,
            training_tokens=trained,
            memory_copies=copies + (1.0 if teaching else 0.0),
        )


@dataclass(frozen=True, kw_only=True)
class ElderPublished(Elder):
    """ELDeR as published: the output gate, λ1 = 5e-3, λ2 = 1e-3, the layers active until they are removed."""

    name: ClassVar[str] = "elder-published"

    gate: GateKind = "output"
    lambda_1: float = 5e-3
    shortlist: int = 1
    warm_start: bool = False
    absorb: AbsorbForm | None = None
    lambda_2: float = 1e-3
    fade_over: float | None = None
    distil: float = 0.0
    learning_rate: float = 2e-5


def on_budget(values: Tensor, budget: float) -> Tensor:
    """The point nearest to `values` (layers,) with every entry in [0, 1] and the sum `budget`, by bisection on a shift."""
    low, high = values.min().item() - 1.0, values.max().item()
    for _ in range(60):
        shift = (low + high) / 2
        low, high = (shift, high) if (values - shift).clamp(0, 1).sum().item() > budget else (low, shift)
    return (values - (low + high) / 2).clamp(0, 1)


@contextmanager
def _frozen(decoder: Decoder) -> Iterator[None]:
    """No gradients for any weight, evaluation mode; both come back."""
    trainable = [parameter for parameter in decoder.model.parameters() if parameter.requires_grad]
    with evaluating(decoder.model):
        decoder.model.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
