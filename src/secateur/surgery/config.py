"""The configuration of a model with fewer layers: every field that speaks of layers, one by one or as a rule.

Lists as long as the model has layers are found, not named. Named are only the fields whose numbers *are* layers
(indices), count them (thresholds), or repeat (periods). Whether the result says all of the kept layers is for
`skeleton` to check.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from secateur.depth import count_field
from secateur.errors import UnsupportedModelError

__all__ = ["remove_layers_from_config_"]

_NOT_PER_LAYER = {
    "architectures", "axial_pos_embds_dim", "axial_pos_shape", "bad_words_ids", "encoder_hash_byte_group_size",
    "eos_token_id", "keys_to_ignore_at_inference", "languages", "mlp_multipliers", "pad_token_id", "ssm_multipliers",
    "suppress_tokens", "time_step_limit",
}  # fmt: skip
"""Lists of something else, which may happen to be as long."""

_INDICES = {
    "attn_layer_indices": 0, "cross_attention_layers": 0, "full_attention_layers": 0, "full_attn_idxs": 0,
    "global_attn_layers": 0, "hybrid_layer_ids": 0, "mlp_only_layers": 0, "moe_layer_indices": 0, "moe_layers": 0,
    "ple_layer_ids": 1,
}  # fmt: skip
"""Fields that list layer numbers → the number of the first layer."""

_FIRST = {"first_k_dense_replace", "max_window_layers", "moe_layer_start_index", "num_dense_layers"}
"""Fields that say "the first k layers"."""

_LAST = {"num_kv_shared_layers"}
"""Fields that say "the last k layers"."""

_UP_TO = {"moe_layer_end_index"}
"""Fields that say "up to and with layer k"."""

_PATTERNS = {"block_types"}
"""Fields that list layers to be repeated until there are enough."""

_LISTED = {
    "full_attention_interval": "layer_types",
    "global_attn_every_n_layers": "layer_types",
    "interleave_moe_layer_step": "moe_layers",
    "no_rope_layer_interval": "no_rope_layers",
    "sliding_window_pattern": "layer_types",
}
"""Fields that say "every p-th layer" → the explicit list that overrules them, if the configuration has one."""

_EXEMPT = {"decoder_sparse_step": "mlp_only_layers"}
"""Fields that say "every p-th layer, the last of each p" → the list of layers that are not meant, even if it is their turn."""

_PERIODS = {
    "attn_layer_period": "attn_layer_offset",
    "expert_layer_period": "expert_layer_offset",
    "moe_layer_freq": None,
    "moe_layer_interval": None,
    **dict.fromkeys([*_EXEMPT, *_LISTED]),
}
"""Fields that say "every p-th layer" → the field that says which one is the first, if there is one."""

_OVER_ROOT_OF_DEPTH = {"scale_depth"}
"""Scales that the model divides by the root of the number of layers; each layer's must stay what it was."""

_COPIES = {"num_blocks"}
"""Fields that repeat the number of layers."""


def remove_layers_from_config_(config: Any, dropped: Sequence[int]) -> None:
    """Make the (text) configuration describe the model without `dropped`, in place.

    Args:
        config: a `transformers` configuration of a model with layers.
        dropped: layers of the dense model, each once.

    Raises:
        UnsupportedModelError: if a field states a period that the kept layers no longer have, and the configuration has no
            list that could say so. Nothing is changed then.
    """
    count = count_field(config)
    num_layers = getattr(config, count)
    gone = set(dropped)
    kept = [layer for layer in range(num_layers) if layer not in gone]
    changes = _changes(config, num_layers, kept)
    changes |= {name: len(kept) for name in _COPIES if getattr(config, name, None) == num_layers}
    overrides = _overrides(config, kept)
    setattr(config, count, len(kept))
    for name, value in changes.items():
        setattr(config, name, value)
    if overrides is not None:
        config.per_layer_config = overrides
    _check_round_trip(config, changes | {count: len(kept)})


