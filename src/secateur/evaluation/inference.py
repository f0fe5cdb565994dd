"""Running a model without changing it: modes, gradients and devices as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from secateur.decoder import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["inference", "input_device", "read_prompt"]


@contextmanager
def inference(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode and no gradients; each module's mode is given back, also on error."""
    with evaluating(model), torch.inference_mode():
        yield


def input_device(model: PreTrainedModel) -> torch.device:
    """Where the model wants its token ids: beside its input embedding."""
    device: torch.device = model.get_input_embeddings().weight.device
    return torch.device("cpu") if device.type == "meta" else device  # offloaded weights: accelerate moves the input


def read_prompt(model: Any, input_ids: Tensor, cache: Any = None) -> Any:
    """One pass over prompts, (batch, tokens), that fills a cache and gives the logits of the last token only.

    Servers do it so: the head is a large matrix, and what it says of the prompt's other tokens is of no use.

    Args:
        model: a causal language model.
        input_ids: the prompts, on the model's device.
        cache: the cache to fill; the model's own kind if None.
    """
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
    given = {} if cache is None else {"past_key_values": cache}
    return model(input_ids=input_ids, use_cache=True, **last_only, **given)
