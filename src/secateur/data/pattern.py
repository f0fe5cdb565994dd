"""How the prompts of a task look, for those who ask the model later: with the columns' names, and with made-up text there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from secateur.data.chat import ChatTemplate
from secateur.data.formats import Format
from secateur.data.loader import Table
from secateur.errors import DataError

__all__ = ["PromptPattern", "pattern_of"]

_TEXT = "It rained all day, and we loved every minute of it."
_ASKING = ("question", "prompt", "instruction", "messages", "conversations")
_MADE_UP = {**dict.fromkeys(_ASKING, "What is the capital of France?"), "input": "Answer in one word."}
_ANSWERING = frozenset({"completion", "response"})


@dataclass(frozen=True, kw_only=True)
class PromptPattern:
    """One prompt of a task, without anything of the data but the names of its columns."""

    prompt: str
    """With the columns' names in braces: `{text}`, a new line, `Label:`."""

    example: str
    """The same prompt with made-up text in their place."""

    has_bos: bool
    """Whether the token that begins a text is in it already, as chat templates write it."""

    def describe(self) -> dict[str, Any]:
        """What a record says about it."""
        return {"prompt": self.prompt, "example": self.example, "has_bos": self.has_bos}


def pattern_of(form: Format, table: Table, writer: ChatTemplate) -> PromptPattern | None:
    """The prompt that `form` makes of a row of names; None where there is no prompt, or it needs more than names.

    Args:
        form: how the rows are read.
        table: the data; of its rows only the kinds of values are looked at.
        writer: writes messages.
    """
    named = _prompt(form, table, writer, lambda column: f"{{{column}}}")
    made_up = _prompt(form, table, writer, lambda column: _MADE_UP.get(column, _TEXT))
    if not named or not made_up:
        return None
    bos = str(getattr(writer.tokenizer, "bos_token", None) or "")
    return PromptPattern(prompt=named, example=made_up, has_bos=bool(bos) and named.startswith(bos))


def _prompt(form: Format, table: Table, writer: ChatTemplate, says: Callable[[str], str]) -> str:
    """The prompt of a row in whose columns stands what `says` gives; empty if there is none."""
    row = {column: _stand_in(column, table.rows[0][column], says) for column in table.columns}
    if form.labels:
        row["label_text"] = form.labels[0]
    try:
        prompt, _ = writer.pair(*form.drafts(row)[0].options[0])
    except (DataError, IndexError):  # a gap to fill, a template that refuses: then nothing is said
        return ""
    return prompt if prompt.strip() else ""


def _stand_in(column: str, value: Any, says: Callable[[str], str]) -> Any:
    """A value of the kind that the column has."""
    if column in ("label", "answer", "answerKey"):
        return "A"
    if column in ("choices", "endings"):
        return [says(column)] * 2
    if not isinstance(value, list):
        return says(column)
    turn = {"role": "assistant" if column in _ANSWERING else "user", "content": says(column)}
    return [turn, {"role": "assistant", "content": "A"}] if column in ("messages", "conversations") else [turn]
