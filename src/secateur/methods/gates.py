"""One weight a layer, learned with the model frozen: ELDeR's first stage (arXiv 2505.18232, section 3.1).

*Greedy*, as published: minimise `L(s) + λ1·Σ|s[l]|`; the layer with the smallest weight goes, is bypassed, and the rest are
learned again.

*Joint*, ours: all weights at once under a budget for their sum. A weight between 0 and 1 is read as the probability that its
layer stays, so that what is learned is the loss of models that really lack layers, not of models whose every layer is a little
weaker (with which any budget can be met at no loss, and nothing is learned). Each row of text draws its own gates: 0 or 1 by
the layer's probability, or, in a share of the draws, uniform in [0, 1]; there the slope of the loss is, on average, exactly
what removing the layer costs, given the draws of all the others:

    F(s) = E[L(z)], z[l] ~ Bernoulli(s[l]);   −∂F/∂s[l] = E[L(z[l]=0) − L(z[l]=1)] = −E over u ~ U(0, 1) of ∂L/∂z[l] at u

The weights climb along a running mean of these costs, which starts from what removing each layer alone costs, and are
projected onto `0 ≤ s ≤ 1, Σs = budget` after each step, the budget falling from all layers to those that stay. A few more layers
than are to go are nominated by their weights, and of these the calibration loss itself removes the cheapest, one by one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.data import TokenBatches
from secateur.decoder import Decoder, evaluating
from secateur.errors import TrainingDivergedError
from secateur.methods.base import Run, calibration_loss, next_token_loss
from secateur.methods.gate_learning import ROW_TOKENS, ROWS_PER_STEP, GateLearning
from secateur.methods.sleb import removal_losses
from secateur.processes import count, share_out

__all__ = ["Choice", "choose_layers", "on_budget"]

_MEMORY = 0.98
"""Of the running mean of the removal costs."""

_LARGEST_COST = (1.0, 0.5)
"""Nats: one draw's cost is clipped to the first, the mean to the second; beyond it a layer is needed, never mind how much."""


@dataclass(frozen=True)
class Choice:
    """The outcome: layers in the order in which they go, a weight a layer, and how it came about."""

    order: list[int]
    weights: list[float]
    history: list[list[float]]
    """Rows of weights on the way, the last one as they were learned."""

    steps: list[int]
    """How many steps were done at each row."""

    tried: list[dict[str, float]]
    """For each place in the order the calibration loss without each layer that was tried, in nats; empty without a shortlist."""


def choose_layers(decoder: Decoder, data: TokenBatches, drop: int, settings: GateLearning, run: Run) -> Choice:
    """Learn the weights and choose `drop` layers; the model is as it was afterwards.

    Raises:
        TrainingDivergedError: if the loss stops being finite.
    """
    data = data.take(settings.gate_sequences) if settings.gate_sequences else data
    with _frozen(decoder):
        choose = _jointly if settings.selection == "joint" else _greedily
        return choose(decoder, data, drop, settings, run)


# ---- greedy, as published ----------------------------------------------------------------------------------------------


def _greedily(decoder: Decoder, data: TokenBatches, drop: int, settings: GateLearning, run: Run) -> Choice:
    num_layers = decoder.num_layers
    gates = torch.ones(num_layers, requires_grad=True)
    rounds = settings.steps_by_round(drop)
    choice = Choice([], [1.0] * num_layers, [], list(itertools.accumulate(rounds)), [])
    with run.progress.track("learning the weight of each layer", sum(rounds)) as advance:
        for steps in rounds:
            active = [layer for layer in range(num_layers) if layer not in choice.order]
            if not settings.warm_start:
                gates = torch.ones(num_layers, requires_grad=True)
            slopes = _learn(decoder, data, gates, active, choice.order, steps, settings, run, advance)
            values = gates.detach().tolist()
            for layer in active:
                choice.weights[layer] = values[layer]
            choice.history.append([round(value, 5) for value in choice.weights])
            # Several weights can reach 0: of those the one goes that the loss pushes down hardest.
            listed = sorted(active, key=lambda layer: (values[layer], -slopes[layer], layer))[: settings.shortlist]
            if len(listed) > 1:
                losses = removal_losses(decoder, data, choice.order, listed, run)
                listed.sort(key=lambda layer: losses[layer])
                choice.tried.append(_by_name(losses))
            choice.order.append(listed[0])
    return choice


