"""ShortGPT (arXiv 2403.03853): drop the layers that turn the residual stream the least.

Block influence, equation 1: `BI[l] = 1 − mean_t cos(X_in[l, t], X_out[l, t])`. Deviation: cosines in float32, their mean
over all calibration tokens in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from secateur.methods.base import Method, Run, measuring
from secateur.plan import LayerScores, PruningPlan
from secateur.processes import share_out

if TYPE_CHECKING:
    from torch import Tensor

    from secateur.data import TokenBatches
    from secateur.decoder import Decoder

__all__ = ["ShortGPT"]


@dataclass(frozen=True, kw_only=True)
class ShortGPT(Method):
    """Block influence; has no settings."""

    name: ClassVar[str] = "shortgpt"
    paper: ClassVar[str] = "arXiv 2403.03853"
    nested: ClassVar[bool] = True
    only_runs: ClassVar[bool] = True

    def plan(self, decoder: Decoder, data: TokenBatches, *, drop: int, run: Run | None = None) -> PruningPlan:
        """Measure every layer's influence in one pass over the calibration tokens, and drop the lowest."""
        import torch
        from torch.nn import functional

        run = run or Run()
        layers = range(decoder.num_layers)

        def cosines(input_ids: Tensor) -> Tensor:
            """The cosines of every layer, summed over a batch: (layers,)."""
            with decoder.capture(layers) as seen:
                decoder.logits(input_ids)
            pairs = ((seen.inputs[layer].float(), seen.outputs[layer].float()) for layer in layers)
            each = (functional.cosine_similarity(*pair, dim=-1) for pair in pairs)  # (batch, tokens)
            return torch.stack([cosine.double().sum().cpu() for cosine in each])

        with run.progress.track("measuring each layer's influence", len(data)) as advance, measuring(decoder, run):
            parts = share_out(cosines, list(data), advance)
        similarity = sum(parts, torch.zeros(decoder.num_layers, dtype=torch.float64))
        scores = LayerScores(tuple((1 - similarity / data.num_tokens).tolist()), self.name)
        return self._planned(scores.lowest(drop), scores)
