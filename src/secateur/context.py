"""How many tokens a model reads at once, and the refusal of more than that before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.errors import RequestError

__all__ = ["check_context", "check_window", "context_of"]


def context_of(config: Any) -> int | None:
    """The tokens of a model's context, None if its configuration names no limit."""
    tokens: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return tokens or None


def check_context(source: object, config: Any, wanted: Mapping[str, int]) -> None:
    """Make sure that what a model is to read fits into its context.

    Args:
        source: what the model is called.
        config: its configuration.
        wanted: what it is to read in one piece, and how many tokens of each.

    Raises:
        RequestError: naming the model and its context.
    """
    context = context_of(config)
    if context is not None and context < sum(wanted.values()):
        parts = " and ".join(f"{tokens} {what}" for what, tokens in wanted.items())
        together = " together" if len(wanted) > 1 else ""
        raise RequestError(
            f"{source} has a context of {context} tokens, fewer than {parts}; choose {context} or fewer{together}"
        )


def check_window(source: object, config: Any, sequence_length: int) -> None:
    """Make sure that a model can read a window of text of so many tokens.

    Raises:
        RequestError: naming the model and its context.
    """
    check_context(source, config, {"tokens of a window (sequence_length)": sequence_length})
