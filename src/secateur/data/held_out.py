"""Keep the text that is scored apart from the text that is calibrated on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence

__all__ = ["hash_order", "hold_out", "without_shared_paragraphs"]

_LONG = 80  # characters from which a paragraph found twice is a copy, and not a heading or a phrase
_EMPTY_LINES = re.compile(r"(\n[^\S\n]*\n\s*)")


def hash_order(documents: Sequence[str]) -> list[str]:
    """The distinct documents that hold text, in an order that depends on nothing but what they say."""
    distinct = dict.fromkeys(document for document in documents if document.strip())
    return sorted(distinct, key=lambda document: hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest())


def hold_out(documents: Sequence[str], last: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part `documents` into those to calibrate on and those in `last`; both keep their order, copies stay together."""
    held = set(last)
    calibration = [document for document in documents if document.strip() and document not in held]
    return calibration, list(dict.fromkeys(document for document in documents if document in held))


def without_shared_paragraphs(documents: Sequence[str], held_out: Sequence[str]) -> tuple[list[str], int]:
    """Remove from `documents` what the held-out text says too.

    A paragraph is a line, or lines between empty ones; how it is wrapped and indented does not count. Paragraphs of
    fewer than 80 characters stay.

    Returns:
        The documents that still hold text, and how many paragraphs were removed.
    """
    shared = {paragraph for document in held_out for paragraph in _paragraphs(document)}
    kept, removed = [], 0
    for document in documents:
        text, count = _without(document, shared)
        removed += count
        if text.strip():
            kept.append(text)
    return kept, removed


def _paragraphs(document: str) -> Iterator[str]:
    for block in _EMPTY_LINES.split(document):
        for text in (block, *block.split("\n")):
            if len(paragraph := _normal(text)) >= _LONG:
                yield paragraph


def _without(document: str, shared: set[str]) -> tuple[str, int]:
    parts, removed = [], 0
    for block in _EMPTY_LINES.split(document):  # the separators are among the parts, so that joining changes nothing
        if _is_shared(block, shared):
            removed += 1
            continue
        lines = block.split("\n")
        kept = [line for line in lines if not _is_shared(line, shared)]
        removed += len(lines) - len(kept)
        parts.append("\n".join(kept))
    return "".join(parts), removed


def _is_shared(text: str, shared: set[str]) -> bool:
    return len(normal := _normal(text)) >= _LONG and normal in shared


def _normal(text: str) -> str:
    return " ".join(text.split())
