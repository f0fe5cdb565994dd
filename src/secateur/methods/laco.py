"""LaCo, layer collapse (arXiv 2402.11187): fold the layers behind a layer into it, while the model's output stays similar.

"Reserving differences while seeking common": m layers behind layer l are folded into it, and go,

    θ_l ← θ_l + Σ_{k=1..m} (θ_{l+k} − θ_l)

From the top down, at l of the model as it is by then, C − 1 layers are folded into layer l on trial. The cosine of what enters
the language-model head, as one vector a window, between that model and the dense one is averaged over a few windows. Above the
threshold T the trial is accepted and l falls by I, and to C layers from the end at least; else it is taken back and l falls by 1.
A layer that took others in can be folded itself, later. What is folded are the matrices and the biases beside them; norms stay
those of the kept layer, as in the published code.

Adapted so that exactly `drop` layers go: the last fold takes only as many as are still to go; a sweep that ends before is
repeated from the top, and when one accepts nothing, T falls by `threshold_step`. The range from L to H is widened where it has
too few layers. Further deviations: windows of calibration text in place of sentences; folds are computed in float32.

The scores are a by-product: 1 − the largest cosine of a trial in which the layer was folded; a layer that never was has none. A
prefix of the order is what had gone by then; for a smaller `drop` the method can choose otherwise, as its last fold is smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from secateur.errors import RequestError, RunError, UnsupportedModelError
from secateur.methods.base import Cost, Method, Run, Step, measuring
from secateur.plan import LayerScores, PruningPlan
from secateur.processes import in_order, own_share
from secateur.settings import check_above_zero, check_at_least
from secateur.signals import finishing

if TYPE_CHECKING:
    from torch import Tensor, nn

    from secateur.data import TokenBatches
    from secateur.decoder import Decoder
    from secateur.surgery.folding import Fold

__all__ = ["Laco"]


@dataclass(frozen=True, kw_only=True)
class Laco(Method):
    """Layer collapse, with the settings published for Llama 2 7B."""

    name: ClassVar[str] = "laco"
    paper: ClassVar[str] = "arXiv 2402.11187"
    prepares: ClassVar[bool] = True

    layers_per_merge: int = 4
    """C: layers that become one at a time."""

    lowest: int = 1
    """L: the first layer that others may be folded into."""

    highest: int | None = None
    """H: the layer before which all of this happens; the end of the model if null."""

    interval: int = 2
    """I: how far down the next trial is after one that was accepted."""

    threshold: float = 0.65
    """T: a trial is accepted if its cosine is above it."""

    threshold_step: float = 0.05
    """How far T falls when nothing is accepted any more and too few layers have gone."""

    sequences: int | None = 8
    """Calibration windows to compare the outputs on; all of them if null."""

    def __post_init__(self) -> None:
        least = {"layers_per_merge": 2, "lowest": 0, "highest": 2, "interval": 1, "sequences": 1}
        for name, bound in least.items():
            check_at_least(self, bound, name)
        if not -1 <= self.threshold <= 1:
            raise RequestError(f"threshold is a cosine, not {self.threshold:g}; choose -1..1")
        check_above_zero(self, "threshold_step")

    def plan(self, decoder: Decoder, data: TokenBatches, *, drop: int, run: Run | None = None) -> PruningPlan:
        """Fold on trial until `drop` layers are gone; the weights are those of the dense model again afterwards.

        Raises:
            RunError: if no further layers can be folded: they differ in shape, or the outputs are not finite.
        """
        data = data.take(self.sequences) if self.sequences else data
        folds, best = _collapse(decoder, data, drop, self, run or Run())
        scores = LayerScores(
            tuple(1 - best[layer] if layer in best else math.nan for layer in range(decoder.num_layers)), self.name
        )
        merges: dict[int, int] = {}
        for fold in folds:
            merges = {layer: fold.into if into in fold.layers else into for layer, into in merges.items()}
            merges |= dict.fromkeys(fold.layers, fold.into)
        return PruningPlan(
            num_layers=decoder.num_layers,
            order=tuple(layer for fold in folds for layer in fold.layers),
            scores=scores,
            method=self.name,
            options=self.options(),
            merges=merges,
            provenance={"folds": [_as_json(fold) for fold in folds]},
        )

    def completed(
        self,
        plan: PruningPlan,
        decoder: Decoder,  # noqa: ARG002
        data: TokenBatches,  # noqa: ARG002
        run: Run,  # noqa: ARG002
        **_: Any,
    ) -> PruningPlan:
        """With the folds, where it is of given layers: see `prepare_`."""
        if "folds" in plan.provenance:
            return plan
        from secateur.surgery.folding import folds_of

        folds = folds_of(plan)
        return replace(
            plan,
            merges={layer: fold.into for fold in folds for layer in fold.layers},
            provenance={**plan.provenance, "folds": [_as_json(fold) for fold in folds]},
        )

    def prepare_(
        self,
        decoder: Decoder,
        data: TokenBatches,  # noqa: ARG002
        plan: PruningPlan,
        *,
        run: Run | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Carry out the folds of the plan, in their order; the layers that go are still there afterwards.

        Where a plan says nothing of folds, each layer goes into the one that `merges` names, or else into the nearest kept layer
        before it, or after it if there is none before.

        Raises:
            UnsupportedModelError: if layers to be folded together differ in shape; nothing was changed.
        """
        import torch

        from secateur.surgery.folding import folds_of

        folds = folds_of(plan)
        for fold in folds:
            if not _alike(decoder, (fold.into, *fold.layers)):
                raise UnsupportedModelError(
                    f"cannot fold layers {', '.join(map(str, fold.layers))} into layer {fold.into}: their weights differ in "
                    "shape; choose layers of one kind, or another method"
                )
        for fold in folds:
            for name, weight in _matrices(decoder.layers[fold.into]).items():
                with torch.no_grad():
                    weight.copy_(_folded(decoder, fold, name))
        return {"folds": [_as_json(fold) for fold in folds]}

    def final_gate(self) -> float:
        """Nothing is left of the layers that go: they are in the layers before them."""
        return 0.0

    def cost(self, num_layers: int, drop: int, data: TokenBatches) -> Cost:
        """At most: the dense model once, and between folds each layer tried once; beside the model, the layers folded into."""
        windows = min(self.sequences or data.num_sequences, data.num_sequences)
        at_once = self.layers_per_merge - 1
        gone = range(0, drop + at_once, at_once)  # by the number of folds so far
        trials = sum((num_layers - 1) * (1 - min(count, drop) / num_layers) for count in gone)
        return Cost(
            choose_tokens=(1 + trials) * windows * data.sequence_length,
            choosing=Step(copies=(len(gone) + 1) / num_layers),
        )


