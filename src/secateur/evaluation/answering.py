"""A model in memory as lm-evaluation-harness wants it, which says how far it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from secateur.errors import RequestError
from secateur.processes import in_order, own_share
from secateur.progress import Progress
from secateur.signals import finishing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["answering", "padded_tokens"]


def answering(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int, progress: Progress
) -> Any:
    """The harness's own wrapper of a model, which scores in float32 and tells `progress` of what it has answered.

    Args:
        model: a causal language model; it is put into evaluation mode.
        tokenizer: its tokenizer, which stays as it is.
        batch_size: sequences a forward pass.
        progress: told of each request.

    Returns:
        An `lm_eval.models.huggingface.HFLM`.

    Raises:
        RequestError: if neither tokenizer nor model has a token that ends a text.
    """
    from lm_eval.models.huggingface import HFLM

    class Answering(HFLM):  # type: ignore[misc]  # lm-eval has no types
        """One step a kind of request, which counts the tokens that are read; where answers are written, the answers."""

        @contextmanager
        def _step(self, requests: Sequence[Any], units: int, unit: str) -> Iterator[None]:
            progress.note(f"{len(requests):,} requests" + (f", {units:,} tokens to read" if unit == "tokens" else ""))
            with progress.track(f"answering tasks ({unit})", units) as advance:
                self._advance = advance
                yield

        def _answers(self, answer: Callable[..., Any], requests: Any, disable_tqdm: bool) -> Any:
            own = own_share(requests)
            return in_order(answer(own, disable_tqdm=disable_tqdm) if own else [], len(requests))

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return self._answers(super().loglikelihood, requests, disable_tqdm)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            def answer(own: Any, disable_tqdm: bool) -> Any:
                tokens = sum(len(self.tok_encode(*request.args)) for request in own)
                with self._step(own, tokens, "tokens"):
                    return super(Answering, self).loglikelihood_rolling(own, disable_tqdm=disable_tqdm)

            return self._answers(answer, requests, disable_tqdm)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            def answer(own: Any, disable_tqdm: bool) -> Any:
                with self._step(own, len(own), "requests"):
                    return super(Answering, self).generate_until(own, disable_tqdm=disable_tqdm)

            return self._answers(answer, requests, disable_tqdm)

        # Without bars of its own, also where `loglikelihood_rolling` asks for them, which gives a few windows at a time.
        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: Any = None) -> Any:  # noqa: ARG002
            answer = partial(super()._loglikelihood_tokens, requests, disable_tqdm=True, override_bs=override_bs)
            if override_bs is not None:
                self._count_passes = False
                found = answer()
                self._advance(sum(len(scored) for _, _, scored in requests))
                return found
            self._count_passes = True
            with self._step(requests, padded_tokens(requests, self.batch_size, self.max_length), "tokens"):
                return answer()

        def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
            with finishing("this batch"):
                logits = super()._model_call(inps, attn_mask, labels)
            if self._count_passes:
                self._advance(inps.numel())
            return logits

        def _model_generate(self, context: Any, max_length: int, stop: list[str], **settings: Any) -> Any:
            output = super()._model_generate(context, max_length, stop, **settings)
            self._advance(len(context))
            return output

    return Answering(
        pretrained=model,
        tokenizer=_with_end(tokenizer, model),
        backend="causal",
        batch_size=batch_size,
        softmax_dtype=torch.float32,
    )


def padded_tokens(requests: Iterable[tuple[Any, list[int], list[int]]], batch_size: int, max_length: int) -> int:
    """The tokens that the passes over these requests read: the longest first, each pass as long as its longest.

    Requests that differ in their last token alone, such as answers that are one letter, share a row.

    Args:
        requests: of each its text, and the tokens of its context and of what is scored.
        batch_size: rows a pass.
        max_length: tokens that the model reads at once, at most.
    """
    rows = {(*context, *scored[:-1]) for _, context, scored in requests}
    lengths = sorted((min(len(row), max_length) for row in rows), reverse=True)
    return sum(
        lengths[first] * len(lengths[first : first + batch_size]) for first in range(0, len(lengths), batch_size)
    )


def _with_end(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer, which the harness changes, with a token that ends a text, which it needs."""
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.eos_token_id is None:
        end = getattr(model.config.get_text_config(), "eos_token_id", None)
        if end is None:
            raise RequestError("neither tokenizer nor model has an EOS token; give the tokenizer one for tasks")
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end[0] if isinstance(end, list) else end)
    return tokenizer
