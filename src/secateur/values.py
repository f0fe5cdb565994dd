"""Plain values in small files, which are there whole or not at all, and as they were written where they are sealed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["finite", "read_sealed", "write_json", "write_sealed", "write_text", "yaml_problem"]

_SEAL, _VALUES = "sha256", "values"


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON so that `path` holds either the old content or the new, never half of it.

    Non-finite numbers become null: JSON has no word for them.
    """
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text so that `path` holds either the old content or the new, never half of it."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a power cut may leave the new name with nothing in it
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def finite(value: Any) -> Any:
    """The value with every number that is not finite as None, and tuples as lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def write_sealed(path: str | Path, values: dict[str, Any]) -> None:
    """Write plain JSON values so that `read_sealed` can tell whether they are still those."""
    text = json.dumps(values)
    write_text(path, json.dumps({_SEAL: _digest(text), _VALUES: json.loads(text)}))


def read_sealed(path: str | Path) -> dict[str, Any]:
    """What `write_sealed` wrote.

    Raises:
        OSError: if there is nothing to read.
        ValueError: if it is not as it was written.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        values, seal = dict(found[_VALUES]), found[_SEAL]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged") from error
    if _digest(json.dumps(values)) != seal:
        raise ValueError(f"{path} is damaged")
    return values


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def yaml_problem(error: Exception) -> str:
    """What PyYAML has against a text and where, in one line that leaves out the name it makes up for the text."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if problem is None:
        return " ".join(str(error).split()).replace(' in "<unicode string>"', "")
    return str(problem) if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
