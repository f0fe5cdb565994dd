"""Absorb: fold a linear estimate of what removed layers did into the projection before them, in closed form.

After ReplaceMe (arXiv 2505.02819). For each run of consecutive removed layers, in depth order, on the same calibration tokens
and with earlier runs already absorbed: let `A` be what enters the down-projection `W` of the kept layer before the run,
`M = A·Wᵀ + b` what leaves it, `H` that layer's output and `X` the *dense* model's output of the run's last layer.

- `map` (the published form): `min_T |M·T + (H − M) − X|² + α·s·|T − I|²`, then `W ← Tᵀ·W`;
- `projection` (wider: every `Tᵀ·W` is a `W`): `min_W' |A·W'ᵀ + (H − A·Wᵀ) − X|² + α·s·|W' − W|²`.

Both are ridge regressions of `X − H` on `M` or `A`; `s`, the mean of the diagonal of the Gram matrix, frees α of a unit.
Deviations: a token counts by 1 / mean(X²), so that the few tokens with huge activations do not decide alone; activations are
recomputed after each run; α can be chosen on the last eighth of the tokens; sums are kept in float64.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.data import TokenBatches
from secateur.decoder import Decoder, evaluating
from secateur.errors import RunError, UnsupportedModelError
from secateur.processes import own_share, summed_
from secateur.progress import Progress, Silent
from secateur.settings import AbsorbForm
from secateur.signals import finishing

__all__ = ["absorb_", "runs"]

_ALPHAS = (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
_ALPHA_WITHOUT_HELD_OUT = 0.3


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
    alpha: float | None = None,
    precision: torch.dtype | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Fold each run of removed layers into the kept layer before it, in place.

    It costs one pass of the dense model over the tokens and one of the pruned, whatever the number of runs, and keeps two
    streams (tokens, hidden) in the CPU's memory.

    Args:
        decoder: the dense model; its weights change, its layers stay.
        dropped: the layers that will be removed.
        batches: calibration tokens.
        form: the family of maps (see above).
        alpha: pull towards the weights as they are, relative to the Gram matrix's mean diagonal; None chooses it for each
            run on the last eighth of the batches, and then fits on all.
        precision: autocast dtype of the forward passes.
        progress: told of each batch.

    Returns:
        A dictionary a run: `layers`, `into` (None for a run at the very front, which has no layer before it), `alpha`, and
        `error_before`, `error_after`: the weighted mean square difference from the dense stream, as a share of the stream's.

    Raises:
        UnsupportedModelError: if a layer has no such projection (a mixture of experts, a norm after the MLP). Nothing is
            changed then.
        RunError: if the activations are not finite.

    The weights come back as they were on any error, and on an interrupt.
    """
    todo = runs(dropped)
    projections = {first: _find_projection(decoder, first - 1) for first, _ in todo if first > 0}
    report: list[dict[str, Any]] = []
    own = own_share(range(len(batches)))
    dense, student = _Stream(decoder, batches, precision), _Stream(decoder, batches, precision)
    with (
        _restoring(projections.values()),
        (progress or Silent()).track("absorbing the removed layers", len(projections) * len(own)) as advance,
    ):
        for first, last in todo:
            if first == 0:
                report.append({"layers": [first, last], "into": None})
                continue
            target = projections[first]
            fit, held_out = _Sums.of(target, form), _Sums.of(target, form)  # the second is to choose α on
            to_fit = len(batches) - (len(batches) // 8 if alpha is None else 0)
            for number in own:
                with finishing("this batch"):
                    wanted, _ = dense.after(number, last, ())
                    stream, features = student.after(number, first - 1, dropped, target, form)
                    (fit if number < to_fit else held_out).add(features, wanted, stream)
                advance(1)
            dense.settle()
            student.settle()
            fit.gather_()
            held_out.gather_()
            report.append({"layers": [first, last], "into": first - 1, **_solve_(target, fit, held_out, form, alpha)})
    return report


class _Stream:
    """The residual stream of a model over all batches, taken deeper run by run, so that no layer is run twice.

    After `after` the stream *before* the layer asked for waits to be `settle`d: the layer's own weights may still change.
    """

    def __init__(self, decoder: Decoder, batches: TokenBatches, precision: torch.dtype | None) -> None:
        self.decoder, self.precision = decoder, precision
        self.batches = list(batches)
        self.layer = 0
        self.hidden: dict[int, Tensor] = {}  # by the number of the batch, of those that are this process's
        self._next: dict[int, Tensor] = {}
        self._next_layer = 0

    def after(
        self,
        number: int,
        layer: int,
        skipped: Collection[int],
        target: _Projection | None = None,
        form: AbsorbForm = "map",
    ) -> tuple[Tensor, Tensor]:
        """The stream after `layer` for one batch, and what the target projection gives (`map`) or takes (`projection`)."""
        behind = range(layer + 1, self.decoder.num_layers)
        features: list[Tensor] = []
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.decoder.model))
            stack.enter_context(torch.no_grad())
            device = self.decoder.device.type
            stack.enter_context(
                torch.autocast(device, self.precision or torch.bfloat16, enabled=self.precision is not None)
            )
            stack.enter_context(self.decoder.bypass({*(skip for skip in skipped if skip < layer), *behind}))
            if (hidden := self.hidden.get(number)) is not None:
                stack.enter_context(self.decoder.start_at(self.layer, hidden.to(self.decoder.device)))
            if target is not None:
                see = target.module.register_forward_hook(
                    lambda _, args, out: features.append(out if form == "map" else args[0])
                )
                stack.callback(see.remove)
            seen = stack.enter_context(self.decoder.capture([layer]))
            self.decoder.body(self.batches[number])
        self._next[number], self._next_layer = seen.inputs[layer].cpu(), layer
        return seen.outputs[layer], features[-1] if features else seen.outputs[layer]

    def settle(self) -> None:
        """Go on from the layer last asked for, next time."""
        self.layer, self.hidden = self._next_layer, dict(self._next)


