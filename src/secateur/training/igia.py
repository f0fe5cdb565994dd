"""Initial gradient information accumulation: what the first steps of a fine-tuning tell about each layer.

GradPruner (arXiv 2601.19503, section 3.1). With LoRA on every linear sub-layer, `W + B·A`, the simulated gradient of a
weight at step i and the IGIA-Matrix after t steps are

    G_i = ∇B_i · ∇A_i        F_W = (1/t) · Σ_i G_i ∘ G_i        score[l] = Σ_{W in l} Σ_{jk} F_W[j,k]

B is 0 at the first step, so ∇A and G are too: that is the method. No (m, n) matrix is made while training runs: the score
needs `‖∇B ∇A‖² = tr((∇Bᵀ∇B)(∇A∇Aᵀ))`, which is r x r, and F_W is held exactly by the factors of all steps, `t·r·(m+n)` numbers.

`reduction="norm"` sums `‖G_i‖` instead of its square, as the published code does; `gradients="full"` is for training without
LoRA and accumulates `(∂L/∂W)²` itself.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from secateur.decoder import Decoder
from secateur.errors import RequestError, RunError
from secateur.plan import LayerScores, PruningPlan
from secateur.settings import Gradients, Merge, Reduction, check_keep
from secateur.surgery.masks import write_masks
from secateur.surgery.merge import highest_merged
from secateur.training.gradients import full_weights, low_rank_weights

__all__ = ["IGIA", "IGIACallback", "rank_correlation"]

logger = logging.getLogger(__name__)

_LOW_AGREEMENT = 0.5


class IGIA:
    """Accumulates the IGIA-Matrix of every linear weight of every decoder layer, a step at a time.

    In a training loop of your own, call `add_step` after the gradients are there (and clipped), before `optimizer.step()`.

    Args:
        model: a causal language model; with LoRA of peft on the linear sub-layers of its decoder layers if `gradients` is `lora`.
        gradients: `lora` reads the gradients of A and B, `full` those of the weights.
        keep_factors: keep what `matrix` needs (`t·r·(m+n)` numbers a weight in CPU memory; with `full` m·n on the device).
            Scores need none of it.

    Raises:
        RequestError: if a decoder layer has no weight to read a gradient from.
        UnsupportedModelError: if the layers cannot be found.
    """

    def __init__(self, model: nn.Module, *, gradients: Gradients = "lora", keep_factors: bool = True) -> None:
        if gradients not in ("lora", "full"):
            raise RequestError(f"gradients is 'lora' or 'full', not '{gradients}'")
        decoder = Decoder(model)
        self.num_layers = decoder.num_layers
        self.gradients = gradients
        self.num_steps = 0
        self.num_skipped = 0
        self.adapters: dict[str, Tensor] = {}
        """What was trained meanwhile, by peft's names, where whoever trained it left it here."""
        find = low_rank_weights if gradients == "lora" else full_weights
        self._weights = {
            (weight.layer, weight.name): weight
            for layer, module in enumerate(decoder.layers)
            for weight in find(layer, module, keep_factors)
        }
        bare = sorted(set(range(self.num_layers)) - {layer for layer, _ in self._weights})
        if bare:
            remedy = (
                "attach it to all of them (LoraConfig(target_modules='all-linear')), or use gradients='full'"
                if gradients == "lora"
                else "unfreeze its linear weights"
            )
            what = "no LoRA" if gradients == "lora" else "nothing that is trained"
            raise RequestError(f"layer {bare[0]} has {what}, so it cannot be scored; {remedy}")

    def add_step(self) -> bool:
        """Take in the gradients of one optimiser step; False if they are not finite, and the step does not count.

        Raises:
            RunError: if no weight has a gradient.
        """
        measured = {key: weight.measure() for key, weight in self._weights.items()}
        found = {key: square for key, square in measured.items() if square is not None}
        if not found:
            raise RunError("no weight has a gradient; call add_step after the backward pass, before optimizer.step()")
        device = next(iter(found.values())).device
        squares = torch.cat([square.to(device) for square in found.values()]).cpu().double()  # one transfer for all
        if not torch.isfinite(squares).all():  # a mixed-precision step, which the optimiser skips too
            self.num_skipped += 1
            return False
        by_key = dict(zip(found, torch.split(squares, [len(square) for square in found.values()]), strict=True))
        for key, weight in self._weights.items():
            # A weight that took no part, as an expert that no token went to, has no gradient: 0.
            weight.squares.append(by_key.get(key, torch.zeros(1, dtype=torch.float64)))
            weight.keep()
        self.num_steps += 1
        return True

    def scores(self, reduction: Reduction = "squares") -> LayerScores:
        """A score a layer; larger means keep.

        Args:
            reduction: `squares` sums the mean of ‖G‖² (the paper), `norm` the mean of ‖G‖ (the published code).

        Raises:
            RunError: if there is no step yet, or none with a gradient other than 0.
        """
        by_step = self._by_step(reduction)
        if not by_step.any():
            raise RunError(
                "every simulated gradient is 0: B is 0 at the first step, so accumulate 2 steps or more "
                "(published: 1 % of the fine-tuning, 40 steps)"
            )
        return LayerScores(tuple(by_step.mean(dim=0).tolist()), "gradpruner")

    def stability(self, reduction: Reduction = "squares") -> float | None:
        """Kendall's tau between the layers' scores from the first and from the second half of the steps.

        None if there are fewer than 4, or a half says nothing: LoRA's first gradient is 0, and so is its second where the
        learning rate begins at 0.
        """
        if self.num_steps < 4:
            return None
        by_step = self._by_step(reduction)
        halves = [half.mean(dim=0) for half in (by_step[: len(by_step) // 2], by_step[len(by_step) // 2 :])]
        if not all(bool(half.any()) for half in halves):
            return None
        return rank_correlation(halves[0].tolist(), halves[1].tolist())

    def names(self, layer: int) -> list[str]:
        """The weights of a layer that were watched, by name within the layer."""
        return [name for other, name in self._weights if other == layer]

    def matrix(self, layer: int, name: str, device: torch.device | str | None = None) -> Tensor:
        """F_W of one weight, float32, in the shape in which the model stores the weight.

        Args:
            layer: of the dense model.
            name: of the weight within the layer.
            device: where to compute it; where the weight lay when it was scored if None.

        Raises:
            RequestError: if there is no such weight, or its factors were not kept.
        """
        if (layer, name) not in self._weights:
            raise RequestError(
                f"layer {layer} has no weight '{name}' that was watched; choose one of {self.names(layer)}"
            )
        weight = self._weights[layer, name]
        return weight.matrix(weight.device if device is None else torch.device(device))

    def write_masks(self, plan: PruningPlan, path: Path) -> None:
        """Write what the merges of a plan take: see `secateur.surgery.masks`.

        Raises:
            RequestError: if the factors were not kept.
            OSError: if it cannot be written.
        """
        write_masks(path, plan.merges, self, keep=plan.options["keep"], merge=plan.options["merge"])

    def history(self, reduction: Reduction = "squares") -> list[list[float]]:
        """The score of each layer at each step: steps x layers."""
        rows: list[list[float]] = self._by_step(reduction).tolist()
        return rows

    def _by_step(self, reduction: Reduction) -> Tensor:
        """(steps, layers), float64."""
        if reduction not in ("squares", "norm"):
            raise RequestError(f"reduction is 'squares' or 'norm', not '{reduction}'")
        result = torch.zeros(self.num_steps, self.num_layers, dtype=torch.float64)
        for (layer, _), weight in self._weights.items():
            for step, square in enumerate(weight.squares):
                result[step, layer] += (square if reduction == "squares" else square.sqrt()).sum()
        return result


class IGIACallback(TrainerCallback):  # type: ignore[misc]
    """Scores the decoder layers in the first steps of any `transformers.Trainer` or trl `SFTTrainer`.

    Gradients are read after clipping, before each optimiser step, so accumulation, mixed precision, checkpointing and
    data-parallel training are all seen as the optimiser sees them; every process ends with the same scores.

    Args:
        steps: how many optimiser steps, or which share of all of them.
        gradients: `lora` or `full`, see `IGIA`.
        reduction: `squares` or `norm`, see `IGIA.scores`.
        stop: end the training after these steps.
        keep_factors: keep what a merge needs, see `IGIA`.

    Raises:
        RequestError: if `steps` is not a count of at least 2 or a share between 0 and 1.
    """

    def __init__(
        self,
        steps: int | float = 40,
        *,
        gradients: Gradients = "lora",
        reduction: Reduction = "squares",
        stop: bool = False,
        keep_factors: bool = True,
    ) -> None:
        least = 1 if gradients == "full" else 2
        if not (0 < steps < 1 if isinstance(steps, float) else steps >= least):
            raise RequestError(f"steps is a count of {least} or more, or a share between 0 and 1, not {steps}")
        self.steps, self.gradients, self.reduction = steps, gradients, reduction
        self.stop, self.keep_factors = stop, keep_factors
        self.igia: IGIA | None = None
        self.warns = True  # at the end of the training; not where whoever trains says it
        self._wanted = 0

    def on_train_begin(self, args: Any, state: Any, _control: Any, model: Any = None, **_: Any) -> None:
        """Find the layers and their weights; refuse set-ups whose gradients cannot be read."""
        given = ("deepspeed", "deepspeed_plugin")  # by the user, by accelerate's launcher
        if any(getattr(args, name, None) for name in given):
            raise RequestError(
                "under DeepSpeed the optimiser steps inside the backward pass, so no gradient can be read; "
                "score the layers with DDP, FSDP or one process"
            )
        if getattr(args, "fp16", False) and not args.max_grad_norm:
            raise RequestError(
                "with fp16 and no clipping the gradients are still scaled; set max_grad_norm (1.0), or use bf16"
            )
        if state.global_step:
            logger.warning("the training resumes at step %d: the scores are of the steps from there", state.global_step)
        self.igia = IGIA(model, gradients=self.gradients, keep_factors=self.keep_factors)
        least = 1 if self.gradients == "full" else 2
        self._wanted = (
            max(least, math.ceil(self.steps * state.max_steps)) if isinstance(self.steps, float) else self.steps
        )

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Read the gradients of this step."""
        if self.igia is not None and self.igia.num_steps < self._wanted:
            self.igia.add_step()

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> Any:
        """Stop once there is enough, if asked to."""
        if self.stop and self.igia is not None and self.igia.num_steps >= self._wanted:
            control.should_training_stop = True
        return control

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Say what the scores rest on."""
        for line in self.warnings() if self.igia is not None and self.warns else ():
            logger.warning("%s", line)

    def accumulated(self) -> IGIA:
        """What was accumulated.

        Raises:
            RunError: if the training has not begun.
        """
        if self.igia is None:
            raise RunError("nothing was accumulated yet; give the callback to a Trainer and train")
        return self.igia

    def layer_scores(self) -> LayerScores:
        """A score a layer; larger means keep."""
        return self.accumulated().scores(self.reduction)

    def plan(
        self, drop: int | float, *, merge: Merge = "none", merged_layers: int | None = 3, keep: float = 0.2
    ) -> PruningPlan:
        """The plan that drops the lowest layers, with the evidence a merge needs.

        Args:
            drop: a count, or a share of the layers in (0, 1).
            merge: how dropped layers are merged into kept ones when the plan is carried out: `none`, `sign` or `sign-igia`.
            merged_layers: how many of them are, those with the highest scores; all if None.
            keep: the share of each of their weights' entries that is merged.

        Raises:
            RequestError: if the merge cannot be, or needs factors that were not kept.
            RunError: if there are no scores yet.
        """
        check_keep(keep)
        if merge not in get_args(Merge):
            raise RequestError(f"merge is one of {', '.join(get_args(Merge))}, not '{merge}'")
        if merge != "none" and not self.keep_factors:
            raise RequestError("the factors that a merge needs were not kept; accumulate with keep_factors=True")
        igia = self.accumulated()
        options = {"steps": igia.num_steps, "gradients": self.gradients, "reduction": self.reduction}
        plan = self.layer_scores().plan(
            drop,
            options={**options, "merge": merge, "merged_layers": merged_layers, "keep": keep},
            provenance={"stability": igia.stability(self.reduction)},
            evidence=igia,
        )
        return replace(plan, merges=highest_merged(plan.order, plan.num_layers, merge, merged_layers))

    def warnings(self) -> list[str]:
        """What a user should know of the scores, in words."""
        igia, lines = self.accumulated(), []
        if igia.num_steps < self._wanted:
            skipped = f"; {igia.num_skipped} more had gradients that are not finite" if igia.num_skipped else ""
            lines.append(f"the scores are of {igia.num_steps} steps, not of {self._wanted}{skipped}")
        stability = igia.stability(self.reduction)
        if stability is not None and stability < _LOW_AGREEMENT:
            lines.append(
                f"the first and the second half of the {igia.num_steps} steps rank the layers differently "
                f"(Kendall's tau {stability:.2f}): score on more steps, or on larger batches"
            )
        return lines


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b between two rankings of the same things: 1 the same, 0 unrelated, -1 reversed; 0 if one is constant."""
    concordant, ties = 0, [0, 0]
    pairs = [(i, j) for i in range(len(first)) for j in range(i)]
    for i, j in pairs:
        one, other = _sign(first[i] - first[j]), _sign(second[i] - second[j])
        concordant += one * other
        ties[0] += one == 0
        ties[1] += other == 0
    scale = math.sqrt((len(pairs) - ties[0]) * (len(pairs) - ties[1]))
    return concordant / scale if scale else 0.0


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
