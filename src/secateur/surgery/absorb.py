"""Absorb: fold a linear estimate of what removed layers did into the projection before them, in closed form.

After ReplaceMe (arXiv 2505.02819). For each run of consecutive removed layers, in depth order, on the same calibration
tokens and with earlier runs already absorbed: let `A` be what enters the down-projection `W` of the kept layer before the
run, `M = A·Wᵀ + b` what leaves it, `H` that layer's output and `X` the *dense* model's output of the run's last layer.

- `map` (the published form): `min_T |M·T + (H − M) − X|² + α·s·|T − I|²`, then `W ← Tᵀ·W`;
- `projection` (wider: every `Tᵀ·W` is a `W`): `min_W' |A·W'ᵀ + (H − A·Wᵀ) − X|² + α·s·|W' − W|²`,

`s` being the mean of the diagonal of the Gram matrix, so that α has no unit. Both are ridge regressions of `X − H` on `M`
or `A`. Deviation: activations are recomputed after each run, and the sums are kept in float64.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.data import TokenBatches
from secateur.decoder import Decoder, evaluating
from secateur.errors import UnsupportedModelError
from secateur.progress import Progress, Silent

__all__ = ["AbsorbForm", "absorb_", "runs"]

logger = logging.getLogger(__name__)

AbsorbForm = Literal["map", "projection"]


def runs(layers: Collection[int]) -> list[tuple[int, int]]:
    """The runs of consecutive layers, as (first, last)."""
    found: list[tuple[int, int]] = []
    for layer in sorted(set(layers)):
        if found and layer == found[-1][1] + 1:
            found[-1] = (found[-1][0], layer)
        else:
            found.append((layer, layer))
    return found


@dataclass(frozen=True)
class _Projection:
    """The linear map whose output a layer adds to the stream last; `weight` reads (out, in) whichever way it is stored."""

    module: Any
    transposed: bool  # transformers' Conv1D keeps (in, out)

    @property
    def weight(self) -> Tensor:
        stored: Tensor = self.module.weight
        return stored.T if self.transposed else stored

    def add_(self, delta: Tensor, bias_delta: Tensor | None) -> None:
        with torch.no_grad():
            self.weight.add_(delta.to(self.weight))
            if bias_delta is not None:
                self.module.bias.add_(bias_delta.to(self.module.bias))


def absorb_(
    decoder: Decoder,
    dropped: Collection[int],
    batches: TokenBatches,
    *,
    form: AbsorbForm = "projection",
    alpha: float = 0.1,
    precision: torch.dtype | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Fold each run of removed layers into the kept layer before it, in place.

    Args:
        decoder: the dense model; its weights change, its layers stay.
        dropped: the layers that will be removed.
        batches: calibration tokens.
        form: the family of maps (see above).
        alpha: pull towards the weights as they are, relative to the Gram matrix's mean diagonal.
        precision: autocast dtype of the forward passes.
        progress: told of each batch.

    Returns:
        A dictionary a run: `layers`, `into` (None for a run at the very front, which has no layer before it), and
        `error_before`, `error_after`: the mean square difference from the dense stream, as shares of its mean square.

    Raises:
        UnsupportedModelError: if a layer has no such projection (a mixture of experts, a norm after the MLP). Nothing is
            changed then.
    """
    progress = progress or Silent()
    todo = runs(dropped)
    projections = {first: _find_projection(decoder, first - 1) for first, _ in todo if first > 0}
    original: dict[int, tuple[Tensor, Tensor | None]] = {}
    report: list[dict[str, Any]] = []
    with progress.track("absorbing the removed layers", len(projections) * len(batches)) as advance:
        for first, last in todo:
            if first == 0:
                report.append({"layers": [first, last], "into": None})
                continue
            target = projections[first]
            sums = _Sums()
            for input_ids in batches:
                with evaluating(decoder.model), torch.no_grad(), _autocast(decoder, precision):
                    with _weights(projections, original):
                        wanted = _stream_after(decoder, last, input_ids, ())
                    features, stream = _features(decoder, first - 1, target, input_ids, dropped, form)
                sums.add(features, wanted, stream)
                advance(1)
            original[first] = (target.module.weight.detach().clone(), _clone(getattr(target.module, "bias", None)))
            report.append({"layers": [first, last], "into": first - 1, **_solve_(target, sums, form, alpha)})
    return report


class _Sums:
    """Normal equations of the regression of `wanted − stream` on `features`, in float64."""

    def __init__(self) -> None:
        self.gram: Any = 0
        self.cross: Any = 0
        self.residual = self.scale = 0.0

    def add(self, features: Tensor, wanted: Tensor, stream: Tensor) -> None:
        a = features.flatten(0, 1).double()  # (tokens, features)
        d = (wanted.double() - stream.double()).flatten(0, 1)  # (tokens, hidden)
        self.gram = self.gram + a.T @ a
        self.cross = self.cross + a.T @ d
        self.residual += d.square().sum().item()
        self.scale += wanted.double().square().sum().item()


