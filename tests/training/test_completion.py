"""The loss of completions against the model's own, over all positions: the same loss and gradients, fewer logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from secateur.decoder import Decoder
from secateur.training.completion import IGNORED, LearntPositions
from secateur.training.lora import attach_lora
from tiny_families import FAMILIES, build

ROWS = ((9, 12), (4, 7), (10, 11))  # of 12 tokens, the first and one after the last that is learnt


def batch() -> dict[str, torch.Tensor]:
    """Three rows padded on the right, each with its completion elsewhere."""
    ids = torch.randint(3, 60, (3, 12), generator=torch.Generator().manual_seed(1))
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for row, (first, end) in enumerate(ROWS):
        labels[row, first:end] = ids[row, first:end]
        mask[row, :end] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def loss_and_gradients(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor], tuple[int, ...]]:
    model.zero_grad()
    output = model(**inputs, use_cache=False)
    output.loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    return output.loss.detach(), gradients, tuple(output.logits.shape)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_loss_and_gradients_equal_those_over_all_positions(family: str) -> None:
    model = build(family)
    learnt = LearntPositions()
    inputs = learnt(model, batch())
    loss, gradients, shape = loss_and_gradients(model, inputs)
    expected, of_all, _ = loss_and_gradients(model, batch())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)  # transformers takes it in float32
    for ours, theirs in zip(gradients, of_all, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-7)
    narrow = "logits_to_keep" in inputs
    assert shape[1] == (6 if narrow else 12)  # tokens 4..6 and 9..11 are learnt, each from the position before it


def test_most_families_make_fewer_logits() -> None:
    narrow = [family for family in FAMILIES if "logits_to_keep" in LearntPositions()(build(family), batch())]
    assert {"llama", "qwen2", "mistral", "phi3", "gemma2", "qwen2_moe"} <= set(narrow)


def test_adapted_model_is_narrowed_too(tiny_model: Any) -> None:
    model = attach_lora(Decoder(tiny_model), rank=2, alpha=4)
    inputs = LearntPositions()(model, batch())
    assert inputs["logits_to_keep"].tolist() == [3, 4, 5, 8, 9, 10]
    assert model(**inputs).loss.item() == pytest.approx(model(**batch()).loss.item(), rel=1e-5)


def test_model_whose_loss_ignores_what_is_kept_gets_the_whole_batch(tiny_model: Any) -> None:
    """As code from before `shift_labels` does: it shifts whatever labels it is given."""
    forward = tiny_model.forward

    def old(input_ids: Any = None, labels: Any = None, logits_to_keep: Any = 0, **others: Any) -> Any:
        others.pop("shift_labels", None)
        return forward(input_ids=input_ids, labels=labels, logits_to_keep=logits_to_keep, **others)

    tiny_model.forward = old
    assert LearntPositions()(tiny_model, batch()).keys() == batch().keys()


def test_trial_leaves_mode_and_generator(tiny_model: Any) -> None:
    tiny_model.train()
    state = torch.get_rng_state()
    LearntPositions()(tiny_model, batch())
    assert tiny_model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("what", ["text", "nothing learnt", "not usable"])
def test_batch_stays_whole_where_nothing_is_saved(tiny_model: Any, what: str) -> None:
    inputs = batch()
    if what == "text":
        inputs["labels"] = inputs["input_ids"].clone()
    if what == "nothing learnt":
        inputs["labels"] = torch.full_like(inputs["labels"], IGNORED)
    assert LearntPositions(usable=what != "not usable")(tiny_model, inputs) is inputs
