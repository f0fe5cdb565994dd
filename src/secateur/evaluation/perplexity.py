"""How well a model predicts text: perplexity over windows of fixed length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from secateur.errors import DataError
from secateur.evaluation.inference import inference, input_device
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
    """Tokens predicted: windows x (window - 1)."""

    window: int
    """Tokens a window."""

    stderr: float
    """Standard error of `nll` over windows, nats; NaN if there is one window only."""


def perplexity(
    model: PreTrainedModel,
    batches: TokenBatches,
    *,
    progress: Progress = _SILENT,
    description: str = "measuring perplexity",
) -> PerplexityResult:
    """Perplexity = exp(−1/N Σ log p(token | the tokens before it in its window)).

    The windows do not overlap and each is scored alone: a window of T tokens gives T − 1 predictions. Losses are
    taken from float32 logits and summed in float64, so that the batch size does not show.

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
    window_nll: list[Tensor] = []  # one a batch, (batch,)
    with inference(model), progress.track(description, batches.num_sequences) as advance:
        device = input_device(model)
        for input_ids in batches:  # (batch, tokens)
            logits = model(input_ids=input_ids.to(device), use_cache=False).logits  # (batch, tokens, vocab)
            window_nll.append(_window_nll(logits, input_ids.to(logits.device)))
            advance(len(input_ids))
    return _result(torch.cat(window_nll), batches.sequence_length)


def _window_nll(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Nats a window, (batch,) float64 on the CPU, of logits (batch, tokens, vocab)."""
    losses = [_token_nll(row[:-1], ids[1:]) for row, ids in zip(logits, input_ids, strict=True)]
    return torch.stack(losses).cpu().double().sum(dim=1)


def _token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats a token, (tokens,) float32, of logits (tokens, vocab), a few tokens at a time."""
    rows = max(1, _CHUNK_BYTES // (4 * logits.shape[-1]))
    chunks = zip(torch.split(logits, rows), torch.split(targets, rows), strict=True)
    return torch.cat([cross_entropy(part.float(), wanted, reduction="none") for part, wanted in chunks])


def _result(window_nll: Tensor, window: int) -> PerplexityResult:
    """The figures of (windows,) float64 sums of nats."""
    num_windows, predicted = len(window_nll), window - 1
    nll = float(window_nll.sum()) / (num_windows * predicted)
    spread = float((window_nll / predicted).std()) if num_windows > 1 else math.nan
    return PerplexityResult(
        perplexity=_exp(nll),
        nll=nll,
        num_tokens=num_windows * predicted,
        window=window,
        stderr=spread / math.sqrt(num_windows),
    )


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
