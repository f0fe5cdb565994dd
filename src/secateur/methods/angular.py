"""The Unreasonable Ineffectiveness of the Deeper Layers (arXiv 2403.17887): drop the block of layers that turns the stream least.

For each block of K consecutive layers the angular distance between what enters it and what leaves it, K the layers to drop:

    d(l, K) = (1/π) · arccos( X_in[l] · X_out[l+K−1] / (|X_in[l]| · |X_out[l+K−1]|) )

of the last token of each sequence, averaged over the sequences; the block with the smallest distance goes. The published method
then heals the model by a fine-tuning, which is not part of this file.

The paper ranks blocks, not layers. A layer's score here is the smallest distance of a block of K layers that contains it, so that
the layers that go have the lowest score, all the same. The order goes outwards from within the block: each prefix of it is a
block too, the nearer of the two that giving up a layer at one end or the other leaves. It is not always the block that the method
itself would choose for that number.

Deviations: cosines in float64; one token or all of them (`tokens`); layers at the front can be exempt (`keep_first`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from secateur.errors import RunError
from secateur.methods.base import Method, Run, measuring
from secateur.plan import LayerScores, PruningPlan
from secateur.processes import share_out
from secateur.settings import check_at_least

if TYPE_CHECKING:
    from torch import Tensor

    from secateur.data import TokenBatches
    from secateur.decoder import Decoder

__all__ = ["Angular", "block_distances"]

_TOKENS_AT_ONCE = 64
"""Tokens whose angles between all depths are taken together; bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class Angular(Method):
    """Angular distance of contiguous blocks."""

    name: ClassVar[str] = "angular"
    paper: ClassVar[str] = "arXiv 2403.17887"
    only_runs: ClassVar[bool] = True

    tokens: Literal["last", "all"] = "last"
    """Which tokens of a window are looked at: the last as published, or all."""

    keep_first: int = 0
    """Layers at the front that no block may contain; fewer where so many go that there is no other block."""

    def __post_init__(self) -> None:
        check_at_least(self, 0, "keep_first")

    def plan(self, decoder: Decoder, data: TokenBatches, *, drop: int, run: Run | None = None) -> PruningPlan:
        """Measure every block in one pass over the calibration tokens, and drop the nearest of `drop` layers.

        Raises:
            RunError: if the activations are not finite.
        """
        distances = block_distances(decoder, data, self.tokens, run or Run())
        of_length = distances[:, drop - 1].tolist()
        starts = range(min(self.keep_first, decoder.num_layers - drop), decoder.num_layers - drop + 1)
        start = min(starts, key=lambda layer: (of_length[layer], layer))
        scores = LayerScores(
            tuple(
                min((of_length[first] for first in starts if first <= layer < first + drop), default=math.nan)
                for layer in range(decoder.num_layers)
            ),
            self.name,
        )
        heat_map = [
            [round(distance, 7) if math.isfinite(distance) else None for distance in row] for row in distances.tolist()
        ]
        return self._planned(_outwards(distances, start, drop), scores, distances=heat_map)


def block_distances(decoder: Decoder, data: TokenBatches, tokens: Literal["last", "all"], run: Run) -> Tensor:
    """The mean angular distance of every block: (layers, layers − 1), by its start and its length − 1; NaN where it does not fit.

    Raises:
        RunError: if the activations are not finite.
    """
    import torch
    from torch.nn import functional

    num_layers = decoder.num_layers
    layers = range(num_layers)

    def angles(input_ids: Tensor) -> Tensor:
        """Summed over a batch, by the depths between which they lie: (layers + 1, layers + 1)."""
        with decoder.capture(layers) as seen:
            decoder.body(input_ids)
        streams = [*(seen.inputs[layer] for layer in layers), seen.outputs[num_layers - 1]]
        streams = [stream[:, -1] if tokens == "last" else stream.flatten(0, 1) for stream in streams]
        total = torch.zeros(num_layers + 1, num_layers + 1, dtype=torch.float64)
        for parts in zip(*(torch.split(stream, _TOKENS_AT_ONCE) for stream in streams), strict=True):
            together = torch.stack([part.to(decoder.device).double() for part in parts])
            unit = functional.normalize(together, dim=-1)  # (layers + 1, tokens, hidden)
            cosine = torch.einsum("ith,jth->ijt", unit, unit).clamp(-1, 1)
            total += cosine.arccos().sum(dim=-1).cpu() / math.pi
        return total

    with run.progress.track("measuring the angle of every block", len(data)) as advance, measuring(decoder, run):
        total = torch.stack(share_out(angles, list(data), advance)).sum(dim=0)
    counted = data.num_sequences if tokens == "last" else data.num_tokens
    if not torch.isfinite(total).all():
        raise RunError("cannot measure angles: the model's activations are not finite; load it with --dtype float32")
    distances = torch.full((num_layers, num_layers - 1), math.nan, dtype=torch.float64)
    for start in layers:
        fitting = min(num_layers - start, num_layers - 1)
        distances[start, :fitting] = total[start, start + 1 : start + 1 + fitting] / counted
    return distances


def _outwards(distances: Tensor, start: int, length: int) -> list[int]:
    """The layers of a block in an order of which every prefix is a block, found by giving up the dearer end again and again."""
    given_up: list[int] = []
    while length > 1:
        length -= 1
        if distances[start + 1, length - 1] < distances[start, length - 1]:
            given_up.append(start)
            start += 1
        else:
            given_up.append(start + length)
    return [start, *reversed(given_up)]