def _learn(
    decoder: Decoder,
    data: TokenBatches,
    gates: Tensor,
    active: Sequence[int],
    bypassed: Collection[int],
    steps: int,
    settings: GateLearning,
    run: Run,
    advance: Callable[[int], None],
) -> list[float]:
    """Minimise `L + λ1·Σ|s|` over the gates of the active layers, in place; gates are kept at 0 or above.

    Returns:
        The last `∂L/∂s`, a number a layer.
    """
    optimizer = torch.optim.Adam([gates], lr=settings.gate_learning_rate)
    batches = list(data)
    slopes = torch.zeros(decoder.num_layers)

    def batch_slopes(input_ids: Tensor) -> Tensor:
        share = len(input_ids) / data.num_sequences if settings.fixed_batch else 1.0
        return share * _slopes(decoder, input_ids, gates, active, settings, run)

    for step in range(steps):
        seen = batches if settings.fixed_batch else [batches[step % len(batches)]]
        with decoder.bypass(bypassed):
            slopes = sum(share_out(batch_slopes, seen), torch.zeros(decoder.num_layers))
        optimizer.zero_grad()
        pressure = torch.zeros_like(slopes)
        pressure[list(active)] = settings.lambda_1 * gates.detach()[list(active)].sign()
        gates.grad = slopes + pressure
        optimizer.step()
        with torch.no_grad():
            gates.clamp_(min=0)
        advance(1)
    return slopes.tolist()


def _slopes(
    decoder: Decoder, input_ids: Tensor, gates: Tensor, active: Sequence[int], settings: GateLearning, run: Run
) -> Tensor:
    """`∂L/∂gates` of the mean next-token loss on one batch, of the gates' shape."""
    with torch.enable_grad(), run.autocast(decoder), decoder.gate(gates, kind=settings.gate, layers=active):
        loss = next_token_loss(decoder.logits(input_ids), input_ids)
    if not math.isfinite(loss.item()):
        raise TrainingDivergedError(
            f"the loss became {loss.item()} while the layer weights were learned; nothing was changed: try a lower "
            f"gate_learning_rate (now {settings.gate_learning_rate:g}), fp32 precision, or other text"
        )
    slopes: Tensor = torch.autograd.grad(loss, gates)[0]
    return slopes


def _slopes_by_row(decoder: Decoder, input_ids: Tensor, gates: Tensor, settings: GateLearning, run: Run) -> Tensor:
    """`∂L/∂gates` of each row's own loss, of gates (layers, rows): each process takes some of the rows."""
    parts = torch.arange(len(input_ids)).tensor_split(min(count(), len(input_ids)))

    def slopes(rows: Tensor) -> Tensor:
        chosen = gates.detach()[:, rows].requires_grad_(True)
        # The loss is a mean over rows, each with gates of its own: times their number it is a slope a row.
        return len(rows) * _slopes(decoder, input_ids[rows], chosen, range(decoder.num_layers), settings, run)

    return torch.cat(share_out(slopes, parts), dim=1)


# ---- joint, under a budget ---------------------------------------------------------------------------------------------


