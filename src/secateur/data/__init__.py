"""Text as equal windows of tokens: names, hub ids and local files in; calibration and held-out batches out.

`text` turns a data SPEC into documents, `loader` is the one place that calls `datasets`, `held_out` keeps the text that
is scored apart from the text that is calibrated on, and `tokens` cuts a stream of tokens into windows.
"""

from __future__ import annotations

from secateur.data.text import load_documents
from secateur.data.tokens import TokenBatches, calibration_and_held_out, evaluation_windows, tokenize

__all__ = [
    "TokenBatches",
    "calibration_and_held_out",
    "evaluation_windows",
    "load_documents",
    "tokenize",
]
