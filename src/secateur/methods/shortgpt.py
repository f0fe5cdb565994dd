"""ShortGPT (arXiv 2403.03853): drop the layers that turn the residual stream the least.

Block influence, equation 1: `BI[l] = 1 − mean_t cos(X_in[l, t], X_out[l, t])`. Deviation: cosines in float32, their mean
over all calibration tokens in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.methods.base import Method, Run, measuring
from secateur.plan import LayerScores, PruningPlan

__all__ = ["ShortGPT"]


@dataclass(frozen=True, kw_only=True)
class ShortGPT(Method):
    """Block influence; has no settings."""

    name: ClassVar[str] = "shortgpt"
    paper: ClassVar[str] = "arXiv 2403.03853"

    def plan(self, decoder: Decoder, data: TokenBatches, *, drop: int, run: Run | None = None) -> PruningPlan:
        """Measure every layer's influence in one pass over the calibration tokens, and drop the lowest."""
        run = run or Run()
        layers = range(decoder.num_layers)
        similarity = torch.zeros(decoder.num_layers, dtype=torch.float64)
        with run.progress.track("measuring each layer's influence", len(data)) as advance, measuring(decoder, run):
            for input_ids in data:
                with decoder.capture(layers) as seen:
                    decoder.logits(input_ids)
                for layer in layers:
                    cosine = functional.cosine_similarity(
                        seen.inputs[layer].float(), seen.outputs[layer].float(), dim=-1
                    )
                    similarity[layer] += cosine.double().sum().cpu()  # (batch, tokens) → 1
                advance(1)
        scores = LayerScores(tuple((1 - similarity / data.num_tokens).tolist()), self.name)
        return self._planned(scores.lowest(drop), scores)

    def nested(self) -> bool:
        """Each layer is scored alone."""
        return True
