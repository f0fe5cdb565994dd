"""ReplaceMe (arXiv 2505.02819): replace a block of layers by a linear map, folded into the projection before it.

The block is the one that turns the stream least (`secateur.methods.angular`, of the last token; as in the published code never
with the very first layer, since there is no projection before it). With `M` what the MLP of the layer before the block gives, `Y`
the stream beside it and `X` the dense model's stream after the block, over the calibration tokens:

    min_T |M·T + Y − X|² + α·|T − I|²,    then W_down ← Tᵀ·W_down

There is no training. The published configuration has α = 0, plain least squares; that is the default.

Deviations: those of `secateur.surgery.absorb`, which does the work (a token counts by 1 / mean(X²), sums in float64, α relative
to the mean diagonal of the Gram matrix, a pull towards the identity where the published code pulls towards 0); the layers can be
chosen by another method, and then every run of consecutive layers is replaced by a map of its own, in depth order, each fitted
on the model as the maps before left it. A run at the very front has no projection before it and is just removed. The published
variants with a cosine loss or with several blocks of fixed length are not offered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from secateur.methods.angular import Angular
from secateur.methods.base import Cost, Method, Run, Step
from secateur.methods.shortgpt import ShortGPT
from secateur.methods.sleb import Sleb
from secateur.plan import LayerScores, PruningPlan
from secateur.settings import check_at_least

if TYPE_CHECKING:
    from secateur.data import TokenBatches
    from secateur.decoder import Decoder

__all__ = ["ReplaceMe"]

_CHOOSERS: dict[str, Method] = {"angular": Angular(keep_first=1), "shortgpt": ShortGPT(), "sleb": Sleb()}


@dataclass(frozen=True, kw_only=True)
class ReplaceMe(Method):
    """Linear maps in the place of blocks."""

    name: ClassVar[str] = "replaceme"
    paper: ClassVar[str] = "arXiv 2505.02819"
    prepares: ClassVar[bool] = True
    only_runs: ClassVar[bool] = True

    layers_by: Literal["angular", "shortgpt", "sleb"] = "angular"
    """Who chooses the layers, with the settings that method has by default."""

    alpha: float | None = 0.0
    """Pull of the map towards the identity; 0 as published, chosen on the last eighth of the windows if null."""

    def __post_init__(self) -> None:
        check_at_least(self, 0, "alpha")
        object.__setattr__(self, "nested", _CHOOSERS[self.layers_by].nested)  # of the class, a block of layers

    def plan(self, decoder: Decoder, data: TokenBatches, *, drop: int, run: Run | None = None) -> PruningPlan:
        """The layers that `layers_by` drops, under this method's name."""
        plan = _CHOOSERS[self.layers_by].plan(decoder, data, drop=drop, run=run)
        scores = LayerScores(tuple(plan.scores or ()), self.name)
        return replace(plan, method=self.name, options=self.options(), scores=scores)

    def prepare_(
        self, decoder: Decoder, data: TokenBatches, plan: PruningPlan, *, run: Run | None = None
    ) -> dict[str, Any]:
        """Fit a map for each run of layers, and fold it in.

        Raises:
            UnsupportedModelError: if the model has no plain projection before a run; nothing was changed.
            RunError: if the activations are not finite; nothing was changed.
        """
        from secateur.surgery.absorb import absorb_

        run = run or Run()
        maps = absorb_(
            decoder,
            plan.dropped,
            data,
            form="map",
            alpha=self.alpha,
            precision=run.precision,
            progress=run.progress,
        )
        return {"maps": maps}

    def final_gate(self) -> float:
        """Nothing is left of the layers that go: the maps stand in their place."""
        return 0.0

    def cost(self, num_layers: int, drop: int, data: TokenBatches) -> Cost:
        """What choosing costs, and at most one pass of the dense and one of the pruned model for the maps."""
        choosing = _CHOOSERS[self.layers_by].cost(num_layers, drop, data)
        return replace(choosing, preparing=Step(), prepare_tokens=(2 - drop / num_layers) * data.num_tokens)
