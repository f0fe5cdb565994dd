"""The cells of a row as text, and how a prompt meets what completes it."""

from __future__ import annotations

from typing import Any

from secateur.errors import DataError

__all__ = ["Row", "as_text", "joined", "text_of", "value_of"]

Row = dict[str, Any]
"""Column → value; None where one is missing."""


def value_of(row: Row, *columns: str) -> Any:
    """What stands in the first of the columns that exists; None if none does, or nothing stands there."""
    return next((row[column] for column in columns if column in row), None)


def text_of(row: Row, *columns: str) -> str:
    """The text in the first of the columns that exists; empty if none does, or nothing stands there.

    Raises:
        DataError: if something else than text stands there.
    """
    return next((as_text(row[column], column) for column in columns if column in row), "")


def as_text(value: Any, column: str) -> str:
    """A value as text; `column` is where it stands.

    Raises:
        DataError: if it is something else.
    """
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):  # an answer of digits, from a file that knows numbers
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"the column {column!r} holds {type(value).__name__}, not text; write text there")
    return value


def joined(prompt: str, completion: str) -> tuple[str, str]:
    """Prompt and answer with a space between them, which is the completion's; after a new line there is none."""
    prompt = prompt.rstrip(" ")
    parted = not prompt or prompt[-1].isspace() or completion[:1].isspace()
    return prompt, completion if parted else f" {completion}"
