"""How well a model predicts text: perplexity over windows of fixed length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from secateur.errors import DataError
from secateur.evaluation.inference import inference, input_device
from secateur.processes import share_out
from secateur.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from secateur.data.tokens import TokenBatches

__all__ = ["PerplexityResult", "perplexity"]

_SILENT = Silent()
_CHUNK_BYTES = 128 * 2**20
"""Float32 logits held at once; cross entropy makes a second matrix of the same size."""


@dataclass(frozen=True)
class PerplexityResult:
    """How surprised a model is by a text."""

    perplexity: float
    """exp(nll); infinite or NaN if the model's logits are."""

    nll: float
    """Mean negative log likelihood, nats per predicted token."""

    num_tokens: int
    """Tokens predicted: all of the first window but its first, and of each further one those that are new in it."""

    window: int
    """Tokens a window."""

    stride: int
    """Tokens from the start of a window to that of the next; less than `window` where windows overlap."""

    stderr: float
    """Standard error of `nll` over windows, nats, as if they were independent; NaN if there is one window only."""


def perplexity(
    model: PreTrainedModel,
    batches: TokenBatches,
    *,
    progress: Progress = _SILENT,
    description: str = "measuring perplexity",
) -> PerplexityResult:
    """Perplexity = exp(−1/N Σ log p(token | the tokens before it in its window)).

    Each window is scored alone. Without overlap a window of T tokens gives T − 1 predictions. With a stride S < T (the
    sliding-window perplexity) the first gives as many, and each further one S: of its new tokens, which have T − S
    tokens of context or more. Losses are taken from float32 logits and summed in float64, so that the batch size does
    not show.

    Args:
        model: a causal language model, on any device and in any mode; both stay as they are.
        batches: token ids, (batch, tokens) at a time.
        progress: told of each window.
        description: the name of the step.

    Raises:
        DataError: if the windows have fewer than two tokens.
    """
    if batches.sequence_length < 2:
        raise DataError(f"nothing to predict in windows of {batches.sequence_length} token; choose 2 tokens or more")
    device = input_device(model)

    def score(numbered: tuple[int, Tensor]) -> Tensor:
        number, input_ids = numbered  # (batch, tokens)
        logits = model(input_ids=input_ids.to(device), use_cache=False).logits  # (batch, tokens, vocab)
        known = [max(batches.overlap, 1)] * len(input_ids)  # tokens at the start that are not predicted
        known[0] = known[0] if number else 1
        return _window_nll(logits, input_ids.to(logits.device), known)

    with inference(model), progress.track(description, batches.num_sequences) as advance:
        numbered = list(enumerate(batches))
        scored = share_out(score, numbered, advance, size=lambda item: len(item[1]))  # one a batch, (batch, 2)
    return _result(torch.cat(scored), batches)


def _window_nll(logits: Tensor, input_ids: Tensor, known: Sequence[int]) -> Tensor:
    """Nats and tokens predicted of each window, (batch, 2) float64 on the CPU, of logits (batch, tokens, vocab)."""
    losses = [
        _token_nll(row[first - 1 : -1], ids[first:]) for row, ids, first in zip(logits, input_ids, known, strict=True)
    ]
    return torch.stack([torch.stack([loss.cpu().double().sum(), torch.tensor(len(loss))]) for loss in losses])


def _token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats a token, (tokens,) float32, of logits (tokens, vocab), a few tokens at a time."""
    rows = max(1, _CHUNK_BYTES // (4 * logits.shape[-1]))
    chunks = zip(torch.split(logits, rows), torch.split(targets, rows), strict=True)
    return torch.cat([cross_entropy(part.float(), wanted, reduction="none") for part, wanted in chunks])


def _result(scored: Tensor, batches: TokenBatches) -> PerplexityResult:
    """The figures of (windows, 2) float64: nats and tokens predicted."""
    num_windows = len(scored)
    nats, counts = scored.unbind(dim=1)
    predicted = counts.sum()
    nll = float(nats.sum() / predicted)
    # How far each window takes the mean from where it is: a ratio's, as the first window may predict more than others.
    influence = (nats - nll * counts) / predicted
    variance = float(influence.square().sum()) * num_windows / (num_windows - 1) if num_windows > 1 else math.nan
    return PerplexityResult(
        perplexity=_exp(nll),
        nll=nll,
        num_tokens=int(predicted),
        window=batches.sequence_length,
        stride=batches.stride,
        stderr=math.sqrt(variance),
    )


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
