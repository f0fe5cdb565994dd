"""Paths of this machine, as they are shown to others: by their last part."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath

__all__ = ["is_place", "last_part", "shortened"]

_PLACE = re.compile(r"/|~|[A-Za-z]:[\\/]|\\\\|\.\.?[\\/]")


def is_place(word: str) -> bool:
    """Whether a word begins as a path does: from the root, the home, a drive, or with dots."""
    return _PLACE.match(word) is not None


def last_part(path: str) -> str:
    """The last part of a path of any system."""
    return (PureWindowsPath(path) if "\\" in path else PurePosixPath(path)).name or "a local model"


def shortened(word: str) -> str:
    """A word of a command line, or the name of a text, without the way to a place on this machine."""
    option, equals, value = word.partition("=")
    if word.startswith("-") and equals:
        return f"{option}={shortened(value)}"
    return last_part(word) if is_place(word) else word
