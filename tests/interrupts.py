"""Interrupts at a chosen moment."""

from __future__ import annotations

from typing import Any

import pytest


def stop(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int = 1, after: bool = True) -> None:
    """Ctrl-C in the given call of a function, when it has done its work or before."""
    original, calls = getattr(owner, name), [0]

    def run_and_stop(*args: Any, **rest: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and not after:
            raise KeyboardInterrupt
        result = original(*args, **rest)
        if calls[0] == call:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, run_and_stop)
