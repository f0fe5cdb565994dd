"""What can go wrong, as one tree.

```
SecateurError                 anything this library raises on purpose; the message names the value and the remedy
├── RequestError              the request was wrong: nothing was changed (exit code 2)
│   ├── PlanError             a plan that cannot be carried out: no such layer, none left, all dropped
│   ├── DataError             text that is missing, empty, too short or unreadable
│   ├── ModelError            a model that cannot be loaded
│   │   └── UnsupportedModelError   a model whose decoder layers cannot be found or cut safely
│   └── OutputError           a place that cannot be written to
└── RunError                  it failed on the way (exit code 1)
    ├── TrainingDivergedError the loss stopped being finite; the last good weights are kept
    ├── ProofError            a checkpoint is not the pruned model; of one just written nothing is left behind
    └── WriteError            writing failed half-way (a full disk): nothing is left behind
```
"""

from __future__ import annotations

__all__ = [
    "DataError",
    "ModelError",
    "OutputError",
    "PlanError",
    "ProofError",
    "RequestError",
    "RunError",
    "SecateurError",
    "TrainingDivergedError",
    "UnsupportedModelError",
    "WriteError",
]


class SecateurError(Exception):
    """Base of every error raised on purpose; `str(error)` is one line: what, and what to do."""


class RequestError(SecateurError, ValueError):
    """The request was wrong; nothing was changed."""


class PlanError(RequestError):
    """A plan that cannot be carried out on this model."""


class DataError(RequestError):
    """Text that is missing, empty, too short or unreadable."""


class ModelError(RequestError):
    """A model that cannot be loaded."""


class UnsupportedModelError(ModelError):
    """A model whose decoder layers cannot be found, or cannot be cut safely."""


class OutputError(RequestError):
    """A place that cannot be written to."""


class RunError(SecateurError, RuntimeError):
    """The request was right, but it failed on the way."""


class TrainingDivergedError(RunError):
    """The loss stopped being finite; the model holds the last good weights."""


class ProofError(RunError):
    """A checkpoint is not the pruned model; one that was just written is not left behind."""


class WriteError(RunError):
    """Writing failed half-way; nothing is left behind."""
