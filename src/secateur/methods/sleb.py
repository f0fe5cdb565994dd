"""SLEB (arXiv 2402.09025): drop the layer whose removal raises the calibration loss least, and repeat.

Metric 3 of the paper: the loss of the model without the layers dropped so far and without the candidate. Deviation, in
cost alone: candidates are tried in depth order, each from the activations that enter it, so that what lies before a
candidate is never computed twice; that halves the work and gives the same losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from secateur.errors import RunError
from secateur.methods.base import Cost, Method, Run, measuring, next_token_loss
from secateur.plan import LayerScores, PruningPlan
from secateur.processes import share_out
from secateur.settings import check_above_zero

if TYPE_CHECKING:
    from torch import Tensor

    from secateur.data import TokenBatches
    from secateur.decoder import Decoder

__all__ = ["Sleb", "removal_losses"]


@dataclass(frozen=True, kw_only=True)
class Sleb(Method):
    """Greedy removal by the calibration loss."""

    name: ClassVar[str] = "sleb"
    paper: ClassVar[str] = "arXiv 2402.09025"
    nested: ClassVar[bool] = True
    only_runs: ClassVar[bool] = True

    sequences: int | None = 8
    """Calibration windows to measure the loss on; all of them if null."""

    def __post_init__(self) -> None:
        check_above_zero(self, "sequences")

    def plan(self, decoder: Decoder, data: TokenBatches, *, drop: int, run: Run | None = None) -> PruningPlan:
        """Drop the layer whose removal costs least, `drop` times."""
        run = run or Run()
        data = data.take(self.sequences) if self.sequences else data
        num_layers = decoder.num_layers
        order: list[int] = []
        losses: dict[int, float] = {}
        units = sum(num_layers - done for done in range(drop)) * len(data)
        with run.progress.track("trying each layer's removal", units) as advance:
            for _ in range(drop):
                candidates = [layer for layer in range(num_layers) if layer not in order]
                found = removal_losses(decoder, data, order, candidates, run, advance)
                if not any(map(math.isfinite, found.values())):
                    raise RunError(
                        "no layer can go: the loss is not finite without any of them; try fp32 precision or other text"
                    )
                order.append(min(found, key=lambda layer: (found[layer], layer)))
                losses.update(found)
        scores = LayerScores(tuple(losses[layer] for layer in range(num_layers)), self.name)
        return self._planned(order, scores)

    def cost(self, num_layers: int, drop: int, data: TokenBatches) -> Cost:
        """Per round: each remaining layer once, and from each candidate to the end; about half the layers on average."""
        tokens = min(self.sequences or data.num_sequences, data.num_sequences) * data.sequence_length
        passes = sum((num_layers - done) * 0.5 * (num_layers - done) / num_layers + 1 for done in range(drop))
        return Cost(choose_tokens=1.15 * passes * tokens)  # the language-model head runs for every candidate


def removal_losses(
    decoder: Decoder,
    data: TokenBatches,
    dropped: Collection[int],
    candidates: Collection[int],
    run: Run,
    advance: Callable[[int], None] = lambda done: None,  # noqa: ARG005
) -> dict[int, float]:
    """The calibration loss without `dropped` and one candidate, for each candidate, in nats.

    Memory: the activations before one layer, for one batch.
    """
    layers = sorted(candidates)

    def without_each(input_ids: Tensor) -> list[float]:
        """The loss of a batch without each candidate, times its windows."""
        losses = []
        hidden: Tensor | None = None
        position = 0
        for candidate in layers:
            hidden = _advance_to(decoder, input_ids, hidden, position, candidate, dropped)
            position = candidate
            with decoder.start_at(candidate, hidden), decoder.bypass({*dropped, candidate}):
                losses.append(next_token_loss(decoder.logits(input_ids), input_ids).item() * len(input_ids))
        return losses

    with measuring(decoder, run):
        batches = share_out(without_each, list(data), advance, size=lambda _: len(layers))
    totals = dict(zip(layers, map(sum, zip(*batches, strict=True)), strict=True))
    return {layer: total / data.num_sequences if math.isfinite(total) else math.inf for layer, total in totals.items()}


def _advance_to(
    decoder: Decoder, input_ids: Tensor, hidden: Tensor | None, position: int, layer: int, dropped: Collection[int]
) -> Tensor:
    """The input of `layer` (batch, tokens, hidden), from the input of `position` or from the tokens."""
    behind = range(layer, decoder.num_layers)
    with decoder.bypass({*dropped, *behind}), decoder.capture([layer]) as seen:
        if hidden is None:
            decoder.body(input_ids)
        else:
            with decoder.start_at(position, hidden):
                decoder.body(input_ids)
    return seen.inputs[layer]
