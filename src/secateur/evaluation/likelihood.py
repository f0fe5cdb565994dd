"""How likely a model finds completions after their prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from secateur.data.prompts import Encoded, context_length, encode_pairs, padded
from secateur.decoder import unwrapped
from secateur.errors import RequestError
from secateur.evaluation.inference import inference, input_device
from secateur.processes import share_out
from secateur.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LogLikelihood", "autocast", "log_likelihoods", "num_sequences"]

_SILENT = Silent()


@dataclass(frozen=True, kw_only=True)
class LogLikelihood:
    """How likely a model finds a completion after its prompt."""

    nats: float
    """ln p(completion | prompt), summed over its tokens."""

    num_tokens: int
    """Tokens of the completion."""

    cut: bool
    """Whether the prompt lost its beginning to fit the context."""


def log_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_size: int = 16,
    max_length: int | None = None,
    precision: torch.dtype | None = None,
    progress: Progress | None = None,
    description: str = "scoring completions",
) -> list[LogLikelihood]:
    """The log-likelihood of each completion; in the order given, whatever the batches.

    The last token of a completion is predicted but not read, so pairs that differ in nothing else share one sequence:
    the options of a classification with one token each cost one pass. Sequences run longest first, padded on the right
    whatever the tokenizer's side, where no token of the text sees the padding.

    Losses are taken from float32 logits and summed in float64. The logits are the model's own, of the last positions
    only where it can (`logits_to_keep`): taking hidden states to the head ourselves would lose what a family does
    there, a scale or a cap, and in batches sorted by length few more positions are kept than are needed.

    Args:
        model: a causal language model, plain or wrapped by peft.
        tokenizer: its tokenizer.
        pairs: (prompt, completion).
        batch_size: sequences a batch.
        max_length: tokens read at most; None means the model's context, and more than that is never read.
        precision: autocast dtype; the weights' own if None.
        progress: told of each sequence.
        description: the name of the step.

    Raises:
        DataError: if a completion has no tokens, or more than can be read.
        RequestError: if a number is below one.
    """
    if batch_size < 1:
        raise RequestError(f"the batch size is {batch_size}; choose 1 or more")
    encoded = encode_pairs(model, tokenizer, pairs, limit=context_length(model, max_length))
    sharing: dict[tuple[int, ...], list[int]] = {}  # sequence → the pairs it scores
    for index, pair in enumerate(encoded):
        sharing.setdefault(_read(pair), []).append(index)
    sequences = sorted(sharing, key=len, reverse=True)  # longest first: memory runs out at once or not at all
    batches = [
        {sequence: sharing[sequence] for sequence in sequences[start : start + batch_size]}
        for start in range(0, len(sequences), batch_size)
    ]
    nats = [math.nan] * len(pairs)
    with (
        inference(model),
        autocast(model, precision),
        (progress or _SILENT).track(description, len(sequences)) as advance,
    ):
        for scored in share_out(lambda batch: list(_batch_nats(model, batch, encoded)), batches, advance, size=len):
            for index, value in scored:
                nats[index] = value
    return [
        LogLikelihood(nats=value, num_tokens=len(pair.completion), cut=pair.cut)
        for value, pair in zip(nats, encoded, strict=True)
    ]


def num_sequences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    max_length: int | None = None,
) -> int:
    """How many sequences `log_likelihoods` reads for such pairs.

    Raises:
        DataError: as `log_likelihoods`.
    """
    encoded = encode_pairs(model, tokenizer, pairs, limit=context_length(model, max_length))
    return len({_read(pair) for pair in encoded})


def _read(pair: Encoded) -> tuple[int, ...]:
    """What is read of a pair: the last token is only predicted."""
    return (*pair.context, *pair.completion[:-1])


def autocast(model: PreTrainedModel, precision: torch.dtype | None) -> torch.autocast:
    """Mixed precision in `precision`; none if None."""
    return torch.autocast(input_device(model).type, precision or torch.bfloat16, enabled=precision is not None)


def _batch_nats(
    model: PreTrainedModel, batch: dict[tuple[int, ...], list[int]], encoded: Sequence[Encoded]
) -> Iterator[tuple[int, float]]:
    """(index, nats) of each pair; its completion is predicted at the last positions of its sequence."""
    width = max(map(len, batch))
    spans = [
        (row, len(sequence) - len(encoded[index].completion), len(sequence), index)
        for row, (sequence, indices) in enumerate(batch.items())
        for index in indices
    ]
    first = min(begin for _, begin, _, _ in spans)  # of the positions that predict a completion
    logits = _last_logits(model, list(batch), width - first)  # (batch, positions from first on, vocab)
    losses = []
    for row, begin, end, index in spans:
        targets = torch.tensor(encoded[index].completion, device=logits.device)
        predictions = logits[row, begin - first : end - first].float()  # (tokens, vocab)
        losses.append(cross_entropy(predictions, targets, reduction="none"))
    on_cpu = torch.cat(losses).cpu().double()  # one transfer a batch
    for (_, _, _, index), loss in zip(spans, torch.split(on_cpu, [len(loss) for loss in losses]), strict=True):
        yield index, -loss.sum().item()


def _last_logits(model: PreTrainedModel, sequences: Sequence[tuple[int, ...]], keep: int) -> Tensor:
    """Logits (batch, keep, vocab) of the last positions of sequences padded on the right."""
    input_ids, mask = padded(sequences, left=False)
    device = input_device(model)
    last_only = {"logits_to_keep": keep} if "logits_to_keep" in signature(unwrapped(model).forward).parameters else {}
    output = model(input_ids=input_ids.to(device), attention_mask=mask.to(device), use_cache=False, **last_only)
    logits: Tensor = output.logits[:, -keep:]  # all positions from a model that cannot keep the last only
    return logits
