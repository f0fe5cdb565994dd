"""How many decoder layers a configuration states."""

from __future__ import annotations

from typing import Any

__all__ = ["MOST_LAYERS", "count_field", "layer_count"]

MOST_LAYERS = 10_000
"""Far more than any model has: a number beyond it is a mistake, or means harm."""

_COUNTS = ("decoder_layers", "num_decoder_layers", "num_hidden_layers", "num_layers")
"""Fields that count decoder layers; the first that a configuration has is the one: others then count the encoder's."""


def count_field(config: Any) -> str:
    """The field of a (text) configuration that says how many decoder layers there are."""
    own = vars(config).keys() | config.attribute_map.keys()
    return next((name for name in _COUNTS if name in own), "num_hidden_layers")


def layer_count(config: Any) -> int:
    """The number of decoder layers that a model's configuration states."""
    text = config.get_text_config(decoder=True)
    return int(getattr(text, count_field(text)))