# ---- searching ---------------------------------------------------------------------------------------------------------


def _collapse(
    decoder: Decoder, data: TokenBatches, drop: int, settings: Laco, run: Run
) -> tuple[list[Fold], dict[int, float]]:
    """The accepted folds, and for each layer that was ever folded the largest cosine of such a trial."""
    from secateur.surgery.folding import Fold

    high = max(min(settings.highest or decoder.num_layers, decoder.num_layers), drop + 1)
    low = max(0, min(settings.lowest, high - 1 - drop))
    size, folds, gone = settings.layers_per_merge, list[Fold](), set[int]()
    best: dict[int, float] = {}
    known: dict[int, float] = {}  # cosines of the trials at each position since the last that was accepted
    falls = 0
    with run.progress.track("folding layers together", drop) as advance, ExitStack() as accepted:
        dense = _representations(decoder, data, run)
        while len(gone) < drop:
            threshold = round(settings.threshold - falls * settings.threshold_step, 9)
            before = len(folds)
            # Positions are those in the model by now, of which `high - len(gone)` layers lie before H.
            position = max(low, high - len(gone) - size)
            while position >= low and len(gone) < drop:
                left = [layer for layer in range(high) if layer not in gone]
                trial = left[position : position + min(size, drop - len(gone) + 1)]
                fold = Fold(trial[0], tuple(trial[1:]))
                if position not in known:
                    known[position] = _similarity(decoder, data, dense, fold, gone, run)
                similarity = known[position]
                for layer in fold.layers if math.isfinite(similarity) else ():
                    best[layer] = max(similarity, best.get(layer, -math.inf))
                if similarity > threshold:
                    folds.append(Fold(fold.into, fold.layers, similarity, threshold))
                    accepted.enter_context(_on_trial(decoder, fold))
                    gone |= set(fold.layers)
                    known.clear()
                    advance(len(fold.layers))
                    position = min(position - settings.interval, high - len(gone) - size)
                else:
                    position -= 1
            if len(folds) == before:
                if threshold < -1:
                    raise RunError(
                        f"only {len(gone)} of {drop} layers can be folded: the others differ in shape, or the outputs are not "
                        "finite; drop fewer, set layers_per_merge to 2, or try fp32 precision or another method"
                    )
                falls += 1
    return folds, best


