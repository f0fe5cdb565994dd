"""A tiny Llama with seeded weights, and a tokenizer of ASCII bytes."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 128


def ascii_tokenizer() -> PreTrainedTokenizerFast:
    """One token an ASCII byte (token = code + 1, at most 128 in all), so that English text can be decoded again."""
    letters = [chr(code) if 32 < code < 127 else chr(256 + code) for code in range(127)]  # ByteLevel's spelling
    vocabulary = {"<unk>": 0} | {letter: code + 1 for code, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))  # noqa: S106 (a token of text)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", model_max_length=512)  # noqa: S106


def tiny_llama(num_layers: int = 6) -> LlamaForCausalLM:
    """Layers of 32 channels, float32; the same weights every time, and no layer close to the identity."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()
