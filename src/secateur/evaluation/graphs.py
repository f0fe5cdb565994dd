"""Writing with CUDA graphs: the kernels of one step are recorded once, and launched together for every token after that.

Without them the host launches each kernel of each layer anew, and a small model waits for the host, not for its memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from secateur.errors import RunError
from secateur.evaluation.inference import read_prompt

__all__ = ["recorded_step", "static_cache", "static_step"]

_WARM_UP_STEPS = 3  # before recording: libraries choose kernels and take their workspaces in their first calls


def recorded_step(model: Any, input_ids: Tensor, new_tokens: int) -> tuple[Callable[[Tensor], Any], Any]:
    """A step of writing as a CUDA graph, and the empty cache it writes into; to be used in inference mode.

    Args:
        model: a causal language model on a CUDA device.
        input_ids: the prompts that will be read into the cache, (batch, tokens), on that device.
        new_tokens: steps that will be made after that.

    Returns:
        A function from tokens, (batch, 1), to the model's output, whose logits the next call overwrites; and the cache.

    Raises:
        RunError: if the model's step cannot be recorded.
    """
    cache = static_cache(model, input_ids.shape[1] + max(new_tokens, _WARM_UP_STEPS))
    token = input_ids[:, -1:].clone()
    try:
        with torch.cuda.device(input_ids.device):
            return _recorded(static_step(model, cache, input_ids, token), token), _emptied(cache)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"no CUDA graph can be made of this model ({reason}); leave CUDA graphs out") from error


def static_cache(model: Any, tokens: int) -> Any:
    """A cache with room for so many tokens, whose tensors stay where they are: a graph knows only their addresses."""
    from transformers import StaticCache

    return StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=tokens)


def static_step(model: Any, cache: Any, input_ids: Tensor, token: Tensor) -> Callable[[], Any]:
    """A step that takes its token, (batch, 1), from `token` and its place from the cache, in which `input_ids` now are."""
    read_prompt(model, input_ids, cache)
    return lambda: model(input_ids=token, past_key_values=cache, use_cache=True)


def _recorded(step: Callable[[], Any], token: Tensor) -> Callable[[Tensor], Any]:
    """The step as a graph, after it ran on a stream of its own, as recording wants it."""
    beside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(_WARM_UP_STEPS):
            step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step()

    def replay(tokens: Tensor) -> Any:
        token.copy_(tokens)
        graph.replay()
        return output

    return replay


def _emptied(cache: Any) -> Any:
    cache.reset()
    return cache
