"""What reading and writing must cost at least: multiplications, and bytes of weights and cache. Counted, not timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from secateur.evaluation.inference import inference, input_device, read_prompt
from secateur.evaluation.speed import SpeedSettings, made_up_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Work", "count_work", "flop_counter", "weight_bytes"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work of one sequence (batch 1)."""

    prefill_flops: int
    """Floating-point operations (a multiplication and an addition are two) of reading a prompt: all matrix products and the
    whole square of attention, masked or not, with the head on the last token only."""

    decode_flops: int
    """The same of one token, half-way through the writing."""

    weight_bytes: int
    """Bytes of weights that each pass reads, whatever the batch: all but tables of which single rows are looked up."""

    cache_bytes: int
    """Bytes of the cache that one token reads, half-way through the writing."""

    def step_bytes(self, batch_size: int) -> int:
        """Bytes that are read to write one token of each sequence of a batch."""
        return self.weight_bytes + batch_size * self.cache_bytes


def count_work(model: PreTrainedModel, settings: SpeedSettings) -> Work:
    """Count the work of a model on a prompt of `settings.prompt_tokens` and half of `settings.new_tokens` after it.

    Of experts that are chosen token by token, the FLOPs are those of the ones chosen here, and the bytes those of all.
    """
    prompt = made_up_prompt([model], 1, settings.prompt_tokens).to(input_device(model))
    with inference(model):
        with flop_counter() as prefill:
            output = read_prompt(model, prompt)
        half = prompt[:, :1].expand(1, settings.new_tokens // 2)
        if half.numel():
            output = model(input_ids=half, past_key_values=output.past_key_values, use_cache=True)
        with flop_counter() as decode:
            output = model(input_ids=prompt[:, -1:], past_key_values=output.past_key_values, use_cache=True)
    return Work(
        prefill_flops=prefill.get_total_flops(),
        decode_flops=decode.get_total_flops(),
        weight_bytes=weight_bytes(model),
        cache_bytes=_cache_bytes(output.past_key_values),
    )


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters, but for those that are only an embedding: of a table, a token reads a row.

    A table that is the head as well (tied) counts once, because the head reads all of it.
    """
    read = {
        parameter
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    return sum(parameter.nbytes for parameter in read)


def _cache_bytes(cache: Any) -> int:
    """Bytes of the tensors of a cache's layers; 0 of a cache of another kind."""
    layers = getattr(cache, "layers", ())
    return sum(value.nbytes for layer in layers for value in vars(layer).values() if isinstance(value, Tensor))


# ---- counting ------------------------------------------------------------------------------------------------------------

_FUSED_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)


def flop_counter() -> FlopCounterMode:
    """The counter of torch, which knows the fused attention of CUDA devices, but not that of CPUs, nor always grouped heads."""
    fused = {getattr(torch.ops.aten, name): _attention for name in _FUSED_ATTENTION if hasattr(torch.ops.aten, name)}
    return FlopCounterMode(display=False, custom_mapping=fused)


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Of shapes (batch, heads, queries, width) and (batch, fewer heads, keys, width): Q·Kᵀ and the weighted sum of V."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[-2] * (width + value[-1])
