"""Running a model without changing it: modes, gradients and devices as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from secateur.decoder import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["inference", "input_device"]


@contextmanager
def inference(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode and no gradients; each module's mode is given back, also on error."""
    with evaluating(model), torch.inference_mode():
        yield


def input_device(model: PreTrainedModel) -> torch.device:
    """Where the model wants its token ids: beside its input embedding."""
    device: torch.device = model.get_input_embeddings().weight.device
    return torch.device("cpu") if device.type == "meta" else device  # offloaded weights: accelerate moves the input
