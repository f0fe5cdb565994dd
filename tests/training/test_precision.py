"""16-bit weights in float32 meanwhile: dtypes, ties and values before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.loading import load_model
from secateur.surgery.live import remove_layers_
from secateur.training.precision import in_float32, of_model, round_back_, to_float32_


def test_float32_and_back_keeps_ties_and_buffers(tiny_checkpoint: Path) -> None:
    model = load_model(tiny_checkpoint, dtype="bfloat16")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stored = to_float32_(model)
    assert all(weight.dtype is torch.float32 for weight in model.parameters())
    round_back_(stored)
    for name, value in model.state_dict().items():
        assert value.dtype is before[name].dtype
        assert torch.equal(value, before[name])


def test_layers_that_were_cut_off_are_not_held(tiny_model: Any) -> None:
    stored = to_float32_(tiny_model.to(torch.bfloat16))
    remove_layers_(tiny_model, [1, 3])
    kept = of_model(tiny_model, stored)
    assert len(kept) == len(list(tiny_model.parameters())) < len(stored)
    round_back_(kept)
    assert {weight.dtype for weight in tiny_model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("wanted", "meanwhile"), [(True, torch.float32), (False, torch.bfloat16)])
def test_weights_are_rounded_back_after_an_error_too(tiny_model: Any, wanted: bool, meanwhile: torch.dtype) -> None:
    tiny_model.to(torch.bfloat16)

    def stopped() -> None:
        with in_float32(tiny_model, wanted=wanted):
            assert {weight.dtype for weight in tiny_model.parameters()} == {meanwhile}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert {weight.dtype for weight in tiny_model.parameters()} == {torch.bfloat16}
