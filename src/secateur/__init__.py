"""secateur makes Hugging Face language models shallower: whole decoder layers go, what they knew stays.

The names below are the public interface; each is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.data import TokenBatches
    from secateur.decoder import Decoder
    from secateur.errors import (
        DataError,
        ModelError,
        OutputError,
        PlanError,
        ProofError,
        RequestError,
        RunError,
        SecateurError,
        TrainingDivergedError,
        UnsupportedModelError,
        WriteError,
    )
    from secateur.evaluation.perplexity import perplexity
    from secateur.methods import METHODS
    from secateur.pipeline import Target, TextSettings, elder, prune, score
    from secateur.plan import LayerScores, PruningPlan
    from secateur.surgery.live import remove_layers_

_HOME = {
    "DataError": "errors",
    "Decoder": "decoder",
    "LayerScores": "plan",
    "METHODS": "methods",
    "ModelError": "errors",
    "OutputError": "errors",
    "PlanError": "errors",
    "ProofError": "errors",
    "PruningPlan": "plan",
    "RequestError": "errors",
    "RunError": "errors",
    "SecateurError": "errors",
    "Target": "pipeline",
    "TextSettings": "pipeline",
    "TokenBatches": "data",
    "TrainingDivergedError": "errors",
    "UnsupportedModelError": "errors",
    "WriteError": "errors",
    "elder": "pipeline",
    "perplexity": "evaluation.perplexity",
    "prune": "pipeline",
    "remove_layers_": "surgery.live",
    "score": "pipeline",
}

__all__ = [
    "METHODS",
    "DataError",
    "Decoder",
    "LayerScores",
    "ModelError",
    "OutputError",
    "PlanError",
    "ProofError",
    "PruningPlan",
    "RequestError",
    "RunError",
    "SecateurError",
    "Target",
    "TextSettings",
    "TokenBatches",
    "TrainingDivergedError",
    "UnsupportedModelError",
    "WriteError",
    "elder",
    "perplexity",
    "prune",
    "remove_layers_",
    "score",
]

__version__ = version("secateur")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"secateur.{_HOME[name]}"), name)
    raise AttributeError(f"module 'secateur' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
