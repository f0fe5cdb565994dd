"""What every test may use: a tiny Llama with seeded weights, a tokenizer of ASCII bytes, and both on disk."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads of several workers would only wait for each other

import pytest
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


@pytest.fixture
def tiny_model() -> LlamaForCausalLM:
    """A fresh tiny Llama; a test may change it."""
    return tiny_llama()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of `tiny_checkpoint`, shared."""
    return ascii_tokenizer()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama and its tokenizer as a checkpoint directory, shared: do not write into it."""
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny-llama"
    tiny_llama().save_pretrained(directory)
    ascii_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def model() -> LlamaForCausalLM:
    """Four layers of random weights with a context of 64 tokens, shorter than the tokenizer's."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def pytest_addoption(parser: pytest.Parser) -> None:
    """--every-family runs what tests/families otherwise runs for some of each kind."""
    parser.addoption(
        "--every-family", action="store_true", help="try every family of transformers, not some of each kind"
    )
