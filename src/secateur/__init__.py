"""secateur makes Hugging Face language models shallower: whole decoder layers go, what they knew stays.

The names below are the public interface; each is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.assessment import evaluate
    from secateur.data import TokenBatches
    from secateur.data.examples import Examples, load_examples
    from secateur.data.task import TaskSettings
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
    from secateur.evaluation.harness import harness_scores
    from secateur.evaluation.perplexity import perplexity
    from secateur.in_memory import elder, gradpruner
    from secateur.methods import METHODS
    from secateur.pipeline import prune, score
    from secateur.plan import LayerScores, PruningPlan
    from secateur.request import Target, TextSettings
    from secateur.surgery.adapters import carry_adapter
    from secateur.surgery.files import cut_checkpoint
    from secateur.surgery.live import remove_layers_
    from secateur.surgery.merge import merge_layers_
    from secateur.training.igia import IGIA, IGIACallback
    from secateur.training.recovery import Recovery, recover_
    from secateur.training.settings import FineTuning
    from secateur.tuning import tune

_HOME = {
    "DataError": "errors",
    "Decoder": "decoder",
    "Examples": "data.examples",
    "FineTuning": "training.settings",
    "IGIA": "training.igia",
    "IGIACallback": "training.igia",
    "LayerScores": "plan",
    "METHODS": "methods",
    "ModelError": "errors",
    "OutputError": "errors",
    "PlanError": "errors",
    "ProofError": "errors",
    "PruningPlan": "plan",
    "Recovery": "training.recovery",
    "RequestError": "errors",
    "RunError": "errors",
    "SecateurError": "errors",
    "Target": "request",
    "TextSettings": "request",
    "TokenBatches": "data",
    "TrainingDivergedError": "errors",
    "UnsupportedModelError": "errors",
    "WriteError": "errors",
    "TaskSettings": "data.task",
    "carry_adapter": "surgery.adapters",
    "cut_checkpoint": "surgery.files",
    "elder": "in_memory",
    "evaluate": "assessment",
    "gradpruner": "in_memory",
    "harness_scores": "evaluation.harness",
    "load_examples": "data.examples",
    "merge_layers_": "surgery.merge",
    "perplexity": "evaluation.perplexity",
    "prune": "pipeline",
    "recover_": "training.recovery",
    "remove_layers_": "surgery.live",
    "score": "pipeline",
    "tune": "tuning",
}

__all__ = [
    "IGIA",
    "METHODS",
    "DataError",
    "Decoder",
    "Examples",
    "FineTuning",
    "IGIACallback",
    "LayerScores",
    "ModelError",
    "OutputError",
    "PlanError",
    "ProofError",
    "PruningPlan",
    "Recovery",
    "RequestError",
    "RunError",
    "SecateurError",
    "Target",
    "TaskSettings",
    "TextSettings",
    "TokenBatches",
    "TrainingDivergedError",
    "UnsupportedModelError",
    "WriteError",
    "carry_adapter",
    "cut_checkpoint",
    "elder",
    "evaluate",
    "gradpruner",
    "harness_scores",
    "load_examples",
    "merge_layers_",
    "perplexity",
    "prune",
    "recover_",
    "remove_layers_",
    "score",
    "tune",
]

__version__ = version("secateur")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"secateur.{_HOME[name]}"), name)
    raise AttributeError(f"module 'secateur' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
