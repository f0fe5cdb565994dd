"""ELDeR / TRSP (arXiv 2505.18232; ACL 2026): learn which layers matter, prepare their removal, then remove them.

Stage 1 learns a weight a layer, the model frozen, and chooses the layers with the smallest: `secateur.methods.gates`.

Stage 2 trains the model with `L(W, X) + λ2·Σ_{l in P} ‖X_out[l] − X_in[l]‖` (section 3.2), the chosen layers P still active, and
only then removes them: `secateur.training.removal`, which also says how the norm is reduced, since the paper does not.

`ElderPublished` is the published form; `Elder` has the defaults that measured best on SmolLM2-135M. Each difference is a setting
of its own, with its ablation in docs/methods/elder.md: the joint choice, the residual gate, *absorb* (arXiv 2505.02819: what
the layers did is folded into the projection before them, in closed form, and they are bypassed from then on), *distil*, *fade*.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from secateur.errors import RequestError
from secateur.methods.base import Cost, Method, Run, Step
from secateur.methods.gate_learning import GateLearning
from secateur.plan import LayerScores, PruningPlan
from secateur.settings import AbsorbForm, GateKind, check_at_least
from secateur.training.settings import RemovalTraining

if TYPE_CHECKING:
    from secateur.data import TokenBatches
    from secateur.decoder import Decoder

__all__ = ["Elder", "ElderPublished"]


@dataclass(frozen=True, kw_only=True)
class Elder(GateLearning, RemovalTraining, Method):
    """ELDeR with the settings that measured best."""

    name: ClassVar[str] = "elder"
    paper: ClassVar[str] = "arXiv 2505.18232"
    prepares: ClassVar[bool] = True

    prepare: bool = True
    """Whether there is a second stage at all."""

    absorb: AbsorbForm | None = "projection"
    """Fold what the layers did into the projection before them first; they are bypassed from then on (needs fade_over 0)."""

    absorb_alpha: float | None = None
    """Pull of absorb towards the weights as they are; chosen on the last eighth of the windows if null."""

    # Defaults of RemovalTraining that measured best with absorb.
    fade_over: float | None = 0.0
    distil: float = 0.3
    learning_rate: float = 2e-4
    warmup: float = 0.1

    def __post_init__(self) -> None:
        GateLearning.__post_init__(self)
        RemovalTraining.__post_init__(self)
        check_at_least(self, 0, "absorb_alpha")
        if self.absorb is not None and self.prepare and self.fade_over != 0:
            raise RequestError("absorb replaces the layers that go, so they cannot stay active: set fade_over to 0")
        object.__setattr__(self, "nested", self.selection == "greedy")  # of the class, the joint choice

    def plan(self, decoder: Decoder, data: TokenBatches, *, drop: int, run: Run | None = None) -> PruningPlan:
        """Stage 1: learn a weight a layer, and choose those that end lowest.

        Raises:
            TrainingDivergedError: if the loss stops being finite; nothing was changed.
        """
        from secateur.methods.gates import choose_layers

        choice = choose_layers(decoder, data, drop, self, run or Run())
        scores = LayerScores(tuple(choice.weights), self.name)
        about = {"weights_by_round": choice.history, "weight_steps": choice.steps, "shortlist_losses": choice.tried}
        return self._planned(choice.order, scores, **about)

    def prepare_(
        self, decoder: Decoder, data: TokenBatches, plan: PruningPlan, *, run: Run | None = None
    ) -> dict[str, Any]:
        """Stage 2: absorb and train, as the settings say; the layers are still there afterwards.

        Raises:
            TrainingDivergedError: if the loss stops being finite; the model then holds the last good weights.
            UnsupportedModelError: if the model has no plain projection to absorb into; nothing was changed.
        """
        from secateur.surgery.absorb import absorb_
        from secateur.training.removal import train_towards_removal_

        if not self.prepare:
            return {}
        run = run or Run()
        report: dict[str, Any] = {}
        teacher = copy.deepcopy(decoder.model) if self.distil > 0 and self.num_steps(data) > 0 else None
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
        if self.num_steps(data) > 0:
            report["training"] = train_towards_removal_(
                decoder,
                plan.dropped,
                data,
                settings=self,
                teacher=teacher,
                precision=run.precision,
                seed=run.seed,
                progress=run.progress,
                keeping=run.keeping,
            )
        return report

    def trains_weights(self, data: TokenBatches) -> bool:
        """Unless LoRA does, or there is nothing to train."""
        return self.prepare and self.train != "lora" and self.num_steps(data) > 0

    def final_gate(self) -> float:
        """What is left of the layers that go when stage 2 ends: 1 if they are fully active, 0 if nothing is."""
        return self.fade_at(1.0) if self.prepare else 1.0

    def cost(self, num_layers: int, drop: int, data: TokenBatches) -> Cost:
        """Gate steps run forward and backward for the gates alone; training also needs the weights' gradients."""
        trained = self.num_steps(data) * self.sequences_per_step * data.sequence_length if self.prepare else 0
        left = 1 - drop / num_layers if self.fade_over == 0 else 1.0
        absorbed = 1.6 * data.num_tokens if self.absorb and self.prepare else 0.0
        teaching = trained if self.distil > 0 else 0
        return Cost(
            choose_tokens=self.choosing_tokens(num_layers, drop, data),
            prepare_tokens=absorbed + 3.3 * trained * left + teaching,
            training_tokens=trained,
            choosing=self.choosing_step(data),
            preparing=self.step(without=drop if self.fade_over == 0 else 0)
            if trained
            else Step()
            if absorbed
            else None,
        )


@dataclass(frozen=True, kw_only=True)
class ElderPublished(Elder):
    """ELDeR as published: greedy rounds from 1, the output gate, λ1 = 5e-3, λ2 = 1e-3, the layers active until they go."""

    name: ClassVar[str] = "elder-published"

    selection: Literal["joint", "greedy"] = "greedy"
    gate: GateKind = "output"
    lambda_1: float = 5e-3
    warm_start: bool = False
    shortlist: int = 1
    absorb: AbsorbForm | None = None
    lambda_2: float = 1e-3
    fade_over: float | None = None
    distil: float = 0.0
    learning_rate: float = 2e-5
    warmup: float = 0.03