def _solve_(target: _Projection, sums: _Sums, form: AbsorbForm, alpha: float) -> dict[str, float]:
    """Ridge: `delta = (AᵀA + α·s·1)⁻¹ AᵀD` (features, hidden); fold it in and say what it is worth on these tokens."""
    ridge = alpha * sums.gram.diagonal().mean()
    identity = torch.eye(len(sums.gram), dtype=torch.float64, device=sums.gram.device)
    delta = torch.linalg.solve(sums.gram + ridge * identity, sums.cross)
    gained = 2 * (delta * sums.cross).sum() - (delta * (sums.gram @ delta)).sum()
    weight, bias = target.weight.double(), getattr(target.module, "bias", None)
    if form == "map":  # M = A·Wᵀ + b, so M·delta = A·(Wᵀ·delta) + b·delta
        target.add_(delta.T @ weight, None if bias is None else bias.double() @ delta)
    else:
        target.add_(delta.T, None)
    return {
        "error_before": sums.residual / sums.scale,
        "error_after": (sums.residual - gained.item()) / sums.scale,
    }


def _stream_after(decoder: Decoder, layer: int, input_ids: Tensor, skipped: Collection[int]) -> Tensor:
    """The output of `layer` (batch, tokens, hidden); layers behind it are not run."""
    behind = range(layer + 1, decoder.num_layers)
    with decoder.bypass({*skipped, *behind}), decoder.capture([layer]) as seen:
        decoder.body(input_ids)
    return seen.outputs[layer]


def _features(
    decoder: Decoder, layer: int, target: _Projection, input_ids: Tensor, dropped: Collection[int], form: AbsorbForm
) -> tuple[Tensor, Tensor]:
    """What the projection of `layer` takes (`projection`) or gives (`map`), and the stream after the layer."""
    seen: list[Tensor] = []
    handle = target.module.register_forward_hook(lambda _, args, out: seen.append(out if form == "map" else args[0]))
    try:
        stream = _stream_after(decoder, layer, input_ids, [skip for skip in dropped if skip < layer])
    finally:
        handle.remove()
    return seen[-1], stream


@contextmanager
def _weights(projections: dict[int, _Projection], original: dict[int, tuple[Tensor, Tensor | None]]) -> Iterator[None]:
    """The dense model's own weights for a while, in the projections that have been changed already."""
    with ExitStack() as stack:
        for first, (weight, bias) in original.items():
            module = projections[first].module
            stack.callback(setattr, module.weight, "data", module.weight.data)
            module.weight.data = weight
            if bias is not None:
                stack.callback(setattr, module.bias, "data", module.bias.data)
                module.bias.data = bias
        yield


def _find_projection(decoder: Decoder, layer: int) -> _Projection:
    """Find the linear map whose output goes into the stream last, and verify it: what is added to it leaves the layer."""
    from transformers.pytorch_utils import Conv1D

    input_ids = torch.arange(3, 11).unsqueeze(0)
    order: list[nn.Module] = []
    linears = [module for module in decoder.layers[layer].modules() if isinstance(module, (nn.Linear, Conv1D))]
    with ExitStack() as stack, evaluating(decoder.model), torch.no_grad():
        for module in linears:
            stack.callback(module.register_forward_hook(lambda m, *_: order.append(m)).remove)
        before = _stream_after(decoder, layer, input_ids, ())
    last = order[-1] if order else None
    if (
        last is None
        or len(order) != len(set(order))
        or last.weight.dtype not in (torch.float32, torch.bfloat16, torch.float16)
    ):
        raise UnsupportedModelError(
            f"cannot absorb into layer {layer}: it has no plain linear projection; use --absorb off"
        )
    shift = before.abs().max() * torch.linspace(0.5, 1.5, before.shape[-1], device=before.device, dtype=before.dtype)
    handle = last.register_forward_hook(lambda _m, _a, out: out + shift if out.shape == before.shape else out)
    try:
        with evaluating(decoder.model), torch.no_grad():
            moved = _stream_after(decoder, layer, input_ids, ()) - before
    finally:
        handle.remove()
    if not torch.allclose(moved.float(), shift.float().expand_as(moved), rtol=0.05):
        raise UnsupportedModelError(
            f"cannot absorb into layer {layer}: its last projection is not added to the stream as it is; use --absorb off"
        )
    return _Projection(last, isinstance(last, Conv1D))


def _clone(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _autocast(decoder: Decoder, precision: torch.dtype | None) -> torch.autocast:
    return torch.autocast(decoder.device.type, precision or torch.bfloat16, enabled=precision is not None)