def _changes(config: Any, num_layers: int, kept: list[int]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name, value in vars(config).items():
        if name.startswith("_") or isinstance(value, bool):
            continue
        new: Any = None
        if isinstance(value, (list, tuple)):
            new = _listed(name, value, num_layers, kept)
        elif isinstance(value, (int, float)):
            new = _counted(name, value, num_layers, kept)
        if new is not None:
            changes[name] = new
    for name in _PERIODS.keys() & vars(config).keys():
        if isinstance(getattr(config, name), int):
            changes |= _period(config, name, kept)
    return changes


def _listed(name: str, values: Sequence[Any], num_layers: int, kept: list[int]) -> list[Any] | None:
    """What a list says of the kept layers; None if it speaks of something else."""
    if name in _INDICES:
        first, listed = _INDICES[name], set(values)
        return [new + first for new, layer in enumerate(kept) if layer + first in listed]
    if name in _PATTERNS and values:
        return [values[layer % len(values)] for layer in kept]
    if len(values) == num_layers and name not in _NOT_PER_LAYER:
        return [values[layer] for layer in kept]
    return None


def _counted(name: str, value: float, num_layers: int, kept: list[int]) -> float | None:
    """What a number becomes that counts layers, or depends on their count; None if it does not."""
    if name in _FIRST:
        return sum(layer < value for layer in kept)
    if name in _LAST:
        return sum(layer >= num_layers - value for layer in kept)
    if name in _UP_TO and value >= 0:
        return sum(layer <= value for layer in kept) - 1
    if name in _OVER_ROOT_OF_DEPTH:
        return value * math.sqrt(len(kept) / num_layers)
    return None


def _period(config: Any, name: str, kept: list[int]) -> dict[str, Any]:
    """The period, and where it starts, that the kept layers have, or the list of its exceptions that says the same.

    Nothing to change if a list overrules it.
    """
    period, offset_name = getattr(config, name), _PERIODS[name]
    if period <= 1 or isinstance(getattr(config, _LISTED.get(name, ""), None), (list, tuple)):
        return {}
    if offset_name is None:
        if all(new % period == layer % period for new, layer in enumerate(kept)):
            return {}
        exempt = getattr(config, _EXEMPT.get(name, ""), None)
        if isinstance(exempt, (list, tuple)):
            others = [new for new, layer in enumerate(kept) if (layer + 1) % period or layer in exempt]
            return {name: 1, _EXEMPT[name]: others}
        remedy = f"drop whole periods of {period} consecutive layers"
    else:
        wanted = [layer % period == getattr(config, offset_name) for layer in kept]
        for new in [period, *range(1, len(kept) + 2)]:
            for offset in range(new):
                if [layer % new == offset for layer in range(len(kept))] == wanted:
                    return {name: new, offset_name: offset}
        remedy = f"drop whole periods of {period} consecutive layers, or others that leave a period"
    raise UnsupportedModelError(
        f"{type(config).__name__} repeats its layers with {name}={period}, which the kept layers no longer do; {remedy}"
    )


def _overrides(config: Any, kept: list[int]) -> dict[int, Any] | None:
    """The settings of single layers, by their new numbers; None if all have the same."""
    if not getattr(config, "is_heterogeneous", False):
        return None
    written = {int(layer): values for layer, values in config.to_dict()["per_layer_config"].items()}
    return {new: written[layer] for new, layer in enumerate(kept) if layer in written}


def _check_round_trip(config: Any, changes: dict[str, Any]) -> None:
    """What is written and read again must still say the same of each layer."""
    try:
        again = type(config).from_dict(config.to_dict())
    except Exception as error:  # of any type: each family checks its own fields
        raise UnsupportedModelError(
            f"{type(config).__name__} refuses to be read again without these layers ({' '.join(str(error).split())[:300]}); "
            "drop other layers"
        ) from error
    for name, value in changes.items():
        read = getattr(again, name)
        if read != value and not (isinstance(value, list) and list(read) == value):
            raise UnsupportedModelError(
                f"{type(config).__name__} does not keep {name}={value!r} when it is saved and read again, but makes it "
                f"{read!r}; drop other layers"
            )
