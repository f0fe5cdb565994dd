"""A user's own prompt: a line with column names in braces, filled in from each row."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from secateur.errors import DataError

__all__ = ["PromptTemplate"]


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """Text in which columns are named in braces: `{text}`; a brace itself is `{{` or `}}`."""

    parts: tuple[tuple[str, str | None], ...]
    """Text, and the column that follows it."""

    @classmethod
    def parse(cls, text: str, columns: Sequence[str]) -> PromptTemplate:
        r"""Read a template, in which a typed `\n` is a new line, and hold it to the columns there are.

        Names are only looked up, never evaluated: `{text.upper}` and `{text[0]}` are no columns, and so are refused.

        Raises:
            DataError: if it cannot be read, or names a column that does not exist, or none at all.
        """
        try:
            parsed = list(Formatter().parse(text.replace("\\n", "\n")))
        except ValueError as error:
            raise DataError(
                f"the template {text!r} cannot be read ({error}); write a brace itself as {{{{ or }}}}"
            ) from error
        names = [name for _, name, _, _ in parsed if name is not None]
        for name in names:
            if name not in columns:
                raise DataError(f"the template names no column with {{{name}}}; {_remedy(name, columns)}")
        if any(spec or conversion for _, _, spec, conversion in parsed):
            raise DataError(f"the template {text!r} formats a column with ':' or '!'; write only its name in braces")
        if not names:
            raise DataError(
                f"the template {text!r} names no column, so all prompts would be one; {_remedy('', columns)}"
            )
        return cls(parts=tuple((literal, name) for literal, name, _, _ in parsed))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are named."""
        return tuple(name for _, name in self.parts if name is not None)

    def fill(self, row: dict[str, Any]) -> str:
        """Put in the values of a row; one that is missing is no text.

        Raises:
            DataError: if a value is neither text nor a number.
        """
        return "".join(literal + ("" if name is None else _filled(name, row[name])) for literal, name in self.parts)


def _filled(name: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, (str, int, float)):
        raise DataError(f"the template's column {name!r} holds {type(value).__name__}; name one of text or numbers")
    return str(value)


def _remedy(name: str, columns: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, columns, n=1)
    return f"did you mean {{{near[0]}}}? There are {list(columns)}" if near else f"choose from {list(columns)}"
