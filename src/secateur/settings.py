"""What settings may be: words that those of several rooms choose among, and checks that hold named fields to one rule.

A check says in one line which value breaks it; a field that is None is left alone: it says that something else decides. Settings
are what the command line explains, so none of this imports torch.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args, get_type_hints

from secateur.errors import RequestError

__all__ = [
    "AbsorbForm",
    "GateKind",
    "Gradients",
    "Merge",
    "Reduction",
    "check_above_zero",
    "check_at_least",
    "check_choices",
    "check_divides",
    "check_keep",
    "check_shares",
]

AbsorbForm = Literal["map", "projection"]
"""What is solved for when layers are absorbed: see `secateur.surgery.absorb`."""

GateKind = Literal["residual", "output"]
"""What the weight of a layer multiplies: see `secateur.decoder`."""

Gradients = Literal["lora", "full"]
"""Whose gradients are read, the adapters' or those of all weights: see `secateur.training.igia`."""

Merge = Literal["none", "sign", "sign-igia"]
"""How pruned layers are merged into kept ones: see `secateur.surgery.merge`."""

Reduction = Literal["squares", "norm"]
"""What is summed of the simulated gradients: see `secateur.training.igia`."""


def check_choices(settings: Any, *names: str) -> None:
    """Hold fields to the choices that their types name.

    Raises:
        RequestError: if one has another value.
    """
    for name in names:
        hint, value = get_type_hints(type(settings))[name], getattr(settings, name)
        choices = [choice for part in (hint, *get_args(hint)) for choice in get_args(part) if isinstance(choice, str)]
        if value not in choices and not (value is None and type(None) in get_args(hint)):
            raise RequestError(f"{name} is one of {', '.join(choices)}, not '{value}'")


def check_above_zero(settings: Any, *names: str) -> None:
    """Hold fields to finite numbers above 0.

    Raises:
        RequestError: if one is another.
    """
    for name, value in _given(settings, names):
        if not 0 < value < math.inf:
            raise RequestError(f"{name} must be above 0, not {value:g}")


def check_at_least(settings: Any, least: int, *names: str) -> None:
    """Hold fields to finite numbers of `least` or more.

    Raises:
        RequestError: if one is another.
    """
    for name, value in _given(settings, names):
        if not least <= value < math.inf:
            raise RequestError(f"{name} must be {least} or more, not {value:g}")


def check_shares(settings: Any, *names: str) -> None:
    """Hold fields to shares, 0 and 1 among them.

    Raises:
        RequestError: if one is another number.
    """
    for name, value in _given(settings, names):
        if not 0 <= value <= 1:
            raise RequestError(f"{name} is a share, not {value:g}; choose 0..1")


def check_divides(settings: Any, part: str, whole: str) -> None:
    """Hold the field `part` to a divisor of the field `whole`.

    Raises:
        RequestError: if something would be left over.
    """
    for name, value in _given(settings, [part]):
        if getattr(settings, whole) % value:
            raise RequestError(f"{name}={value} does not divide {whole}={getattr(settings, whole)}")


def _given(settings: Any, names: Any) -> list[tuple[str, Any]]:
    return [(name, getattr(settings, name)) for name in names if getattr(settings, name) is not None]


def check_keep(keep: float) -> None:
    """Refuse what is no share of a weight's entries.

    Raises:
        RequestError: if it is not in (0, 1].
    """
    if not 0 < keep <= 1:
        raise RequestError(
            f"keep is the share of a weight's entries that is merged, not {keep:g}; choose above 0, up to 1"
        )
