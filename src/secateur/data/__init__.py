"""Names, hub ids and local files in; equal windows of tokens to calibrate on and to score, or examples of a task, out.

`loader` is the one place that calls `datasets`. `text` turns a data SPEC into documents, `held_out` keeps the text that is
scored apart from the text that is calibrated on, and `tokens` cuts a stream of tokens into windows. `tables` turns a SPEC
into rows, `formats` reads them as prompts and completions (with `choices`, a user's own `template`, and `chat` for
messages), and `examples` is what comes of it.
"""

from __future__ import annotations

from secateur.data.examples import Example, Examples, load_examples
from secateur.data.text import load_documents
from secateur.data.tokens import TokenBatches, calibration_and_held_out, evaluation_windows, tokenize

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
