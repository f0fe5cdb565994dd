"""Random layers: the floor that every method must beat. A seeded draw without replacement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from secateur.methods.base import Cost, Method, Run
from secateur.plan import LayerScores, PruningPlan

if TYPE_CHECKING:
    from secateur.data import TokenBatches
    from secateur.decoder import Decoder

__all__ = ["Random"]


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Layers drawn at random; has no settings but the seed."""

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "a seeded draw"
    nested: ClassVar[bool] = True
    only_runs: ClassVar[bool] = True

    def plan(self, decoder: Decoder, data: TokenBatches, *, drop: int, run: Run | None = None) -> PruningPlan:  # noqa: ARG002
        """Score each layer by its place in a random permutation, and drop the lowest."""
        import torch

        generator = torch.Generator().manual_seed((run or Run()).seed)
        places = torch.randperm(decoder.num_layers, generator=generator)
        scores = LayerScores(tuple(places.double().tolist()), self.name)
        return self._planned(scores.lowest(drop), scores)

    def cost(self, num_layers: int, drop: int, data: TokenBatches) -> Cost:  # noqa: ARG002
        """Nothing."""
        return Cost()
