"""Windows of tokens of one length: a seeded sample to calibrate on, and the first ones of a text to score."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from secateur.data.held_out import hash_order, hold_out, without_shared_paragraphs
from secateur.data.text import load_documents
from secateur.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenBatches", "calibration_alone", "calibration_and_held_out", "evaluation_windows", "tokenize"]

logger = logging.getLogger(__name__)

_FEWEST_DOCUMENTS = 10  # from which whole documents are held out; below, the end of the text is


@dataclass(frozen=True, eq=False)
class TokenBatches:
    """Equal windows of tokens, in a fixed order; iterating gives them batch by batch."""

    input_ids: Tensor  # (sequences, tokens) int64 on the CPU
    """The windows."""

    batch_size: int
    """Windows a batch; the last batch may be smaller."""

    spec: str
    """Where the text came from."""

    overlap: int = 0
    """Tokens at the start of each window that are the end of the one before: the context of those that are new."""

    def __post_init__(self) -> None:
        _at_least("batch size", self.batch_size, 1)
        if self.input_ids.ndim != 2 or self.input_ids.dtype != torch.int64 or not self.input_ids.numel():
            shape, dtype = tuple(self.input_ids.shape), self.input_ids.dtype
            raise DataError(f"token windows of shape {shape} and {dtype}; give int64 of (sequences, tokens), not empty")
        if not 0 <= self.overlap < self.sequence_length:
            raise DataError(f"windows of {self.sequence_length} tokens cannot overlap by {self.overlap}; choose fewer")

    def __len__(self) -> int:
        return (self.num_sequences + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, self.num_sequences, self.batch_size):
            yield self.input_ids[start : start + self.batch_size]  # (batch, tokens)

    @property
    def num_sequences(self) -> int:
        """How many windows there are."""
        return self.input_ids.shape[0]

    @property
    def sequence_length(self) -> int:
        """Tokens a window."""
        return self.input_ids.shape[1]

    @property
    def stride(self) -> int:
        """Tokens from the start of a window to that of the next; the window's length where they do not overlap."""
        return self.sequence_length - self.overlap

    @property
    def num_tokens(self) -> int:
        """Tokens in all windows."""
        return self.input_ids.numel()

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that tell these windows from others: of the SHA-256 of the tokens and the shape."""
        shape = repr(tuple(self.input_ids.shape)).encode()
        return hashlib.sha256(self.input_ids.numpy().astype("<i8").tobytes() + shape).hexdigest()[:16]

    def take(self, num_sequences: int) -> TokenBatches:
        """The first `num_sequences` windows, or all if there are fewer.

        Raises:
            DataError: if that is none.
        """
        _at_least("number of sequences", num_sequences, 1)
        return replace(self, input_ids=self.input_ids[:num_sequences])

    def rebatch(self, batch_size: int) -> TokenBatches:
        """The same windows, `batch_size` a batch."""
        return replace(self, batch_size=batch_size)

    def describe(self) -> dict[str, Any]:
        """What a record says about this data."""
        return {
            "spec": self.spec,
            "sequences": self.num_sequences,
            "tokens": self.num_tokens,
            "sequence_length": self.sequence_length,
            "fingerprint": self.fingerprint,
        }


def tokenize(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    r"""Tokenize documents as one stream.

    Args:
        documents: joined with `"\n\n"`, in their order; a single one is taken as it is.
        tokenizer: what it puts before a text by default (a BOS) comes once, at the start; what it puts after, nowhere.

    Returns:
        The stream: (tokens,) int64 on the CPU.
    """
    encoding = tokenizer(
        "\n\n".join(documents),
        truncation=False,
        padding=False,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,  # the stream is longer than the model's context on purpose
    )
    ids = torch.tensor(encoding["input_ids"], dtype=torch.int64)
    added_after = 0
    for added in reversed(encoding["special_tokens_mask"]):
        if not added:
            break
        added_after += 1
    if added_after == len(ids):  # no text, so that before and after cannot be told apart
        return ids[:0]
    return ids[: len(ids) - added_after]


def calibration_and_held_out(
    data: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    eval_data: str | None = None,
    sequence_length: int,
    num_sequences: int,
    eval_sequence_length: int | None = None,
    num_eval_sequences: int,
    batch_size: int = 8,
    eval_batch_size: int | None = None,
    seed: int = 0,
) -> tuple[TokenBatches, TokenBatches]:
    """Windows to calibrate on, and windows to score that have no token in common with them.

    Calibration is a seeded sample, without replacement, of the windows of `data`. Held out are the first windows of
    `eval_data`; paragraphs that `data` shares with it are then removed from `data`. Without `eval_data`, or where it is
    the same text, a part of `data` is held out: of ten documents or more about a fifth of the documents, at most half,
    the same ones whatever the seed; of fewer the end of the text. With fewer windows than asked for, all are used.

    Args:
        data: the SPEC of the text to calibrate on.
        tokenizer: the model's.
        eval_data: the SPEC of the text to score; of a data set on the Hub the test or validation split.
        sequence_length: tokens a calibration window.
        num_sequences: calibration windows.
        eval_sequence_length: tokens a held-out window; None means `sequence_length`.
        num_eval_sequences: held-out windows.
        batch_size: calibration windows a batch.
        eval_batch_size: held-out windows a batch; None means `batch_size`.
        seed: of the sample.

    Returns:
        Calibration and held-out windows.

    Raises:
        DataError: if a text cannot be loaded or has fewer tokens than one window, or a number makes no sense.
    """
    held_length = sequence_length if eval_sequence_length is None else eval_sequence_length
    _check_windows(sequence_length, num_sequences)
    _check_windows(held_length, num_eval_sequences)
    stream, held_stream, held_spec = _streams(
        data, tokenizer, eval_data, length=sequence_length, held_length=held_length, num_held=num_eval_sequences
    )
    windows = _windows(stream, sequence_length, data)
    calibration = TokenBatches(_sample(windows, num_sequences, data, seed), batch_size, data)
    held_windows = _first(_windows(held_stream, held_length, held_spec), num_eval_sequences, held_spec)
    held_batch_size = batch_size if eval_batch_size is None else eval_batch_size
    return calibration, TokenBatches(held_windows, held_batch_size, held_spec)


def calibration_alone(
    data: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    eval_data: str | None = None,
    sequence_length: int,
    num_sequences: int,
    num_eval_sequences: int,
    batch_size: int = 8,
    seed: int = 0,
) -> TokenBatches:
    """The calibration windows of `calibration_and_held_out`, where nothing is scored.

    What is held out there is left out here, so that both calibrate on the same; a text that is too short for that is taken whole.

    Raises:
        DataError: if a text cannot be loaded or has fewer tokens than one window, or a number makes no sense.
    """
    _check_windows(sequence_length, num_sequences)
    stream, _, _ = _streams(
        data, tokenizer, eval_data, length=sequence_length, held_length=sequence_length, num_held=num_eval_sequences,
        scored=False,
    )  # fmt: skip
    windows = _windows(stream, sequence_length, data)
    return TokenBatches(_sample(windows, num_sequences, data, seed), batch_size, data)


def evaluation_windows(
    spec: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequence_length: int,
    num_sequences: int,
    stride: int | None = None,
    batch_size: int = 8,
    split: str = "test",
) -> TokenBatches:
    """The first windows of a text, in order; without overlap, unless asked for: the usual WikiText-2 protocol.

    Args:
        spec: the SPEC of the text.
        tokenizer: the model's.
        sequence_length: tokens a window; perplexity depends on it, so say it with the number.
        num_sequences: windows; all if there are fewer.
        stride: tokens from the start of a window to that of the next; None means `sequence_length`.
        batch_size: windows a batch.
        split: of a data set on the Hub; `test` falls back to `validation`.

    Raises:
        DataError: if the text cannot be loaded or has fewer tokens than one window, or a number makes no sense.
    """
    _check_windows(sequence_length, num_sequences)
    step = sequence_length if stride is None else stride
    if not 1 <= step <= sequence_length:
        raise DataError(f"the stride is {step}; choose 1..{sequence_length}, the tokens of a window")
    stream = tokenize(load_documents(spec, split=split), tokenizer)
    windows = _first(_windows(stream, sequence_length, spec, step), num_sequences, spec)
    return TokenBatches(windows, batch_size, spec, sequence_length - step)


def _streams(
    data: str, tokenizer: PreTrainedTokenizerBase, eval_data: str | None, *, length: int, held_length: int, num_held: int,
    scored: bool = True,
) -> tuple[Tensor, Tensor, str]:  # fmt: skip
    """Streams (tokens,) to calibrate on and held out, and the SPEC of the latter, which may be empty if it is not scored."""
    documents = load_documents(data, split="train")
    others = None if eval_data is None else load_documents(eval_data, split="test")
    if eval_data is None or others is None or others == documents:
        streams = _carved(
            documents, tokenizer, data, length=length, held_length=held_length, num_held=num_held, scored=scored
        )
        return *streams, data
    documents = _apart(documents, others, data, eval_data)
    return tokenize(documents, tokenizer), tokenize(others, tokenizer), eval_data


def _apart(documents: list[str], scored: list[str], data: str, eval_data: str) -> list[str]:
    documents, removed = without_shared_paragraphs(documents, scored)
    if removed:
        logger.warning(
            "%d paragraphs of %s also occur in %s; they are left out of the calibration text", removed, data, eval_data
        )
    if not documents:
        raise DataError(f"all of {data!r} also occurs in {eval_data!r}; give another text to one of them")
    return documents


def _carved(
    documents: list[str],
    tokenizer: PreTrainedTokenizerBase,
    spec: str,
    *,
    length: int,
    held_length: int,
    num_held: int,
    scored: bool,
) -> tuple[Tensor, Tensor]:
    """Two streams (tokens,) of one text: to calibrate on, and held out."""
    order = hash_order(documents)
    if len(order) >= _FEWEST_DOCUMENTS:
        stream, held_stream = _carved_documents(documents, order, tokenizer, num_tokens=num_held * held_length)
        if len(stream) >= length and len(held_stream) >= held_length:
            return stream, held_stream
        logger.info("the documents of %s are too uneven to hold some out; its end is held out instead", spec)
    whole = tokenize(documents, tokenizer)
    if not scored and len(whole) < length + held_length:
        return whole, whole[:0]
    return _carved_stream(whole, spec, length=length, held_length=held_length, num_held=num_held)


def _carved_documents(
    documents: list[str], order: list[str], tokenizer: PreTrainedTokenizerBase, *, num_tokens: int
) -> tuple[Tensor, Tensor]:
    """Hold out the last fifth of `order`, and more while that has not `num_tokens`, up to a half."""
    most, count = len(order) // 2, -(-len(order) // 5)
    while True:
        calibration, held_out = hold_out(documents, order[-count:])
        held_stream = tokenize(held_out, tokenizer)
        if len(held_stream) >= num_tokens or count == most:
            break
        count = min(2 * count, most)
    calibration, removed = without_shared_paragraphs(calibration, held_out)
    if removed:
        logger.info("%d paragraphs that are also held out are left out of the calibration text", removed)
    return tokenize(calibration, tokenizer), held_stream


def _carved_stream(stream: Tensor, spec: str, *, length: int, held_length: int, num_held: int) -> tuple[Tensor, Tensor]:
    """Hold out the end of a stream, from a window's start on: a fifth, or what is wanted, at most about half."""
    total = len(stream)
    if total < length + held_length:
        raise DataError(
            f"{spec!r} has {total} tokens, fewer than one window of {length} to calibrate on and one of {held_length} "
            "held out; choose a smaller --sequence-length or give more text"
        )
    wanted = min(max(total // 5, num_held * held_length), total // 2)
    start = max(length, (total - max(wanted, held_length)) // length * length)
    return stream[:start], stream[start:]


def _windows(stream: Tensor, length: int, spec: str, stride: int | None = None) -> Tensor:
    """Cut a stream (tokens,) into windows (windows, length), by default without overlap; the rest is left out."""
    if len(stream) < length:
        raise DataError(
            f"{spec!r} has {len(stream)} tokens, fewer than one window of {length}; "
            "choose a smaller --sequence-length or give more text"
        )
    return stream.unfold(0, length, stride or length)


def _sample(windows: Tensor, num_sequences: int, spec: str, seed: int) -> Tensor:
    _warn_if_fewer(windows, num_sequences, spec, "calibration")
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    return windows[order[:num_sequences]]


def _first(windows: Tensor, num_sequences: int, spec: str) -> Tensor:
    _warn_if_fewer(windows, num_sequences, spec, "held-out")
    return windows[:num_sequences]


def _warn_if_fewer(windows: Tensor, num_sequences: int, spec: str, kind: str) -> None:
    if len(windows) < num_sequences:
        logger.warning(
            "%s has only %d %s windows of %d tokens, not %d; all are used",
            spec,
            len(windows),
            kind,
            windows.shape[1],
            num_sequences,
        )


def _check_windows(sequence_length: int, num_sequences: int) -> None:
    _at_least("sequence length", sequence_length, 2)
    _at_least("number of sequences", num_sequences, 1)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise DataError(f"the {name} is {value}; choose {least} or more")
