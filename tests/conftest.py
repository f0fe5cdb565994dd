"""What every test may use: a tiny Llama with seeded weights, a tokenizer of ASCII bytes, and both on disk."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads of several workers would only wait for each other

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tiny_models import ascii_tokenizer, tiny_llama


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
