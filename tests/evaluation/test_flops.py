"""The work of a model against the formula, counted by hand from the configuration."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from secateur.evaluation.flops import count_work, weight_bytes
from secateur.evaluation.speed import SpeedSettings
from tiny_families import build

SETTINGS = SpeedSettings(prompt_tokens=10, new_tokens=6)
LAYERS, WIDTH, HEADS, KV_HEADS, MIDDLE, VOCABULARY = 6, 32, 4, 2, 64, 128
LAYER = 2 * WIDTH * WIDTH + 2 * WIDTH * (WIDTH * KV_HEADS // HEADS) + 3 * WIDTH * MIDDLE  # weights of q, o; k, v; MLP
HEAD = WIDTH * VOCABULARY
NORMS = WIDTH * (2 * LAYERS + 1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_flops_are_two_per_weight_and_token_plus_attention_with_the_head_on_the_last_token(tiny_model, attention):
    tiny_model.set_attn_implementation(attention)
    work = count_work(tiny_model, SETTINGS)
    tokens = 10
    square = 4 * tokens * tokens * WIDTH  # Q·Kᵀ and the weighted sum of V, two each, over heads · width of a head
    assert work.prefill_flops == 2 * LAYERS * LAYER * tokens + LAYERS * square + 2 * HEAD
    context = 10 + 3 + 1  # the prompt, half of the new tokens, and the token itself
    assert work.decode_flops == 2 * LAYERS * LAYER + LAYERS * 4 * context * WIDTH + 2 * HEAD


def test_bytes_are_those_of_the_weights_that_a_pass_reads_and_of_the_cache(tiny_model):
    work = count_work(tiny_model, SETTINGS)
    assert work.weight_bytes == 4 * (LAYERS * LAYER + HEAD + NORMS)  # float32; the embedding is looked up
    assert work.cache_bytes == 4 * LAYERS * 2 * 14 * (WIDTH * KV_HEADS // HEADS)  # keys and values of 14 tokens
    assert work.step_bytes(16) == work.weight_bytes + 16 * work.cache_bytes


def test_bytes_follow_the_dtype(tiny_model):
    whole = count_work(tiny_model, SETTINGS)
    half = count_work(tiny_model.to(torch.bfloat16), SETTINGS)
    assert (half.weight_bytes, half.cache_bytes) == (whole.weight_bytes // 2, whole.cache_bytes // 2)
    assert half.decode_flops == whole.decode_flops


def test_a_tied_table_is_read_once_by_the_head():
    config = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": MIDDLE, "num_hidden_layers": 1}
    config |= {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
    tied, loose = (LlamaForCausalLM(LlamaConfig(**config, tie_word_embeddings=tie)) for tie in (True, False))
    assert sum(p.numel() for p in tied.parameters()) == sum(p.numel() for p in loose.parameters()) - HEAD
    assert weight_bytes(tied) == weight_bytes(loose) == 4 * (LAYER + HEAD + 3 * WIDTH)


def test_tables_of_positions_are_looked_up_too():
    model = build("gpt2")  # tied
    positions = model.transformer.wpe.weight.numel()
    assert weight_bytes(model) == 4 * (sum(p.numel() for p in model.parameters()) - positions)


def test_a_parameter_of_a_module_of_its_own_kind_is_read():
    module = nn.Sequential(nn.Embedding(5, 2), nn.LayerNorm(2))
    module.scale = nn.Parameter(torch.ones(3))
    assert weight_bytes(module) == 4 * (2 + 2 + 3)


def test_counting_changes_nothing(tiny_model):
    tiny_model.train()
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    count_work(tiny_model, SpeedSettings(prompt_tokens=2, new_tokens=1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.state_dict().items())
    assert tiny_model.training
