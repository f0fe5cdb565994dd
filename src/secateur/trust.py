"""What a user allows beyond the safe: weights in pickled files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["is_pickle_allowed", "pickle_allowed"]

_pickle: ContextVar[bool] = ContextVar("pickle", default=False)


@contextmanager
def pickle_allowed(allowed: bool = True) -> Iterator[None]:
    """Models whose weights are in `.bin` files alone are read in here; torch reads tensors from them and refuses code."""
    before = _pickle.set(allowed)
    try:
        yield
    finally:
        _pickle.reset(before)


def is_pickle_allowed() -> bool:
    """Whether `pickle_allowed` is around here."""
    return _pickle.get()
