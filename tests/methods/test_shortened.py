"""One-shot losses against complete forward passes, and Taylor terms against autograd in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.errors import RequestError, RunError
from secateur.methods.shortened import ShortenedPPL, ShortenedTaylor
from tiny_families import build


def loss_of(model: Any, windows: TokenBatches) -> torch.Tensor:
    logits = model(input_ids=windows.input_ids, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), windows.input_ids[:, 1:].flatten())


# ---- the loss without each layer ---------------------------------------------------------------------------------------


def test_scores_equal_the_loss_of_the_model_without_each_layer(decoder: Decoder, windows: TokenBatches) -> None:
    plan = ShortenedPPL(sequences=None).plan(decoder, windows, drop=3)
    layers, expected = decoder.model.model.layers, []
    for gone in range(6):
        decoder.model.model.layers = torch.nn.ModuleList(module for at, module in enumerate(layers) if at != gone)
        decoder.model.config.num_hidden_layers = 5
        with torch.no_grad():
            expected.append(loss_of(decoder.model, windows).item())
    assert plan.scores is not None
    assert list(plan.scores) == pytest.approx(expected, rel=1e-5)
    assert list(plan.order) == sorted(range(6), key=lambda layer: expected[layer])[:3]


@pytest.mark.parametrize("method", [ShortenedPPL, ShortenedTaylor])
def test_prefix_of_the_order_is_the_smaller_cut(decoder: Decoder, windows: TokenBatches, method: Any) -> None:
    order = method().plan(decoder, windows, drop=5).order
    assert [method().plan(decoder, windows, drop=drop).order for drop in range(1, 5)] == [
        order[:drop] for drop in range(1, 5)
    ]


@pytest.mark.parametrize("method", [ShortenedPPL, ShortenedTaylor])
def test_only_as_many_windows_are_used_as_asked_for(decoder: Decoder, windows: TokenBatches, method: Any) -> None:
    few = method(sequences=2).plan(decoder, windows, drop=2)
    assert few.scores == method(sequences=None).plan(decoder, windows.take(2), drop=2).scores
    assert few.scores != method(sequences=None).plan(decoder, windows, drop=2).scores


# ---- Taylor terms ------------------------------------------------------------------------------------------------------


@pytest.fixture
def _exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original computes in float32 whatever it is given."""

    def exact(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
        return norm.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + norm.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", exact)


def terms(model: Any, layers: Any, windows: TokenBatches) -> list[float]:
    """`Σ|w · ∂L/∂w|` of each layer, of the mean loss on all windows at once, in float64."""
    model.double().requires_grad_(True)
    loss_of(model, windows).backward()
    return [sum(float((w.detach() * w.grad).abs().sum()) for w in layer.parameters()) for layer in layers]


@pytest.mark.usefixtures("_exact_norms")
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_scores_equal_weight_times_mean_gradient_in_float64_whatever_the_batches(
    decoder: Decoder, windows: TokenBatches, batch_size: int
) -> None:
    plan = ShortenedTaylor(sequences=None).plan(decoder, windows.rebatch(batch_size), drop=2)
    assert plan.scores is not None
    assert list(plan.scores) == pytest.approx(terms(decoder.model, decoder.layers, windows), rel=1e-4)


def test_biases_count_where_there_are_any(windows: TokenBatches) -> None:
    model = build("gpt2")
    ids = TokenBatches(windows.input_ids % 60 + 3, 5, "made up")
    plan = ShortenedTaylor(sequences=None).plan(Decoder(model), ids, drop=2)
    assert plan.scores is not None
    assert list(plan.scores) == pytest.approx(terms(model, model.transformer.h, ids), rel=1e-4)


@pytest.mark.parametrize(
    ("keep_first", "keep_last", "free"), [(1, 1, [1, 2, 3, 4]), (4, 1, [4]), (0, 0, [0, 1, 2, 3, 4, 5]), (4, 2, [])]
)
def test_protected_layers_go_after_all_others_and_the_lowest_of_them_first(
    decoder: Decoder, windows: TokenBatches, keep_first: int, keep_last: int, free: list[int]
) -> None:
    plan = ShortenedTaylor(keep_first=keep_first, keep_last=keep_last).plan(decoder, windows, drop=5)
    assert plan.scores is not None
    by_score = sorted(range(6), key=lambda layer: plan.scores[layer])  # type: ignore[index]
    assert list(plan.order) == sorted(by_score, key=lambda layer: layer not in free)[:5]


def test_gradients_that_were_there_come_back_and_none_is_taken_outside_the_layers(
    decoder: Decoder, windows: TokenBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss_of(decoder.model, windows).backward()
    decoder.model.model.embed_tokens.requires_grad_(False)
    gradients = {name: weight.grad for name, weight in decoder.model.named_parameters()}
    wanted: list[set[str]] = []
    logits = Decoder.logits

    def watched(self: Decoder, input_ids: torch.Tensor) -> torch.Tensor:
        wanted.append({name for name, weight in self.model.named_parameters() if weight.requires_grad})
        return logits(self, input_ids)

    monkeypatch.setattr(Decoder, "logits", watched)
    ShortenedTaylor().plan(decoder, windows, drop=2)
    assert all(names == {name for name in gradients if ".layers." in name} for names in wanted)
    for name, weight in decoder.model.named_parameters():
        assert weight.grad is gradients[name]
        assert weight.requires_grad == (name != "model.embed_tokens.weight")


@pytest.mark.parametrize("method", [ShortenedPPL, ShortenedTaylor])
def test_loss_that_is_not_finite_is_an_error_and_changes_nothing(
    decoder: Decoder, windows: TokenBatches, snapshot: Any, method: Any
) -> None:
    with torch.no_grad():
        decoder.model.lm_head.weight[0, 0] = math.nan
    before = snapshot(decoder.model)
    with pytest.raises(RunError, match="try fp32 precision or other text") as caught:
        method().plan(decoder, windows, drop=2)
    assert "\n" not in str(caught.value)
    assert snapshot(decoder.model) == before


@pytest.mark.parametrize(
    ("method", "wrong", "message"),
    [
        (ShortenedPPL, {"sequences": 0}, "sequences must be above 0, not 0"),
        (ShortenedTaylor, {"sequences": -1}, "sequences must be above 0, not -1"),
        (ShortenedTaylor, {"keep_first": -1}, "keep_first must be 0 or more, not -1"),
        (ShortenedTaylor, {"keep_last": -2}, "keep_last must be 0 or more, not -2"),
    ],
)
def test_setting_that_makes_no_sense_is_refused_with_its_value(
    method: Any, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        method(**wrong)


@pytest.mark.parametrize(("batch_size", "sums"), [(1, 1.0), (2, 1.0), (3, 0.0), (8, 0.0)])
def test_the_sum_of_gradients_is_counted_where_there_is_a_second_batch(batch_size: int, sums: float) -> None:
    data = TokenBatches(torch.zeros(8, 16, dtype=torch.long), batch_size, "none")
    assert ShortenedTaylor(sequences=3).cost(6, 2, data).choosing.trained_copies == sums
