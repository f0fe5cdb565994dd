"""16-bit weights in float32 meanwhile: dtypes, ties and values before and after. And passes in 16 bits, of every training."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_rows import made_up_rows
from torch import nn

from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.loading import load_model
from secateur.surgery.live import remove_layers_
from secateur.training.precision import in_float32, of_model, round_back_, to_float32_
from secateur.training.removal import RemovalTraining, train_towards_removal_
from secateur.training.supervised import FineTuning, fine_tune_
from tiny_models import tiny_llama


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


def removal(
    decoder: Decoder, precision: torch.dtype | None, _: Path | None = None, teacher: Any = None, **settings: Any
) -> None:
    windows = TokenBatches(torch.randint(3, 120, (2, 16), generator=torch.Generator().manual_seed(7)), 2, "made up")
    asked = RemovalTraining(train="full", steps=1, **settings)
    train_towards_removal_(decoder, [1], windows, settings=asked, teacher=teacher, precision=precision)


def fine_tuning(decoder: Decoder, precision: torch.dtype | None, work: Path) -> None:
    settings = FineTuning(train="full", max_steps=1, batch_size=2)
    fine_tune_(decoder, made_up_rows(2), settings=settings, work=work, precision=precision, save=False)


def output_dtypes(model: nn.Module) -> set[torch.dtype]:
    """Of a projection, in every pass from here on."""
    seen = set[torch.dtype]()
    projection = model.get_submodule("model.layers.0.mlp.up_proj")
    projection.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
    return seen


Training = Callable[[Decoder, torch.dtype | None, Path], None]


@pytest.mark.parametrize(("first", "second"), list(itertools.product((removal, fine_tuning), repeat=2)))
@pytest.mark.parametrize("precision", [torch.bfloat16, None])
def test_a_training_after_another_runs_in_the_precision_it_was_asked_for(
    tiny_model: Any, tmp_path: Path, first: Training, second: Training, precision: torch.dtype | None
) -> None:
    """accelerate leaves a model alone that it prepared before, and mixed precision with it."""
    other = torch.bfloat16 if precision is None else None
    decoder = Decoder(tiny_model)
    before = {module: set(vars(module)) for module in tiny_model.modules()}
    first(decoder, other, tmp_path / "first")
    seen = output_dtypes(tiny_model)
    second(decoder, precision, tmp_path / "second")
    assert seen == {precision or torch.float32}
    assert all(vars(module).keys() == had for module, had in before.items())


def test_a_model_of_a_training_of_ones_own_runs_in_the_precision_asked_for_and_keeps_its_mark(
    tiny_model: Any, tmp_path: Path
) -> None:
    decoder = Decoder(tiny_model)
    tiny_model._is_accelerate_prepared = True
    tiny_model.forward = forward = tiny_model.forward
    seen = output_dtypes(tiny_model)
    removal(decoder, torch.bfloat16, tmp_path)
    assert seen == {torch.bfloat16}
    assert tiny_model._is_accelerate_prepared
    assert tiny_model.forward is forward


@pytest.mark.parametrize("precision", [torch.bfloat16, None])
def test_a_teacher_runs_in_the_precision_of_the_model(tiny_model: Any, precision: torch.dtype | None) -> None:
    decoder, teacher = Decoder(tiny_model), tiny_llama()
    seen = output_dtypes(teacher)
    removal(decoder, precision, teacher=teacher, distil=0.5)
    assert seen == {precision or torch.float32}