@dataclass
class _Sums:
    """Weighted normal equations of the regression of `wanted − stream` on `features`, in float64."""

    gram: Tensor  # (features, features)
    cross: Tensor  # (features, hidden)
    residual: float = 0.0
    scale: float = 0.0

    @classmethod
    def of(cls, target: _Projection, form: AbsorbForm) -> _Sums:
        """Nothing yet, for a projection whose output, or input, the regression is on."""
        hidden, inner = target.weight.shape
        width = hidden if form == "map" else inner
        device = target.weight.device
        return cls(
            torch.zeros(width, width, dtype=torch.float64, device=device),
            torch.zeros(width, hidden, dtype=torch.float64, device=device),
        )

    def add(self, features: Tensor, wanted: Tensor, stream: Tensor) -> None:
        x = wanted.flatten(0, 1).double()  # (tokens, hidden)
        root = x.square().mean(dim=1, keepdim=True).clamp(min=1e-12).rsqrt()  # of the token's weight 1 / mean(X²)
        a = root * features.reshape(-1, features.shape[-1]).double()  # (tokens, features)
        d = root * (x - stream.flatten(0, 1).double())  # (tokens, hidden)
        self.gram += a.T @ a
        self.cross += a.T @ d
        self.residual += d.square().sum().item()
        self.scale += (root * x).square().sum().item()

    def plus(self, other: _Sums) -> _Sums:
        return _Sums(
            self.gram + other.gram, self.cross + other.cross, self.residual + other.residual, self.scale + other.scale
        )

    def gather_(self) -> None:
        """The sums of all processes."""
        summed_(self.gram)
        summed_(self.cross)
        both = summed_(torch.tensor([self.residual, self.scale], dtype=torch.float64, device=self.gram.device))
        self.residual, self.scale = both.tolist()

    def ridge(self, alpha: float) -> Tensor:
        """`(AᵀA + α·s·1)⁻¹ AᵀD`, (features, hidden)."""
        if alpha == 0:  # the limit, also where fewer tokens than features leave the Gram matrix singular
            limit: Tensor = torch.linalg.pinv(self.gram, hermitian=True) @ self.cross
            return limit
        pull = (
            alpha
            * self.gram.diagonal().mean()
            * torch.eye(len(self.gram), dtype=torch.float64, device=self.gram.device)
        )
        solution: Tensor = torch.linalg.solve(self.gram + pull, self.cross)
        return solution

    def error(self, delta: Tensor) -> float:
        """What is left of the difference from the dense stream after adding `A·delta`, as a share of the stream."""
        gained = 2 * (delta * self.cross).sum() - (delta * (self.gram @ delta)).sum()
        return (self.residual - float(gained)) / self.scale


