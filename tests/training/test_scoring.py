"""Scoring the layers: against a Trainer of one's own, and the model as it was afterwards."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_rows import made_up_rows
from torch import Tensor
from transformers import Trainer, TrainingArguments

from secateur.decoder import Decoder
from secateur.errors import RequestError
from secateur.training import supervised
from secateur.training.igia import IGIACallback
from secateur.training.lora import attach_lora
from secateur.training.rows import Rows
from secateur.training.scoring import Scoring, score_layers


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gradients": "both"}, "gradients is one of lora, full, not 'both'"),
        ({"scoring_steps": 2}, "scoring_steps is a count of 3 or more, or a share between 0 and 1, not 2"),
        ({"scoring_steps": 1, "scoring_warmup": 0.0}, "scoring_steps is a count of 2 or more, or a share"),
        ({"scoring_steps": 1.0}, "a share between 0 and 1, not 1"),
        ({"scoring_steps": 0.0}, "a share between 0 and 1, not 0"),
        ({"scoring_rank": 0}, "scoring_rank must be above 0, not 0"),
        ({"scoring_alpha": 0}, "scoring_alpha must be above 0, not 0"),
        ({"scoring_rate": -1e-4}, "scoring_rate must be above 0, not -0.0001"),
        ({"scoring_batch": 0}, "scoring_batch must be above 0, not 0"),
        ({"scoring_warmup": 2.0}, "scoring_warmup is a share, not 2"),
        ({"scoring_weight_decay": -1.0}, "scoring_weight_decay must be 0 or more, not -1"),
    ],
)
def test_setting_of_the_scoring_that_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Scoring(**wrong)


@pytest.mark.parametrize(
    ("steps", "total", "expected"),
    [(None, 100, 10), (None, 5000, 50), (7, 3, 7), (0.1, 105, 11), (0.01, 20, 3)],
)
def test_number_of_scoring_steps_is_a_count_or_a_share_rounded_up(
    steps: float | None, total: int, expected: int
) -> None:
    assert Scoring(scoring_steps=steps).num_scoring_steps(total) == expected


def everything(model: Any) -> dict[str, Any]:
    """Weights as bytes, gradients, what is trainable, modes, hooks, configuration, and all random generators."""
    found: dict[str, Any] = {
        name: (
            weight.detach().numpy().tobytes(),
            weight.requires_grad,
            None if weight.grad is None else weight.grad.tolist(),
        )
        for name, weight in model.named_parameters()
    }
    found |= {
        f"{name}.": (module.training, len(module._forward_hooks), "forward" in vars(module))
        for name, module in model.named_modules()
    }
    return found | {
        "config": model.config.to_dict(),
        "random": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),
    }


@pytest.fixture
def _generators() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])


def unusual(model: Any) -> Any:
    """A model in a state that no training leaves it in."""
    model.train()
    model.model.layers[1].eval()
    model.model.layers[2].requires_grad_(False)
    model.model.layers[3].mlp.up_proj.weight.grad = torch.ones(64, 32)
    return model


@pytest.mark.usefixtures("_generators")
@pytest.mark.parametrize("gradients", ["lora", "full"])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_scoring_leaves_the_model_and_all_generators_as_they_were(
    tiny_model: Any, gradients: Any, precision: torch.dtype | None
) -> None:
    before = everything(unusual(tiny_model))
    settings = Scoring(gradients=gradients, scoring_steps=3, scoring_rate=1e-2)
    callback = score_layers(Decoder(tiny_model), made_up_rows(16), settings=settings, precision=precision)
    assert callback.accumulated().num_steps == 3
    assert everything(tiny_model) == before


@pytest.mark.usefixtures("_generators")
@pytest.mark.parametrize("gradients", ["lora", "full"])
def test_interrupted_scoring_leaves_the_model_as_it_was(
    tiny_model: Any, gradients: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    before = everything(unusual(tiny_model))
    monkeypatch.setattr(IGIACallback, "on_step_end", stop)
    with pytest.raises(KeyboardInterrupt):
        score_layers(Decoder(tiny_model), made_up_rows(16), settings=Scoring(gradients=gradients, scoring_rate=1e-2))
    assert everything(tiny_model) == before


def collated(rows: Rows) -> dict[str, Tensor]:
    """Padded on the right, one row after the other."""
    longest = max(len(row["input_ids"]) for row in rows)
    shape = len(rows), longest
    batch = {"input_ids": torch.zeros(shape), "labels": torch.full(shape, -100), "attention_mask": torch.zeros(shape)}
    for place, row in enumerate(rows):
        count = len(row["input_ids"])
        batch["input_ids"][place, :count] = torch.tensor(row["input_ids"])
        batch["labels"][place, :count] = torch.tensor(row["labels"])
        batch["attention_mask"][place, :count] = 1
    return {name: tensor.long() for name, tensor in batch.items()}


@pytest.mark.parametrize("gradients", ["lora", "full"])
def test_scores_equal_those_of_the_callback_in_a_trainer_of_ones_own(
    tiny_model: Any, tmp_path: Path, gradients: Any
) -> None:
    """The published set-up, written out: rank 8, alpha 32, rate 1e-4, warm-up 0.03, decay 0.1, batches of 4, clipped at 1."""
    rows, total, seed = made_up_rows(40), 50, 3
    twin = copy.deepcopy(tiny_model)
    settings = Scoring(gradients=gradients, scoring_steps=5)
    found = score_layers(Decoder(tiny_model), rows, settings=settings, total_steps=total, seed=seed)
    callback = IGIACallback(5, gradients=gradients, stop=True)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=total, per_device_train_batch_size=4, learning_rate=1e-4, warmup_steps=2,
        weight_decay=0.1, max_grad_norm=1.0, seed=seed, data_seed=seed, report_to="none", use_cpu=True, save_strategy="no",
        logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, remove_unused_columns=False,
    )  # fmt: skip
    model = attach_lora(Decoder(twin), rank=8, alpha=32, seed=seed) if gradients == "lora" else twin
    Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collated, callbacks=[callback]).train()
    assert list(found.layer_scores()) == pytest.approx(list(callback.layer_scores()), rel=1e-5)
    one, other = found.accumulated(), callback.accumulated()
    assert torch.allclose(one.matrix(2, "mlp.up_proj.weight"), other.matrix(2, "mlp.up_proj.weight"), rtol=1e-3)


def test_scoring_without_a_total_is_one_pass_over_the_rows(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original: Callable[..., Any] = supervised._arguments

    def watched(settings: Any, *rest: Any) -> Any:
        seen.append(settings.max_steps)
        return original(settings, *rest)

    monkeypatch.setattr(supervised, "_arguments", watched)
    score_layers(Decoder(tiny_model), made_up_rows(41), settings=Scoring(scoring_steps=3))
    score_layers(Decoder(tiny_model), made_up_rows(41), settings=Scoring(scoring_steps=13))  # more than there are
    assert seen == [11, 13]
