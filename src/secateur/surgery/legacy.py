"""What is called otherwise since transformers 5, written so that older readers understand it as well.

transformers 4, and engines with readers of their own, find the base of rotary positions beside `rope_parameters`, or take
10,000 for it without a word. transformers 5 reads `rope_parameters` first, so that the old fields change nothing there.
And they know no tokenizer of the class `TokenizersBackend`, which is another name of `PreTrainedTokenizerFast`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["make_readable_before_5_", "with_legacy_fields"]


def make_readable_before_5_(directory: Path) -> None:
    """Change what transformers has just written to a checkpoint directory."""
    config, tokenizer = directory / "config.json", directory / "tokenizer_config.json"
    config.write_text(with_legacy_fields(config.read_text(encoding="utf-8")), encoding="utf-8")
    if tokenizer.is_file():
        text = tokenizer.read_text(encoding="utf-8")
        new, old = '"tokenizer_class": "TokenizersBackend"', '"tokenizer_class": "PreTrainedTokenizerFast"'
        tokenizer.write_text(text.replace(new, old), encoding="utf-8")


def with_legacy_fields(text: str) -> str:
    """A configuration as JSON that readers from before transformers 5 understand as well.

    Rotary positions that differ by the type of layer are left as they are: each family named their fields in its own way.
    """
    config = json.loads(text)
    changed = [_add_fields_(part) for part in (config, *config.values()) if isinstance(part, dict)]
    return json.dumps(config, indent=2, sort_keys=True) + "\n" if any(changed) else text


def _add_fields_(config: dict[str, Any]) -> bool:
    """Add the old fields to one configuration; whether there were any to add."""
    rotary = config.get("rope_parameters")
    if not isinstance(rotary, dict) or not isinstance(rotary.get("rope_theta"), (int, float)):
        return False
    fields = {name: rotary[name] for name in ("rope_theta", "partial_rotary_factor") if name in rotary}
    if rotary.get("rope_type", "default") != "default":
        fields["rope_scaling"] = {name: value for name, value in rotary.items() if name not in fields}
    missing = {name: value for name, value in fields.items() if config.get(name) is None}
    config |= missing
    return bool(missing)
