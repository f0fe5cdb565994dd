"""Calibration windows for the tiny model, and a look at everything a method could have changed in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from secateur.data import TokenBatches
from secateur.decoder import Decoder


@pytest.fixture
def decoder(tiny_model: Any) -> Decoder:
    return Decoder(tiny_model)


@pytest.fixture(scope="session")
def windows() -> TokenBatches:
    """Five windows of 24 tokens in batches of two, so that the last batch is smaller."""
    input_ids = torch.randint(3, 120, (5, 24), generator=torch.Generator().manual_seed(7))
    return TokenBatches(input_ids, 2, "made up")


def state_of(model: torch.nn.Module) -> dict[str, Any]:
    """Weights as bytes, what is trainable, modes, hooks and replaced forwards, by name."""
    state: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        state[name] = (parameter.detach().numpy().tobytes(), parameter.requires_grad, parameter.grad)
    for name, module in model.named_modules():
        hooks = [len(getattr(module, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
        state[f"{name}."] = (module.training, hooks, "forward" in vars(module))
    return state


@pytest.fixture
def snapshot() -> Any:
    return state_of
