"""What is called otherwise since transformers 5, written so that older readers understand it as well.

transformers 4, and engines with readers of their own, find the base of rotary positions beside `rope_parameters`, or take
10,000 for it without a word. And they know no tokenizer of the class `TokenizersBackend`, which is another name of
`PreTrainedTokenizerFast`. For most families transformers 5 goes by the new fields where it finds both, but not for all: an
old field is added where the configuration is read just as without it, which is tried.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from secateur.loading import quiet_transformers

__all__ = ["make_readable_before_5_", "with_legacy_fields"]


def make_readable_before_5_(directory: Path, kind: type) -> None:
    """Change what transformers has just written to a checkpoint directory; `kind` is the class of the configuration."""
    config, tokenizer = directory / "config.json", directory / "tokenizer_config.json"
    config.write_text(with_legacy_fields(config.read_text(encoding="utf-8"), kind), encoding="utf-8")
    if tokenizer.is_file():
        text = tokenizer.read_text(encoding="utf-8")
        new, old = '"tokenizer_class": "TokenizersBackend"', '"tokenizer_class": "PreTrainedTokenizerFast"'
        tokenizer.write_text(text.replace(new, old), encoding="utf-8")


def with_legacy_fields(text: str, kind: Any) -> str:
    """A configuration as JSON that readers from before transformers 5 understand as well.

    Rotary positions that differ by the type of layer are left as they are: each family named their fields in its own way.

    Args:
        text: the configuration as transformers writes it.
        kind: its class.
    """
    config = json.loads(text)
    expected, added = _read(config, kind), False
    for part in (config, *config.values()):
        for name, value in _old_fields(part):
            said = name in part
            if part.get(name) is not None:
                continue
            part[name] = value
            if _read(config, kind) == expected:
                added = True
            elif said:
                part[name] = None
            else:
                del part[name]
    return json.dumps(config, indent=2, sort_keys=True) + "\n" if added else text


def _old_fields(part: Any) -> Iterator[tuple[str, Any]]:
    """What one configuration would have said of its rotary positions."""
    rotary = part.get("rope_parameters") if isinstance(part, dict) else None
    if not isinstance(rotary, dict) or not isinstance(rotary.get("rope_theta"), (int, float)):
        return
    beside = {name: rotary[name] for name in ("rope_theta", "partial_rotary_factor") if name in rotary}
    yield from beside.items()
    if rotary.get("rope_type", "default") != "default":
        yield "rope_scaling", {name: value for name, value in rotary.items() if name not in beside}


def _read(config: dict[str, Any], kind: Any) -> Any:
    """What transformers makes of it; the error if it makes nothing."""
    try:
        with quiet_transformers():
            return kind.from_dict(json.loads(json.dumps(config))).to_dict()
    except Exception as error:  # of any type: a configuration checks itself in its own way
        return error
