"""Writing a checkpoint of a model, and proving it before it is handed over."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.decoder import Decoder, evaluating
from secateur.errors import ModelError, ProofError
from secateur.loading import load_model, quiet_transformers
from secateur.surgery.legacy import make_readable_before_5_

__all__ = [
    "Proof",
    "bypassed_logits",
    "cache_gap",
    "dense_cache_gap",
    "is_of_family",
    "prove_checkpoint",
    "save_checkpoint",
    "tolerance",
]

logger = logging.getLogger(__name__)

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference between logits that rounding explains, as a share of the largest logit."""

_ALIKE = 4
"""A gap of the cut model's cache that is so many times the dense model's or less is the family's."""


def save_checkpoint(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write configuration, safetensors, tokenizer, chat template and generation settings to an existing directory.

    `new_directory` says it where the disk is full.
    """
    with quiet_transformers():
        model.save_pretrained(directory)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
        make_readable_before_5_(directory, type(model.config))
    for file in directory.glob("*.safetensors"):  # the writer makes them private to the user; other files are not
        file.chmod(0o644)


@dataclass(frozen=True)
class Proof:
    """What was checked on the written checkpoint, and how well it held."""

    tokens: int
    """Tokens on which the logits were compared."""

    max_difference: float
    """Largest absolute difference between a logit of the checkpoint and of the bypassed model."""

    tolerance: float
    """The difference up to which rounding explains it."""

    generated_tokens: int
    """Greedy tokens generated with the cache and checked without it."""

    max_cache_gap: float
    """How far below the best uncached logit a token chosen with the cache was; 0 if every choice is the same."""

    dense_cache_gap: float | None = None
    """The same of the dense model, where that is more than rounding, too: then it is the family's cache, and not the cut."""


def tolerance(dtype: torch.dtype, expected: Tensor) -> float:
    """The difference from the logits `expected` up to which rounding in `dtype` explains it."""
    return _TOLERANCE.get(dtype, 1e-4) * max(expected.abs().max().item(), 1.0)


def bypassed_logits(decoder: Decoder, dropped: Collection[int], input_ids: Tensor) -> Tensor:
    """The logits that the pruned model must give: those of this model with `dropped` bypassed, (batch, tokens, vocab)."""
    with evaluating(decoder.model), torch.no_grad(), decoder.bypass(dropped):
        return decoder.logits(input_ids).float().cpu()


def prove_checkpoint(
    directory: Path,
    input_ids: Tensor,
    expected: Tensor,
    *,
    trust_remote_code: bool = False,
    new_tokens: int = 24,
    dense: Callable[[], Decoder] | None = None,
) -> tuple[Proof, Any]:
    """Load the checkpoint afresh and hold it to the bypassed model.

    Args:
        directory: the written checkpoint.
        input_ids: (batch, tokens) of calibration text.
        expected: the logits of `bypassed_logits` on them, (batch, tokens, vocabulary).
        trust_remote_code: run code that comes with the checkpoint.
        new_tokens: greedy tokens to generate with and without the cache.
        dense: gives the dense model, whose cache is asked where the cut model's is wrong.

    Returns:
        The proof, and the model as loaded from the directory.

    Raises:
        ProofError: if it cannot be loaded, the logits differ by more than rounding, or cached and uncached generation
            disagree, and not as they do in the dense model.
    """
    try:
        model = load_model(directory, trust_remote_code=trust_remote_code, strict=True)
        decoder = Decoder(model)
    except ModelError as error:
        raise ProofError(f"the written model cannot be used again, and nothing was kept: {error}") from error
    allowed = tolerance(model.dtype, expected)
    difference = (bypassed_logits(decoder, (), input_ids) - expected).abs().max().item()
    if not difference <= allowed:
        raise ProofError(
            f"the written model's logits differ by {difference:.3g} from the model with the layers bypassed, more than "
            f"rounding explains ({allowed:.2g}); nothing was kept: please report the model's family"
        )
    prompt = input_ids[:1, : max(1, min(32, input_ids.shape[1] // 2))]
    gap = cache_gap(decoder, prompt, new_tokens)
    if gap <= allowed:
        return Proof(input_ids.numel(), difference, allowed, new_tokens, gap), model
    of_dense = math.nan if dense is None else dense_cache_gap(dense, prompt, new_tokens)
    if not is_of_family(gap, of_dense, allowed):
        beside = "" if math.isnan(of_dense) else f", and in the dense model by {of_dense:.3g}"
        raise ProofError(
            f"cached and uncached greedy generation disagree by {gap:.3g} in a logit{beside}, more than rounding explains "
            f"({allowed:.2g}); nothing was kept: please report the model's family"
        )
    return Proof(input_ids.numel(), difference, allowed, new_tokens, gap, of_dense), model


def dense_cache_gap(dense: Callable[[], Decoder], prompt: Tensor, new_tokens: int) -> float:
    """The gap of the dense model, asked only where that of the cut one is more than rounding; no number if it cannot run."""
    with suppress(Exception):  # of any type: what the dense model cannot do speaks for nothing
        return cache_gap(dense(), prompt, new_tokens)
    return math.nan


def is_of_family(gap: float, of_dense: float, allowed: float) -> bool:
    """Whether a cut model's cache is wrong because that of its family is: in the dense model it forgets about as much."""
    return of_dense > allowed and gap <= _ALIKE * of_dense


def cache_gap(decoder: Decoder, prompt: Tensor, new_tokens: int) -> float:
    """Generate greedily with the cache; by how much does a full, uncached pass prefer another token at any step?"""
    model = decoder.model
    prompt = prompt.to(decoder.device)
    with torch.no_grad(), quiet_transformers():
        cached = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
            eos_token_id=None,
        )
        logits = decoder.logits(cached)[0, prompt.shape[1] - 1 : -1].float()
    chosen = logits.gather(1, cached[0, prompt.shape[1] :, None]).squeeze(1)
    return float((logits.max(dim=1).values - chosen).max().item())
