"""A context is what a configuration states under whatever name, and where it states none nothing is refused."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import BloomConfig, GPT2Config, LlamaConfig

from secateur.context import check_context, context_of
from secateur.errors import RequestError


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (LlamaConfig(max_position_embeddings=64), 64),
        (GPT2Config(n_positions=48), 48),
        (LlamaConfig(max_position_embeddings=64, rope_parameters={"rope_type": "linear", "factor": 2.0}), 64),
        (BloomConfig(), None),  # ALiBi
    ],
)
def test_a_context_is_what_the_configuration_states(config: Any, tokens: int | None) -> None:
    assert context_of(config) == tokens


def test_as_much_as_the_context_fits_one_more_is_refused_and_without_a_limit_anything_fits() -> None:
    config = LlamaConfig(max_position_embeddings=64)
    check_context("it", config, {"tokens": 64})
    with pytest.raises(
        RequestError, match=r"^it has a context of 64 tokens, fewer than 65 tokens; choose 64 or fewer$"
    ):
        check_context("it", config, {"tokens": 65})
    with pytest.raises(RequestError, match=r"fewer than 60 old and 5 new; choose 64 or fewer together$"):
        check_context("it", config, {"old": 60, "new": 5})
    check_context("it", BloomConfig(), {"tokens": 10**6})
