"""The tail by hand, and what its fine-tuning trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from secateur.data import TokenBatches
from secateur.decoder import Decoder, evaluating
from secateur.errors import RequestError
from secateur.methods.tail import Tail
from secateur.plan import PruningPlan

TUNE: dict[str, Any] = {"tune": True, "steps": 2, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("keep_last", "drop", "order"),
    [(0, 1, (5,)), (0, 3, (5, 4, 3)), (1, 3, (4, 3, 2)), (2, 4, (3, 2, 1, 0)), (2, 5, (4, 3, 2, 1, 0)), (9, 2, (1, 0))],
)
def test_the_deepest_layers_go_first_but_for_those_kept(
    decoder: Decoder, windows: TokenBatches, keep_last: int, drop: int, order: tuple[int, ...]
) -> None:
    plan = Tail(keep_last=keep_last).plan(decoder, windows, drop=drop)
    assert plan.order == order
    assert plan.scores is not None
    assert plan.scores.lowest(drop) == order


def test_without_tuning_nothing_is_prepared(decoder: Decoder, windows: TokenBatches, snapshot: Any) -> None:
    before = snapshot(decoder.model)
    method = Tail()
    assert not method.prepares
    assert method.prepare_(decoder, windows, PruningPlan(num_layers=6, order=(5, 4))) == {}
    assert method.final_gate() == 1
    assert method.cost(6, 2, windows).preparing is None
    assert snapshot(decoder.model) == before


def changed_by(model: Any, windows: TokenBatches, order: tuple[int, ...], **settings: Any) -> set[str]:
    """The names of the weights that the tuning changes."""
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    report = Tail(**{**TUNE, **settings}).prepare_(Decoder(model), windows, PruningPlan(num_layers=6, order=order))
    assert report["training"]["steps"] == 2
    return {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}


@pytest.mark.parametrize(
    ("order", "settings", "layers"),
    [((5, 4), {}, (1, 2, 3)), ((4, 3), {"partial_layers": 2}, (2, 5)), ((5, 4, 3, 2), {}, (0, 1))],
)
def test_tuning_changes_the_head_the_final_norm_and_the_last_layers_that_stay(
    tiny_model: Any, windows: TokenBatches, order: tuple[int, ...], settings: dict[str, Any], layers: tuple[int, ...]
) -> None:
    names = {name for name, _ in tiny_model.named_parameters() if any(f".layers.{layer}." in name for layer in layers)}
    assert changed_by(tiny_model, windows, order, **settings) == names | {"lm_head.weight", "model.norm.weight"}


def test_tied_head_is_trained_and_stays_tied(windows: TokenBatches) -> None:
    config = LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4,
        initializer_range=0.2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    changed = changed_by(model, windows, (5, 4), partial_layers=1)
    assert {name for name in changed if ".layers." not in name} == {"model.embed_tokens.weight", "model.norm.weight"}
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_tuned_model_is_the_same_just_before_and_just_after_the_cut(decoder: Decoder, windows: TokenBatches) -> None:
    method = Tail(**TUNE)
    plan = method.plan(decoder, windows, drop=2)
    method.prepare_(decoder, windows, plan)
    assert method.prepares
    gate = torch.full((6,), method.final_gate())
    with evaluating(decoder.model), torch.no_grad():
        with decoder.gate(gate, layers=plan.dropped):
            before = decoder.logits(windows.input_ids)
        with decoder.bypass(plan.dropped):
            after = decoder.logits(windows.input_ids)
    assert torch.equal(before, after)


def test_layers_that_go_are_never_called_in_training(decoder: Decoder, windows: TokenBatches) -> None:
    called: list[int] = []
    for layer, module in enumerate(decoder.layers):
        module.mlp.register_forward_pre_hook(
            lambda mlp, _, layer=layer: called.append(layer) if mlp.training else None  # not when the layers are found
        )
    report = Tail(**TUNE).prepare_(decoder, windows, PruningPlan(num_layers=6, order=(5, 4)))
    assert set(called) == {0, 1, 2, 3}
    assert report["training"]["final_gate"] == 0


def test_no_steps_train_nothing(decoder: Decoder, windows: TokenBatches) -> None:
    method = Tail(tune=True, steps=0)
    assert method.prepare_(decoder, windows, PruningPlan(num_layers=6, order=(5,))) == {}
    assert method.cost(6, 1, windows).training_tokens == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keep_last": -1}, "keep_last must be 0 or more, not -1"),
        ({"partial_layers": 0}, "partial_layers must be above 0, not 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, not 0"),
        ({"steps": -1}, "steps must be 0 or more, not -1"),
        ({"trainer": {"nope": 1}}, "trainer has no option 'nope'"),
    ],
)
def test_setting_that_makes_no_sense_is_refused_with_its_value(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Tail(**wrong)
