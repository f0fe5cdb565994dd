"""A model in memory as lm-evaluation-harness wants it, which says how far it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from secateur.errors import RequestError
from secateur.processes import in_order, own_share
from secateur.progress import Progress
from secateur.signals import finishing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["answering"]


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
        """One step a kind of request; rows of passes are counted, and requests that shared a pass at the end."""

        @contextmanager
        def _step(self, requests: Sequence[Any]) -> Iterator[None]:
            with progress.track("answering tasks", len(requests)) as advance:
                self._left, self._advance = len(requests), advance
                yield
                self._count(self._left)

        def _count(self, rows: int) -> None:
            rows = min(rows, self._left)
            self._left -= rows
            self._advance(rows)

        def _answers(self, answer: Callable[..., Any], requests: Any, disable_tqdm: bool) -> Any:
            own = own_share(requests)
            with self._step(own):
                return in_order(answer(own, disable_tqdm=disable_tqdm) if own else [], len(requests))

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return self._answers(super().loglikelihood, requests, disable_tqdm)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return self._answers(super().loglikelihood_rolling, requests, disable_tqdm)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return self._answers(super().generate_until, requests, disable_tqdm)

        # Without bars of its own, also where `loglikelihood_rolling` asks for them.
        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: Any = None) -> Any:  # noqa: ARG002
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

        def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
            with finishing("this batch"):
                logits = super()._model_call(inps, attn_mask, labels)
            self._count(len(inps))
            return logits

        def _model_generate(self, context: Any, max_length: int, stop: list[str], **settings: Any) -> Any:
            output = super()._model_generate(context, max_length, stop, **settings)
            self._count(len(context))
            return output

    return Answering(
        pretrained=model,
        tokenizer=_with_end(tokenizer, model),
        backend="causal",
        batch_size=batch_size,
        softmax_dtype=torch.float32,
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
