"""Tiny tokenizers, and where the project's shared data may be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_tokenizers import byte_tokenizer, word_tokenizer
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    return word_tokenizer()


@pytest.fixture(scope="session")
def words_with_both_ends() -> PreTrainedTokenizerFast:
    return word_tokenizer(before=True, after=True)


@pytest.fixture(scope="session")
def byte_level() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("SECATEUR_DATA", beside))
    if not (folder / "wikitext2" / "test.txt").is_file():
        pytest.skip(f"no shared data in {folder}; set SECATEUR_DATA to the folder that holds wikitext2/")
    return folder
