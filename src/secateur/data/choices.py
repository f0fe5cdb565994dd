"""Multiple choice: what there is to choose among, and which of it is right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count, takewhile
from typing import Any

from secateur.data.rows import Row, as_text, joined
from secateur.errors import DataError

__all__ = ["RIGHT", "choices_of", "fill_gap", "right_choice", "texts_of"]

RIGHT = ("label", "answer", "answerKey")
"""The columns that may say which choice is right; the first that exists."""

_GAP = re.compile("_+")


def choices_of(row: Row) -> tuple[list[str], list[str]]:
    """The choices of a row, and the names it gives them (ARC's `A` or `1`), if it does.

    Raises:
        DataError: if they are no list of text.
    """
    if "choices" not in row:
        columns = takewhile(row.__contains__, (f"option{number}" for number in count(1)))
        return [as_text(row[column], column).strip() for column in columns], []
    given = row["choices"]
    if isinstance(given, dict):
        return texts_of(given.get("text"), "choices"), [str(name) for name in given.get("label") or ()]
    return texts_of(given, "choices"), []


def texts_of(values: Any, column: str) -> list[str]:
    """A list of text without the white space around each, empty if there is none; `column` is where it stands.

    Raises:
        DataError: if it is no list of text.
    """
    if values is None:
        return []
    if not isinstance(values, list):
        kind = type(values).__name__
        raise DataError(f"the column {column!r} holds {kind}, not a list; write a list there, or option1, option2 …")
    return [as_text(value, column).strip() for value in values]


def right_choice(row: Row, num_choices: int, names: Sequence[str] = ()) -> int:
    """The index of the right choice, from its name, its index as a number or digits, or its letter.

    Raises:
        DataError: if the row says none, or one that does not exist, or has fewer than two.
    """
    column = next(column for column in RIGHT if column in row)
    value = row[column].strip() if isinstance(row[column], str) else row[column]
    if value in (None, "", -1, "-1"):
        raise DataError(f"it has no {column}; choose a split whose rows are labelled")
    if num_choices < 2:
        raise DataError(f"it has {num_choices} choices; give two or more")
    # WinoGrande's answer "2" is option2.
    first = 1 if column == "answer" and "choices" not in row and "option1" in row else 0
    index = _index(value, names, first)
    if index is None or not 0 <= index < num_choices:
        last = num_choices - 1
        raise DataError(
            f"the {column} {value!r} is none of its {num_choices} choices; "
            f"give {first}..{last + first}, or a letter A..{chr(ord('A') + last)}"
        )
    return index


def _index(value: Any, names: Sequence[str], first: int) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    if str(value) in names:
        return names.index(str(value))
    if isinstance(value, int) or re.fullmatch("[0-9]+", value):
        return int(value) - first
    return ord(value.upper()) - ord("A") if re.fullmatch("[A-Za-z]", value) else None


def fill_gap(sentence: str, choices: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Put each choice into the gap `_`; the rest of the sentence is the completion.

    This is the partial evaluation of Trinh & Le (arXiv 1806.02847), as in lm-evaluation-harness. Deviation: the rest stays
    as it is written (`_'s` has no space in it), where the harness always puts a space before it.

    Raises:
        DataError: if there is not one gap.
    """
    parts = _GAP.split(sentence)
    if len(parts) != 2:
        raise DataError(f"the sentence has {len(parts) - 1} gaps _; leave one, or call the column question")
    before, after = parts
    if not after:  # nothing is left to score but the choice itself
        return tuple(joined(before, choice) for choice in choices)
    return tuple((before + choice, after) for choice in choices)
