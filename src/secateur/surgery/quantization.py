"""What the settings of a quantizer say of layers, such as those left unquantized: their names get the new numbers."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from secateur.errors import UnsupportedModelError
from secateur.surgery.names import layer_in, renumbered
from secateur.surgery.shards import quoted

__all__ = ["is_of_quantizer", "renumbered_settings"]

_MAX_DEPTH = 32
"""Of lists and dictionaries in each other; a stranger's may be deeper than Python calls."""


def is_of_quantizer(name: str) -> bool:
    """Whether a file beside a checkpoint holds a quantizer's settings, by its name."""
    return re.fullmatch(r"(?:hf_)?quant(?:ize|ization)?_config\.json", name) is not None


def renumbered_settings(
    settings: Any, whose: str, paths: Collection[str], new_of: Mapping[int, int]
) -> tuple[Any, bool]:
    """Settings of the layers that are kept, and whether any layer was named.

    Args:
        settings: dictionaries, lists and words, as read from JSON.
        whose: what the message calls them.
        paths: what stands before the number of a layer.
        new_of: kept layer of the dense model → its number after the cut.

    Raises:
        UnsupportedModelError: if a pattern speaks of single layers, which cannot be renumbered, or what they say lies deeper
            than any quantizer writes.
    """
    named = False
    lists = "|".join(re.escape(path.rpartition(".")[2]) for path in paths)

    def word(text: str) -> str | None:
        nonlocal named
        prefix, layer = layer_in(f"{text}.")
        if layer is not None and any(path == prefix or path.endswith(f".{prefix}") for path in paths):
            named = True
            new = renumbered(f"{text}.", [prefix], new_of)
            return None if new is None else new.removesuffix(".")
        # Patterns: any number may stand for the layer, but a certain one may not. Of a version (0.9.1+g1) none does.
        rest = text.replace("[0-9]", "").replace(r"\d", "")
        pattern = not re.fullmatch(r"[\w.\-]*", text)
        single = (
            re.search(rf"\b(?:{lists})\W+[0-9]|(?<![0-9]\.)(?<=\.)[0-9]+(?=\\?\.)", rest)
            if pattern
            else re.match(r"[0-9]+\.[a-z_]", text)
        )
        if single:
            raise UnsupportedModelError(
                f"{whose} speak of single layers in {quoted(text)}, which cannot be renumbered; name the modules in full"
            )
        return text

    def walk(value: Any, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise UnsupportedModelError(f"{whose} are nested more than {_MAX_DEPTH} deep; mend them")
        if isinstance(value, str):
            return word(value)
        if isinstance(value, (list, tuple)):
            return [new for each in value if (new := walk(each, depth + 1)) is not None or each is None]
        if isinstance(value, dict):
            return {new: walk(each, depth + 1) for name, each in value.items() if (new := word(name)) is not None}
        return value

    new = walk(settings, 0)  # before it is known whether any is named
    return new, named