def _jointly(decoder: Decoder, data: TokenBatches, drop: int, settings: GateLearning, run: Run) -> Choice:
    num_layers, steps = decoder.num_layers, settings.joint_steps
    generator = torch.Generator().manual_seed(run.seed)
    row_tokens = min(ROW_TOKENS, data.sequence_length)
    rows = data.input_ids[:, : data.sequence_length // row_tokens * row_tokens].reshape(-1, row_tokens)
    weights = torch.ones(num_layers)
    cost_sum, cost_count = _removed_alone(decoder, data, settings, run)
    costs = cost_sum
    history: list[list[float]] = []
    with run.progress.track("learning the weights of all layers", steps) as advance:
        for step in range(steps):
            input_ids = rows[torch.arange(step * ROWS_PER_STEP, (step + 1) * ROWS_PER_STEP) % len(rows)]
            gates, uniform = _draw(weights, len(input_ids), settings.explore, generator)
            cost = -_slopes_by_row(decoder, input_ids, gates, settings, run)
            cost_sum = _MEMORY * cost_sum + (cost.clamp(-_LARGEST_COST[0], _LARGEST_COST[0]) * uniform).sum(dim=1)
            cost_count = _MEMORY * cost_count + uniform.sum(dim=1)
            costs = cost_sum / cost_count.clamp(min=1e-3)
            costs = torch.where(cost_count > 0, costs, costs.median()).clamp(max=_LARGEST_COST[1])
            budget = num_layers - drop * min(1.0, 2 * (step + 1) / steps)
            weights = on_budget(weights + settings.joint_rate * (costs - costs.median()), budget)
            history.append([round(weight, 5) for weight in weights.tolist()])
            advance(1)
    # Weights that ended at the same bound are told apart by what removal costs.
    values, ties = weights.tolist(), costs.tolist()
    listed = sorted(range(num_layers), key=lambda layer: (values[layer], ties[layer], layer))
    listed = listed[: min(drop + settings.shortlist - 1, num_layers)]
    noted = sorted({*range(steps // 8, steps, max(1, steps // 8)), steps - 1})
    learned, numbers = [history[step] for step in noted], [step + 1 for step in noted]
    if settings.shortlist == 1:
        return Choice(listed[:drop], values, learned, numbers, [])
    # The loss may take others than the very lowest; the weights then say what was decided.
    order, tried = _best_of(decoder, data, listed, drop, run)
    values = [0.0 if layer in order else value for layer, value in enumerate(values)]
    return Choice(order, values, learned, numbers, tried)


def _best_of(
    decoder: Decoder, data: TokenBatches, listed: Sequence[int], drop: int, run: Run
) -> tuple[list[int], list[dict[str, float]]]:
    """Of the listed layers, remove the one that costs least, `drop` times; and the losses each time."""
    order: list[int] = []
    tried: list[dict[str, float]] = []
    with run.progress.track("trying the layers with the smallest weights", drop) as advance:
        for _ in range(drop):
            losses = removal_losses(decoder, data, order, [layer for layer in listed if layer not in order], run)
            order.append(min(losses, key=lambda layer: (losses[layer], layer)))
            tried.append(_by_name(losses))
            advance(1)
    return order, tried


def _by_name(losses: dict[int, float]) -> dict[str, float]:
    """As it is written to a file and read again."""
    return {str(layer): loss for layer, loss in losses.items()}


def _removed_alone(decoder: Decoder, data: TokenBatches, settings: GateLearning, run: Run) -> tuple[Tensor, Tensor]:
    """What removing each layer alone costs, as so many draws: the sum of their costs, and their number (layers,)."""
    layers = range(decoder.num_layers)
    if not settings.measured_start:
        return torch.zeros(len(layers)), torch.zeros(len(layers))
    dense = calibration_loss(decoder, data, run)
    with run.progress.track("removing each layer alone", len(layers) * len(data)) as advance:
        losses = removal_losses(decoder, data, (), layers, run, advance)
    costs = torch.tensor([losses[layer] - dense for layer in layers]).clamp(max=_LARGEST_COST[1])
    draws = settings.explore * ROWS_PER_STEP / (1 - _MEMORY)  # as many as the running mean remembers
    return draws * costs, torch.full((len(layers),), draws)


def _draw(weights: Tensor, num_rows: int, explore: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gates for each layer and row, and which of them are uniform: both (layers, rows)."""
    shape = (len(weights), num_rows)
    anywhere = torch.rand(shape, generator=generator)
    uniform = torch.rand(shape, generator=generator) < explore
    present = (torch.rand(shape, generator=generator) < weights[:, None]).float()
    return torch.where(uniform, anywhere, present).requires_grad_(True), uniform.float()


def on_budget(values: Tensor, budget: float) -> Tensor:
    """The point nearest to `values` (layers,) with every entry in [0, 1] and the sum `budget`, by bisection on a shift."""
    low, high = values.min().item() - 1.0, values.max().item()
    for _ in range(60):
        shift = (low + high) / 2
        low, high = (shift, high) if (values - shift).clamp(0, 1).sum().item() > budget else (low, shift)
    return (values - (low + high) / 2).clamp(0, 1)


@contextmanager
def _frozen(decoder: Decoder) -> Iterator[None]:
    """No gradient for any weight, evaluation mode; both come back."""
    trainable = [parameter for parameter in decoder.model.parameters() if parameter.requires_grad]
    with evaluating(decoder.model):
        decoder.model.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
