"""GradPruner (arXiv 2601.19503, ICLR 2026): the first steps of a fine-tuning tell which layers the task needs.

1. Score: attach LoRA to every linear sub-layer, run the first steps, accumulate the IGIA-Matrix of each weight, and sum it
   over each layer (section 3.1): `secateur.training.igia`. The adapters are discarded.
2. Prune the layers with the lowest scores; fold the best of what some of them knew into the kept layer before each
   (section 3.2): `secateur.surgery.merge`.
3. Fine-tune what is left: `secateur tune`, or any trainer.

The paper and its code disagree on the reduction (squares or norms) and do not say which pruned layers are merged; here the
paper's squares are the default, and the pruned layers with the highest scores are merged. Options beyond the paper: `sign-igia`
(reviewers asked for a weighting), *absorb* (arXiv 2505.02819) before the merge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from secateur.errors import RequestError
from secateur.methods.base import Cost, Method, Run, Step
from secateur.plan import PruningPlan
from secateur.processes import zero_stage
from secateur.settings import AbsorbForm, Merge, Reduction, check_at_least, check_choices, check_keep
from secateur.step import ADAPTERS_ONLY, FORWARD_AND_BACKWARD, RowSize
from secateur.training.scoring import Scoring, score_layers
from secateur.training.settings import rows_at_once

if TYPE_CHECKING:
    from secateur.data import TokenBatches
    from secateur.decoder import Decoder
    from secateur.training.rows import Rows

__all__ = ["GradPruner"]


@dataclass(frozen=True, kw_only=True)
class GradPruner(Scoring, Method):
    """GradPruner; the defaults are the published ones."""

    name: ClassVar[str] = "gradpruner"
    paper: ClassVar[str] = "arXiv 2601.19503"
    prepares: ClassVar[bool] = True
    nested: ClassVar[bool] = True

    reduction: Reduction = "squares"
    """Sum the squares of the simulated gradients (the paper), or their norms (the published code)."""

    merge: Merge = "sign"
    """How pruned layers are merged: not at all, where signs agree, or that weighted by each entry's share of IGIA."""

    merged_layers: int | None = 3
    """How many of the pruned layers are merged, those with the highest scores; all if null."""

    keep: float = 0.2
    """Share of a pruned weight's entries that is merged: those with the largest IGIA (sparsity is 1 - keep)."""

    absorb: AbsorbForm | None = None
    """Fold a linear estimate of what the layers did into the projection before them, before the merge."""

    absorb_alpha: float | None = None
    """Pull of absorb towards the weights as they are; chosen on the last eighth of the windows if null."""

    def __post_init__(self) -> None:
        Scoring.__post_init__(self)
        check_choices(self, "reduction", "merge", "absorb")
        check_keep(self.keep)
        check_at_least(self, 0, "merged_layers", "absorb_alpha")

    def check_launcher(self, *, chooses: bool) -> None:
        """DeepSpeed takes its step inside the backward pass, so that there is no moment to read a gradient in."""
        if zero_stage() and (chooses or self._merges_any()):
            raise RequestError(
                f"{self.name} reads the gradients of a training, which DeepSpeed does not show; choose another --method, or go "
                "without DeepSpeed: by DDP, FSDP2 or in one process"
            )

    def plan(self, decoder: Decoder, data: TokenBatches, *, drop: int, run: Run | None = None) -> PruningPlan:
        """Score the layers in the first steps of training on plain text, and drop the lowest."""
        from secateur.training.rows import rows_of_windows

        return self.plan_on_task(decoder, rows_of_windows(data), data, drop=drop, run=run)

    def plan_on_task(
        self,
        decoder: Decoder,
        rows: Rows,
        data: TokenBatches,  # noqa: ARG002  the rows say more
        *,
        drop: int,
        run: Run | None = None,
        total_steps: int | None = None,
    ) -> PruningPlan:
        """Score the layers in the first steps of a fine-tuning, and drop the lowest; the model is as it was afterwards.

        Raises:
            TrainingDivergedError: if the loss stops being finite; nothing was changed.
        """
        run = run or Run()
        callback = score_layers(
            decoder, rows, settings=self, total_steps=total_steps, keep_factors=self._merges_any(), seed=run.seed,
            precision=run.precision, progress=run.progress,
        )  # fmt: skip
        for warning in callback.warnings():
            run.progress.note(warning)
        igia = callback.accumulated()
        scores = igia.scores(self.reduction)
        order = scores.lowest(drop)
        return PruningPlan(
            num_layers=len(scores),
            order=order,
            scores=scores,
            method=self.name,
            options=self.options(),
            merges=self._targets(order, len(scores)),
            provenance={
                "steps": igia.num_steps,
                "stability": igia.stability(self.reduction),
                "scores_by_step": igia.history(self.reduction),
            },
            evidence=igia,
        )

    def shortened(self, plan: PruningPlan, drop: int) -> PruningPlan:
        """The lowest scores, and the merges among fewer layers."""
        order = plan.order[:drop]
        return replace(plan, order=order, merges=self._targets(order, plan.num_layers), masks=None)

    def completed(
        self,
        plan: PruningPlan,
        decoder: Decoder,
        data: TokenBatches,
        run: Run,
        *,
        rows: Rows | None = None,
        total_steps: int | None = None,
    ) -> PruningPlan:
        """With the evidence and the merges, scored now where the plan has none: it is from a file, or of given layers."""
        if not self._merges_any() or plan.evidence is not None:
            return plan
        drop = len(plan.order)
        if rows is None:
            again = self.plan(decoder, data, drop=drop, run=run)
        else:
            again = self.plan_on_task(decoder, rows, data, drop=drop, run=run, total_steps=total_steps)
        scores = list(again.scores or ())  # of layers given by hand the order says nothing
        order = tuple(sorted(plan.order, key=scores.__getitem__))
        merges = plan.merges or self._targets(order, plan.num_layers)
        return replace(plan, merges=merges, evidence=again.evidence, masks=None)

    def prepare_(
        self, decoder: Decoder, data: TokenBatches, plan: PruningPlan, *, run: Run | None = None
    ) -> dict[str, Any]:
        """Absorb, if asked to, and merge; the layers are still there afterwards.

        Raises:
            UnsupportedModelError: if the model has no plain projection to absorb into; nothing was changed.
        """
        from secateur.surgery.absorb import absorb_
        from secateur.surgery.merge import merge_layers_

        run = run or Run()
        report: dict[str, Any] = {}
        plan = self.completed(plan, decoder, data, run)
        if self.absorb is not None:
            report["absorb"] = absorb_(
                decoder, plan.dropped, data, form=self.absorb, alpha=self.absorb_alpha, precision=run.precision,
                progress=run.progress,
            )  # fmt: skip
        if self._merges_any():
            report["merge"] = merge_layers_(
                decoder, plan.merges, plan.evidence, keep=self.keep, merge=self.merge, progress=run.progress
            )
        return report

    def final_gate(self) -> float:
        """After a merge or absorb the pruned layers are no longer meant to run."""
        return 0.0 if self._merges_any() or self.absorb else 1.0

    def cost(self, num_layers: int, drop: int, data: TokenBatches) -> Cost:  # noqa: ARG002
        """Steps run forward and backward, for the adapters alone; the factors are kept in memory."""
        windows = RowSize(mean=data.sequence_length, longest=data.sequence_length, learnt=data.sequence_length)
        return self._cost(windows, data, math.ceil(data.num_sequences / self.scoring_batch))

    def cost_on_task(
        self,
        num_layers: int,  # noqa: ARG002
        drop: int,  # noqa: ARG002
        rows: RowSize,
        data: TokenBatches,
        *,
        total_steps: int,
    ) -> Cost:
        """The same on the examples."""
        return self._cost(rows, data, total_steps)

    def _cost(self, rows: RowSize, data: TokenBatches, total_steps: int) -> Cost:
        steps, full = self.num_scoring_steps(total_steps), self.gradients == "full"
        at_once = rows_at_once(self.scoring_batch, self.scoring_batch)
        passes = FORWARD_AND_BACKWARD if full else ADAPTERS_ONLY
        return Cost(
            choose_tokens=steps * self.scoring_batch * rows.padded(at_once) * passes,
            prepare_tokens=1.6 * data.num_tokens if self.absorb else 0.0,
            choosing=Step(
                trains="full" if full else "lora",
                sequences=at_once,
                tokens=rows.longest,
                logits=rows.logits(at_once),
                lora_rank=self.scoring_rank,
                trained_copies=1.0 if full else steps * float(self._merges_any()),  # squares, or every step's factors
                copies=float(full),  # the weights that come back
            ),
            preparing=Step() if self.absorb else None,
        )

    def _merges_any(self) -> bool:
        return self.merge != "none" and self.merged_layers != 0

    def _targets(self, order: tuple[int, ...], num_layers: int) -> dict[int, int]:
        """Which pruned layers are merged, into which: the last of the order have the highest scores."""
        from secateur.surgery.merge import highest_merged

        return highest_merged(order, num_layers, self.merge, self.merged_layers)
