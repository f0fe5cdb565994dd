"""Names, hub ids and local files in; equal windows of tokens to calibrate on and to score, or examples of a task, out.

`loader` is the one place that calls `datasets`. `text` turns a data SPEC into documents, `held_out` keeps the text that is
scored apart from the text that is calibrated on, and `tokens` cuts a stream of tokens into windows. `tables` turns a SPEC
into rows, `formats` reads them as prompts and completions (with `choices`, a user's own `template`, and `chat` for
messages), and `examples` is what comes of it.

Each name below is imported when it is first used: settings that only name data need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.data.examples import Example, Examples, load_examples
    from secateur.data.text import load_documents
    from secateur.data.tokens import TokenBatches, calibration_and_held_out, evaluation_windows, tokenize

_HOME = {
    "Example": "examples",
    "Examples": "examples",
    "TokenBatches": "tokens",
    "calibration_and_held_out": "tokens",
    "evaluation_windows": "tokens",
    "load_documents": "text",
    "load_examples": "examples",
    "tokenize": "tokens",
}

__all__ = [
    "Example",
    "Examples",
    "TokenBatches",
    "calibration_and_held_out",
    "evaluation_windows",
    "load_documents",
    "load_examples",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"secateur.data.{_HOME[name]}"), name)
    raise AttributeError(f"module 'secateur.data' has no attribute '{name}'")
