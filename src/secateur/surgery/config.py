"""The configuration of a model with fewer layers: every field that speaks of layers, one by one or as a rule.

Lists as long as the model has layers are found, not named. Named are only the fields whose numbers *are* layers
(indices), count them from the front (thresholds), or repeat (periods).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from secateur.errors import UnsupportedModelError

__all__ = ["remove_layers_from_config_"]

_NOT_PER_LAYER = {
    "architectures",
    "bad_words_ids",
    "eos_token_id",
    "pad_token_id",
    "suppress_tokens",
    "keys_to_ignore_at_inference",
}

_INDICES = {
    "attn_layer_indices", "cross_attention_layers", "full_attn_idxs", "full_attention_layers", "global_attn_layers",
    "hybrid_layer_ids", "mlp_only_layers", "moe_layers", "moe_layer_indices",
}  # fmt: skip
"""Fields that list layer numbers."""

_THRESHOLDS = {"first_k_dense_replace", "max_window_layers", "moe_layer_start_index", "num_dense_layers"}
"""Fields that say "the first k layers"."""

_PERIODS = {
    "attn_layer_period": None,
    "decoder_sparse_step": None,
    "expert_layer_period": None,
    "full_attention_interval": "layer_types",
    "global_attn_every_n_layers": "layer_types",
    "interleave_moe_layer_step": "moe_layers",
    "moe_layer_freq": None,
    "moe_layer_interval": None,
    "no_rope_layer_interval": "no_rope_layers",
    "sliding_window_pattern": "layer_types",
}
"""Fields that say "every p-th layer" → the explicit list that overrules them, if the configuration has one."""


def remove_layers_from_config_(config: Any, dropped: Sequence[int]) -> None:
    """Make the (text) configuration describe the model without `dropped`, in place.

    Args:
        config: a `transformers` configuration that has `num_hidden_layers`.
        dropped: layers of the dense model, each once.

    Raises:
        UnsupportedModelError: if a field states a period that the kept layers no longer have, and the configuration has no
            list that could say so. Nothing is changed then.
    """
    num_layers = config.num_hidden_layers
    gone = set(dropped)
    kept = [layer for layer in range(num_layers) if layer not in gone]
    changes = _changes(config, num_layers, kept)
    for name, value in changes.items():
        setattr(config, name, value)
    config.num_hidden_layers = len(kept)
    _check_round_trip(config, changes)


def _changes(config: Any, num_layers: int, kept: list[int]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    rules: dict[str, Callable[[Any], Any]] = {}
    for name, value in vars(config).items():
        if name in _NOT_PER_LAYER or name.startswith("_"):
            continue
        if name in _INDICES and isinstance(value, (list, tuple)):
            rules[name] = lambda layers: [new for new, layer in enumerate(kept) if layer in set(layers)]
        elif name in _THRESHOLDS and isinstance(value, int):
            rules[name] = lambda count: sum(layer < count for layer in kept)
        elif isinstance(value, (list, tuple)) and len(value) == num_layers:
            rules[name] = lambda values: [values[layer] for layer in kept]
        elif name in _PERIODS and isinstance(value, int):
            _check_period(config, name, value, kept)
        if name in rules:
            changes[name] = rules[name](value)
    return changes


def _check_period(config: Any, name: str, period: int, kept: list[int]) -> None:
    listed = getattr(config, _PERIODS[name] or "", None)
    if period <= 1 or isinstance(listed, (list, tuple)):
        return
    if any(new % period != layer % period for new, layer in enumerate(kept)):
        raise UnsupportedModelError(
            f"{type(config).__name__} repeats its layers with {name}={period}, which the kept layers no longer do; "
            f"drop whole periods of {period} consecutive layers"
        )


def _check_round_trip(config: Any, changes: dict[str, Any]) -> None:
    """What is written and read again must still say the same of each layer."""
    again = type(config).from_dict(config.to_dict())
    for name, value in {**changes, "num_hidden_layers": config.num_hidden_layers}.items():
        if getattr(again, name) != value:
            raise UnsupportedModelError(
                f"{type(config).__name__} does not keep {name}={value!r} when it is saved and read again; "
                "this family cannot be cut"
            )
