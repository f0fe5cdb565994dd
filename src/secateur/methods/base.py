"""What a pruning method is: settings that can choose layers, and perhaps prepare the model for their removal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from secateur.errors import RequestError
from secateur.plan import LayerScores, PruningPlan
from secateur.processes import share_out
from secateur.progress import Progress, Silent
from secateur.step import RowSize, Step

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from typing_extensions import Self

    from secateur.data import TokenBatches
    from secateur.decoder import Decoder
    from secateur.training.checkpoints import Keeping

__all__ = ["Cost", "Method", "Run", "Step", "calibration_loss", "next_token_loss"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What surrounds a method's work and is no setting of its own."""

    seed: int = 0
    """Seed of every random choice."""

    precision: torch.dtype | None = None
    """Autocast dtype of forward and backward passes; the weights' own if None."""

    progress: Progress = field(default_factory=Silent)
    """Who watches."""

    keeping: Keeping | None = None
    """Where a training inside keeps its checkpoints, and goes on from them; nowhere if None."""

    def autocast(self, decoder: Decoder) -> torch.autocast:
        """Mixed precision as asked for."""
        import torch

        return torch.autocast(decoder.device.type, self.precision or torch.bfloat16, enabled=self.precision is not None)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a method will use, in units of the dense model."""

    choose_tokens: float = 0.0
    """Forward passes to choose the layers, in tokens through the whole dense model; a backward pass counts as well."""

    prepare_tokens: float = 0.0
    """The same to prepare the model."""

    recover_tokens: float = 0.0
    """The same of a recovery after the cut."""

    training_tokens: int = 0
    """Tokens that update weights."""

    choosing: Step = field(default_factory=Step)
    """The heaviest step of choosing."""

    preparing: Step | None = None
    """The heaviest step of preparing; None if there is none."""

    recovering: Step | None = None
    """The heaviest step of a recovery after the cut; None if there is none."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Settings of one method; a subclass a paper, its fields the settings. One line in the registry makes it known."""

    name: ClassVar[str]
    """The name on the command line."""

    paper: ClassVar[str]
    """Where it was published."""

    prepares: ClassVar[bool] = False
    """Whether it changes weights before the cut."""

    nested: ClassVar[bool] = False
    """Whether the order of a plan begins with the order of each smaller one, so that one choice serves every number of layers."""

    only_runs: ClassVar[bool] = False
    """Whether choosing runs the model forward and no more, and never looks at a weight or a gradient: layers may be offloaded."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """The method with these settings.

        Raises:
            RequestError: if it has no such setting.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(settings.keys() - known)
        if unknown:
            raise RequestError(f"{cls.name} has no setting '{unknown[0]}'; choose among {', '.join(sorted(known))}")
        return cls(**settings)

    def check_launcher(self, *, chooses: bool) -> None:  # noqa: B027  most run in whatever processes there are
        """Make sure, before anything expensive, that the method can run in the launcher's processes.

        Args:
            chooses: whether it chooses the layers, which are given otherwise.

        Raises:
            RequestError: if it cannot.
        """

    @abstractmethod
    def plan(self, decoder: Decoder, data: TokenBatches, *, drop: int, run: Run | None = None) -> PruningPlan:
        """Choose `drop` layers on calibration tokens; the model is as it was afterwards.

        Args:
            decoder: the dense model's layers.
            data: calibration tokens.
            drop: how many layers go, 1 to all but one.
            run: seed, precision, progress.
        """

    def plan_on_task(
        self,
        decoder: Decoder,
        rows: Any,  # noqa: ARG002  for methods that look at examples one by one
        data: TokenBatches,
        *,
        drop: int,
        run: Run | None = None,
        total_steps: int | None = None,  # noqa: ARG002
    ) -> PruningPlan:
        """Choose `drop` layers for a fine-tuning; the model is as it was afterwards.

        Args:
            decoder: the dense model's layers.
            rows: the training examples, as `secateur.training.rows.rows_of` makes them.
            data: windows of the same text.
            drop: how many layers go.
            run: seed, precision, progress.
            total_steps: optimiser steps of the fine-tuning.
        """
        return self.plan(decoder, data, drop=drop, run=run)

    def given(self, layers: Sequence[int], num_layers: int) -> PruningPlan:
        """The plan of layers that somebody else chose, for this method to prepare."""
        return PruningPlan(
            num_layers=num_layers,
            order=tuple(layers),
            method="given",
            options=self.options(),
            provenance={"prepared_by": self.name} if self.prepares else {},
        )

    def completed(
        self,
        plan: PruningPlan,
        decoder: Decoder,  # noqa: ARG002
        data: TokenBatches,  # noqa: ARG002
        run: Run,  # noqa: ARG002
        *,
        rows: Any = None,  # noqa: ARG002
        total_steps: int | None = None,  # noqa: ARG002
    ) -> PruningPlan:
        """The plan with all that `prepare_` goes by, so that who has the plan can do the same; the model is as it was.

        Args:
            plan: of this method, or of layers that somebody else chose.
            decoder: the dense model's layers.
            data: calibration tokens.
            run: seed, precision, progress.
            rows: the training examples, if it is for a fine-tuning; see `plan_on_task`.
            total_steps: optimiser steps of the fine-tuning.
        """
        return plan

    def shortened(self, plan: PruningPlan, drop: int) -> PruningPlan:
        """The plan for `drop` layers that a plan of this method for as many or, where choices are nested, more contains."""
        return plan.prefix(drop)

    def prepare_(  # a method without a second stage
        self,
        decoder: Decoder,  # noqa: ARG002
        data: TokenBatches,  # noqa: ARG002
        plan: PruningPlan,  # noqa: ARG002
        *,
        run: Run | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Change weights in place so that the planned removal hurts less; returns what belongs in the record."""
        return {}

    def trains_weights(self, data: TokenBatches) -> bool:  # noqa: ARG002
        """Whether `prepare_` takes optimiser steps on the model's own weights, which 16 bits are too coarse for."""
        return False

    def final_gate(self) -> float:
        """How much of the layers that go is left in the residual stream after `prepare_`: 1 all of it, 0 nothing."""
        return 1.0

    def cost(self, num_layers: int, drop: int, data: TokenBatches) -> Cost:  # noqa: ARG002
        """What `plan` and `prepare_` will use."""
        return Cost(choose_tokens=data.num_tokens)

    def cost_on_task(
        self,
        num_layers: int,
        drop: int,
        rows: RowSize,  # noqa: ARG002  for methods that look at examples one by one
        data: TokenBatches,
        *,
        total_steps: int,  # noqa: ARG002
    ) -> Cost:
        """What `plan_on_task` and `prepare_` will use, on windows `data` and examples as long as `rows` says."""
        return self.cost(num_layers, drop, data)

    def options(self) -> dict[str, Any]:
        """The settings, as they go into a plan."""
        return asdict(self)

    def _planned(self, order: Sequence[int], scores: LayerScores, **provenance: Any) -> PruningPlan:
        return PruningPlan(
            num_layers=len(scores),
            order=tuple(order),
            scores=scores,
            method=self.name,
            options=self.options(),
            provenance=provenance,
        )


def next_token_loss(logits: Tensor, input_ids: Tensor) -> Tensor:
    """Mean next-token cross-entropy in nats of logits (batch, tokens, vocabulary), in float32."""
    from torch.nn import functional

    targets = input_ids[:, 1:].to(logits.device).flatten()
    return functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets)


def calibration_loss(decoder: Decoder, data: TokenBatches, run: Run) -> float:
    """Mean next-token cross-entropy of the model as it is now on all of `data`, in nats."""

    def windows_loss(input_ids: Tensor) -> float:
        return next_token_loss(decoder.logits(input_ids), input_ids).item() * len(input_ids)

    with measuring(decoder, run):
        return sum(share_out(windows_loss, list(data))) / data.num_sequences


@contextmanager
def measuring(decoder: Decoder, run: Run) -> Iterator[None]:
    """Forward passes only: evaluation mode, no gradients, mixed precision as asked for."""
    import torch

    from secateur.decoder import evaluating

    with evaluating(decoder.model), torch.no_grad(), run.autocast(decoder):
        yield
