"""Paths of this machine, as they are shown to others: by their last part; and where secateur keeps files of its own."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

__all__ = ["SAMPLE_MODEL", "cache_directory", "is_place", "last_part", "places_in", "shortened", "without_places"]

SAMPLE_MODEL = "SmolLM2-135M-Instruct"
"""The name of the sample model, and of its directory in the cache."""

_SHORTEST = 2  # parts: what has fewer, as `./c4`, tells nothing
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


def places_in(value: Any) -> set[str]:
    """The paths in a record or a request: in its texts that are one, and in its command's words. Not in what models wrote."""
    return {place for place in _places(value) if is_place(place) and len(re.split(r"[\\/]", place)) > _SHORTEST}


def _places(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key == "command" and isinstance(item, str):
                yield from (word.partition("=")[2] if word.startswith("-") else word for word in shlex.split(item))
            elif key != "generations":
                yield from _places(item)
    elif isinstance(value, list):
        for item in value:
            yield from _places(item)
    elif isinstance(value, str):
        yield value


def without_places(text: str, places: set[str]) -> str:
    """A text, JSON or a page, with each of `places` by its last part, and this user's home as `~`."""
    home = f"{Path.home()}/"
    named = {place: last_part(place) for place in places} | ({home: "~/"} if len(home) > _SHORTEST else {})
    for place in sorted(named, key=len, reverse=True):  # the longer first, or a folder would spoil what is in it
        for written in {place, json.dumps(place)[1:-1], html.escape(place)}:
            text = text.replace(written, named[place])
    return text


def cache_directory() -> Path:
    """Where secateur keeps files: `SECATEUR_CACHE`, else `XDG_CACHE_HOME`/secateur, else ~/.cache/secateur."""
    if own := os.environ.get("SECATEUR_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache").absolute() / "secateur"
