"""Distillation (arXiv 1503.02531): how far a model's next tokens are from those that its teacher finds likely."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["distillation_loss"]


def distillation_loss(
    logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, top_k: int | None = None
) -> Tensor:
    """`T² · Σ_i p_i · log(p_i / q_i)`, mean over the positions, with `p = softmax(teacher / T)` and `q = softmax(logits / T)`.

    The factor T² keeps the gradient's size about the same whatever the temperature.

    With `top_k`, the sum runs over the teacher's k likeliest tokens and one bucket for all the rest, which holds the remaining
    probability of each side. Thus a model still pays for what it gives to tokens that the teacher does not consider, as it would
    not if the k were renormalised; the value is never above that of the whole vocabulary, and equal to it where k reaches that.

    Args:
        logits: the model's, (positions, vocabulary), float32; gradients flow into them.
        teacher_logits: the teacher's, of the same shape; no gradient flows.
        temperature: T, above 0: larger softens both sides.
        top_k: how many tokens count one by one; all if None.

    Returns:
        A scalar, in nats times T².
    """
    logits, target = logits / temperature, teacher_logits.detach() / temperature
    if top_k is not None and top_k < target.shape[-1]:
        likeliest = target.topk(top_k, dim=-1).indices  # (positions, k)
        logits, target = _with_rest(logits, likeliest), _with_rest(target, likeliest)
    divergence = functional.kl_div(
        logits.log_softmax(dim=-1), target.log_softmax(dim=-1), log_target=True, reduction="batchmean"
    )
    return temperature**2 * divergence


def _with_rest(logits: Tensor, chosen: Tensor) -> Tensor:
    """The logits (positions, k + 1) of the chosen tokens and of all others together, which the softmax takes to their sums."""
    rest = logits.scatter(-1, chosen, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([logits.gather(-1, chosen), rest], dim=-1)
