"""What a CUDA graph would record, checked without a GPU: its tokens, that it asks for no value, and that it can begin anew."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.errors import RunError
from secateur.evaluation import graphs
from secateur.evaluation.graphs import recorded_step, static_cache, static_step
from tiny_families import build, token_ids

FAMILIES = ("llama", "qwen3", "gpt_neox")


class Operators(TorchDispatchMode):
    """Remembers the operators that run inside."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function._overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def greedy(model, prompt, steps):
    tokens = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), min_new_tokens=steps, max_new_tokens=steps, do_sample=False
    )
    return tokens[:, prompt.shape[1] :]


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_on_the_static_cache_write_the_greedy_tokens_without_asking_the_device_for_a_value(family):
    model, prompt = build(family, eos_token_id=None), token_ids(batch=2, tokens=6)
    expected = greedy(model, prompt, 5)
    cache, token = static_cache(model, 12), expected[:, :1].clone()
    written = [token.clone()]
    with torch.inference_mode():
        step = static_step(model, cache, prompt, token)
        with Operators() as operators:
            for _ in range(4):
                token.copy_(step().logits[:, -1:].argmax(dim=-1))
                written.append(token.clone())
    assert torch.equal(torch.cat(written, dim=1), expected)
    assert not operators.names & {
        "_local_scalar_dense",
        "item",
        "is_nonzero",
        "nonzero",
        "equal",
    }  # recording forbids to wait for the device


def test_the_emptied_cache_gives_the_logits_of_a_new_one(tiny_model):
    prompt = token_ids(batch=1, tokens=6)
    cache = static_cache(tiny_model, 12)
    with torch.inference_mode():
        static_step(tiny_model, cache, token_ids(batch=1, tokens=9), prompt[:, :1])()
        places = [layer.keys.data_ptr() for layer in cache.layers]
        again = tiny_model(input_ids=prompt, past_key_values=graphs._emptied(cache), use_cache=True).logits
        plain = tiny_model(input_ids=prompt, use_cache=False).logits
    torch.testing.assert_close(again, plain)
    assert places == [layer.keys.data_ptr() for layer in cache.layers]  # the graph knows only addresses


def test_what_cannot_be_recorded_is_said_in_one_line(tiny_model, monkeypatch):
    def forbidden(*_):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(graphs, "_recorded", forbidden)
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.inference_mode())
    with pytest.raises(RunError, match=r"\(operation not permitted when stream is capturing\); leave CUDA graphs out"):
        recorded_step(tiny_model, token_ids(batch=1), 2)
