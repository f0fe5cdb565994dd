"""Magnitude: drop the layers with the smallest weights.

The baseline that the papers compare with (arXiv 2402.02834, 2411.15558), of all weights of a layer taken as one vector:

    l1: score[l] = Σ over w in l of |w|          l2: score[l] = (Σ over w in l of w²)^½

All of a layer's parameters count: matrices, norms and, where there are any, biases. In a Llama these are the weights that the
published code of arXiv 2402.02834 sums; fewer than one in a thousand belongs to a norm. Nothing is divided by the number of
weights, so in a model whose layers differ in size the small ones go first. Deviations: sums in float64; for l2 the root is taken,
which ranks the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from secateur.methods.base import Cost, Method, Run
from secateur.plan import LayerScores, PruningPlan

if TYPE_CHECKING:
    from secateur.data import TokenBatches
    from secateur.decoder import Decoder

__all__ = ["Magnitude"]


@dataclass(frozen=True, kw_only=True)
class Magnitude(Method):
    """The norm of a layer's weights; looks at no text."""

    name: ClassVar[str] = "magnitude"
    paper: ClassVar[str] = "a baseline of arXiv 2402.02834"
    nested: ClassVar[bool] = True

    norm: Literal["l1", "l2"] = "l1"
    """The sum of the weights' sizes, or the root of the sum of their squares."""

    def plan(self, decoder: Decoder, data: TokenBatches, *, drop: int, run: Run | None = None) -> PruningPlan:  # noqa: ARG002
        """Take each layer's norm, and drop the lowest."""
        import torch

        order = 1 if self.norm == "l1" else 2
        values = []
        for layer in decoder.layers:
            norms = [
                torch.linalg.vector_norm(weight.detach(), ord=order, dtype=torch.float64).cpu()
                for weight in layer.parameters()
            ]
            values.append(torch.linalg.vector_norm(torch.stack(norms), ord=order).item())
        scores = LayerScores(tuple(values), self.name)
        return self._planned(scores.lowest(drop), scores)

    def cost(self, num_layers: int, drop: int, data: TokenBatches) -> Cost:  # noqa: ARG002
        """Nothing: no token is run."""
        return Cost()