def _solve_(
    target: _Projection, fit: _Sums, held_out: _Sums, form: AbsorbForm, alpha: float | None
) -> dict[str, float]:
    """Ridge; fold the solution in and say what it is worth on these tokens."""
    sums = fit if held_out.scale == 0 else fit.plus(held_out)
    if not (torch.isfinite(sums.gram).all() and torch.isfinite(sums.cross).all()):
        raise RunError("cannot absorb: the model's activations are not finite; load it with --dtype float32")
    if alpha is None and held_out.scale > 0:
        alpha = min(_ALPHAS, key=lambda candidate: held_out.error(fit.ridge(candidate)))
    elif alpha is None:
        alpha = _ALPHA_WITHOUT_HELD_OUT
    delta = sums.ridge(alpha)
    if form == "map":  # M = A·Wᵀ + b, so M·delta = A·(Wᵀ·delta) + b·delta
        bias = getattr(target.module, "bias", None)
        target.add_(delta.T @ target.weight.double(), None if bias is None else bias.double() @ delta)
    else:
        target.add_(delta.T, None)
    return {"alpha": alpha, "error_before": sums.residual / sums.scale, "error_after": sums.error(delta)}


@contextmanager
def _restoring(projections: Collection[_Projection]) -> Iterator[None]:
    """The projections' weights come back if the block does not end well."""
    tensors = [tensor for projection in projections for tensor in projection.module.parameters(recurse=False)]
    copies = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, saved in zip(tensors, copies, strict=True):
                tensor.copy_(saved)
        raise


def _find_projection(decoder: Decoder, layer: int) -> _Projection:
    """Find the linear map whose output goes into the stream last, and verify it: what is added to it leaves the layer."""
    from transformers.pytorch_utils import Conv1D

    order: list[Any] = []
    with ExitStack() as stack:
        for module in decoder.layers[layer].modules():
            if isinstance(module, (nn.Linear, Conv1D)):
                stack.callback(module.register_forward_hook(lambda m, *_: order.append(m)).remove)
        before = _probe(decoder, layer)
    last = order[-1] if order else None
    if last is None or len(order) != len(set(order)) or not last.weight.is_floating_point():
        raise UnsupportedModelError(
            f"cannot absorb into layer {layer}: it has no plain linear projection; set absorb to null"
        )
    shift = before.abs().max() * torch.linspace(0.5, 1.5, before.shape[-1], device=before.device, dtype=before.dtype)
    into_stream = (before.numel(), before.shape[-1])  # some families run the projection on (batch · tokens, channels)
    handle = last.register_forward_hook(
        lambda _m, _a, out: out + shift if (out.numel(), out.shape[-1]) == into_stream else out
    )
    try:
        moved = _probe(decoder, layer) - before
    finally:
        handle.remove()
    if not torch.allclose(moved.float(), shift.float().expand_as(moved), rtol=0.05):
        raise UnsupportedModelError(
            f"cannot absorb into layer {layer}: its last projection is not added to the stream as it is; set absorb to null"
        )
    return _Projection(last, isinstance(last, Conv1D))


def _probe(decoder: Decoder, layer: int) -> Tensor:
    """The stream after `layer` on a few tokens."""
    behind = range(layer + 1, decoder.num_layers)
    with evaluating(decoder.model), torch.no_grad(), decoder.bypass(behind), decoder.capture([layer]) as seen:
        decoder.body(decoder.probe_ids())
    return seen.outputs[layer]
