"""Shortened LLaMA (arXiv 2402.02834): rank the layers once, by the loss without each or by first-order Taylor terms.

`shortened-ppl`: the perplexity of the model without layer l. The score is its logarithm, the mean next-token loss in nats, which
ranks the same:

    score[l] = L(model without l)

`shortened-taylor` ("Taylor+"): how much the loss would change, to first order, were each weight of the layer 0; the first four
and the last two layers stay:

    score[l] = Σ over w in l of |w · ∂L/∂w|,    L the mean next-token loss over *all* predicted tokens of the calibration windows

The gradient is summed over the batches before it is multiplied and its size taken, so the batch size does not matter:
|w · mean gradient|, not a mean of |w · gradient|. The published code does the same; there a batch holds all samples. All of a
layer's parameters count: matrices, norms and, where there are any, biases.

Both are one-shot: nothing is measured again once a layer has gone, so a prefix of the order is exactly a smaller cut.

Deviations: the losses of `shortened-ppl` are computed from the activations that enter each candidate, so that what lies before it
is never computed twice (`secateur.methods.sleb`); where so many layers must go that some protected ones have to, those go after
all others, the lowest score first: in a small model that is all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from secateur.errors import RunError
from secateur.methods.base import Cost, Method, Run, Step, next_token_loss
from secateur.methods.sleb import removal_losses
from secateur.plan import LayerScores, PruningPlan
from secateur.processes import count, own_share, summed_
from secateur.settings import check_above_zero, check_at_least
from secateur.signals import finishing

if TYPE_CHECKING:
    from secateur.data import TokenBatches
    from secateur.decoder import Decoder

__all__ = ["ShortenedPPL", "ShortenedTaylor"]


@dataclass(frozen=True, kw_only=True)
class ShortenedPPL(Method):
    """One-shot removal by the calibration loss."""

    name: ClassVar[str] = "shortened-ppl"
    paper: ClassVar[str] = "arXiv 2402.02834"
    nested: ClassVar[bool] = True
    only_runs: ClassVar[bool] = True

    sequences: int | None = 10
    """Calibration windows to measure the loss on; all of them if null."""

    def __post_init__(self) -> None:
        check_above_zero(self, "sequences")

    def plan(self, decoder: Decoder, data: TokenBatches, *, drop: int, run: Run | None = None) -> PruningPlan:
        """Measure the loss without each layer, and drop those whose removal costs least.

        Raises:
            RunError: if the loss is not finite, whichever layer is removed.
        """
        run = run or Run()
        data = data.take(self.sequences) if self.sequences else data
        layers = range(decoder.num_layers)
        with run.progress.track("removing each layer alone", len(layers) * len(data)) as advance:
            losses = removal_losses(decoder, data, (), layers, run, advance)
        if not any(map(math.isfinite, losses.values())):
            raise RunError(
                "no layer can go: the loss is not finite without any of them; try fp32 precision or other text"
            )
        scores = LayerScores(tuple(losses[layer] for layer in layers), self.name)
        return self._planned(scores.lowest(drop), scores)

    def cost(self, num_layers: int, drop: int, data: TokenBatches) -> Cost:  # noqa: ARG002
        """One pass for what enters each layer, and one from each layer to the end: half the layers on average."""
        return Cost(choose_tokens=1.15 * (num_layers / 2 + 1) * _tokens(self.sequences, data))  # each has its own head


@dataclass(frozen=True, kw_only=True)
class ShortenedTaylor(Method):
    """One-shot removal by first-order Taylor terms."""

    name: ClassVar[str] = "shortened-taylor"
    paper: ClassVar[str] = "arXiv 2402.02834"
    nested: ClassVar[bool] = True

    keep_first: int = 4
    """Layers at the front that go only after all others that are not protected."""

    keep_last: int = 2
    """The same at the end."""

    sequences: int | None = 10
    """Calibration windows to take the gradient on; all of them if null."""

    def __post_init__(self) -> None:
        check_above_zero(self, "sequences")
        check_at_least(self, 0, "keep_first", "keep_last")

    def plan(self, decoder: Decoder, data: TokenBatches, *, drop: int, run: Run | None = None) -> PruningPlan:
        """Take the loss's gradient once, and drop the layers with the smallest terms.

        Raises:
            RunError: if the loss is not finite.
        """
        run = run or Run()
        data = data.take(self.sequences) if self.sequences else data
        scores = LayerScores(tuple(_taylor_terms(decoder, data, run)), self.name)
        last = decoder.num_layers - self.keep_last
        ranked = scores.lowest(decoder.num_layers)
        free = [layer for layer in ranked if self.keep_first <= layer < last]
        return self._planned([*free, *(layer for layer in ranked if layer not in free)][:drop], scores)

    def cost(self, num_layers: int, drop: int, data: TokenBatches) -> Cost:  # noqa: ARG002
        """A forward pass and a backward pass, which is worth two; the layers' gradients beside the weights.

        From the second batch on the sum of gradients is there while activations are.
        """
        tokens = _tokens(self.sequences, data)
        sums = 1.0 if tokens > data.batch_size * data.sequence_length else 0.0
        step = Step(trains="full", optimizer=False, trained_copies=sums)
        return Cost(choose_tokens=3.0 * tokens, choosing=step)


def _taylor_terms(decoder: Decoder, data: TokenBatches, run: Run) -> list[float]:
    """`Σ|w · ∂L/∂w|` a layer; the products in float32, their sum in float64."""
    import torch

    with (
        run.progress.track("taking the gradient of the loss", len(data)) as advance,
        _gradients_of_layers(decoder),
    ):
        for input_ids in own_share(list(data)):
            with finishing("this batch"):
                with run.autocast(decoder):
                    loss = next_token_loss(decoder.logits(input_ids), input_ids)
                if not math.isfinite(loss.item()):
                    raise RunError(
                        f"the loss is {loss.item()}, so it has no gradient; try fp32 precision or other text"
                    )
                (loss * (len(input_ids) / data.num_sequences)).backward()  # type: ignore[no-untyped-call]
            advance(1)
        for weight in decoder.layers.parameters() if count() > 1 else ():
            # A process that had no batch has no gradient, and must give one all the same.
            weight.grad = summed_(torch.zeros_like(weight) if weight.grad is None else weight.grad)
        return [
            sum(
                (weight.detach().float() * weight.grad.float()).abs().sum(dtype=torch.float64).item()
                for weight in layer.parameters()
                if weight.grad is not None
            )
            for layer in decoder.layers
        ]


@contextmanager
def _gradients_of_layers(decoder: Decoder) -> Iterator[None]:
    """Room for the gradients of the layers' weights and of nothing else; who is trainable and any gradient come back."""
    import torch

    from secateur.decoder import evaluating

    saved = [(weight, weight.requires_grad, weight.grad) for weight in decoder.model.parameters()]
    try:
        for weight, _, _ in saved:
            weight.requires_grad_(False)
            weight.grad = None
        for weight in decoder.layers.parameters():
            weight.requires_grad_(weight.is_floating_point())
        with evaluating(decoder.model), torch.enable_grad():
            yield
    finally:
        for weight, trainable, gradient in saved:
            weight.requires_grad_(trainable)
            weight.grad = gradient


def _tokens(sequences: int | None, data: TokenBatches) -> int:
    return min(sequences or data.num_sequences, data.num_sequences) * data.sequence_length