def _similarity(
    decoder: Decoder, data: TokenBatches, dense: Sequence[Tensor], fold: Fold, gone: set[int], run: Run
) -> float:
    """The mean cosine between the dense model's output and that without `gone` and with `fold`; NaN if it cannot be folded."""
    import torch
    from torch.nn import functional

    if not _alike(decoder, (fold.into, *fold.layers)):
        return math.nan
    with _on_trial(decoder, fold), decoder.bypass({*gone, *fold.layers}):
        found = _representations(decoder, data, run)
    cosines = [
        functional.cosine_similarity(one.double(), other.double(), dim=-1)
        for one, other in zip(dense, found, strict=True)
    ]
    return torch.cat(in_order(cosines, len(data))).mean().item()


def _representations(decoder: Decoder, data: TokenBatches, run: Run) -> list[Tensor]:
    """What enters the language-model head, (batch, tokens · hidden) a batch of this process's share, on the CPU.

    Mixed precision begins anew each time: within one autocast the old weights would be remembered.
    """
    seen: list[Tensor] = []
    see = decoder.model.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: seen.append(args[0].flatten(1).cpu())
    )
    try:
        with measuring(decoder, run):
            for input_ids in own_share(list(data)):
                with finishing("this batch"):
                    decoder.logits(input_ids)
    finally:
        see.remove()
    return seen


# ---- folding -----------------------------------------------------------------------------------------------------------


def _matrices(layer: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the modules that hold a matrix, by name: projections with their biases, and no norms."""
    return {
        f"{path}.{name}": weight
        for path, module in layer.named_modules()
        if any(weight.dim() > 1 for weight in module.parameters(recurse=False))
        for name, weight in module.named_parameters(recurse=False)
    }


def _alike(decoder: Decoder, layers: Sequence[int]) -> bool:
    """Whether the layers have the same matrices, by name and shape, of numbers that can be added."""
    shapes = [
        {name: weight.shape for name, weight in _matrices(decoder.layers[layer]).items() if weight.is_floating_point()}
        for layer in layers
    ]
    return bool(shapes[0]) and all(shape == shapes[0] for shape in shapes)


def _folded(decoder: Decoder, fold: Fold, name: str) -> Tensor:
    """`θ_l + Σ (θ_{l+k} − θ_l)` of one parameter."""
    from secateur.surgery.folding import fold as fold_weights

    kept, *others = (_matrices(decoder.layers[layer])[name].detach() for layer in (fold.into, *fold.layers))
    return fold_weights(kept, others)


@contextmanager
def _on_trial(decoder: Decoder, fold: Fold) -> Iterator[None]:
    """The fold carried out for a while; the weights themselves are put aside, untouched, and come back."""
    weights = _matrices(decoder.layers[fold.into])
    originals = {name: weight.data for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            weight.data = _folded(decoder, fold, name)
        yield
    finally:
        for name, weight in weights.items():
            weight.data = originals[name]


def _as_json(fold: Fold) -> dict[str, Any]:
    return {**asdict(fold), "layers": list(fold.layers)}
