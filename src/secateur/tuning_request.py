"""What a fine-tuning that prunes on the way is asked for, and what makes two runs the same run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from secateur.data.task import TaskSettings
from secateur.errors import RequestError
from secateur.evaluation.tasks import Metric
from secateur.loading import load_model
from secateur.methods import Method
from secateur.methods.gradpruner import GradPruner
from secateur.request import Target
from secateur.resumption import identity
from secateur.settings import check_at_least
from secateur.training.supervised import FineTuning

__all__ = ["TuningRequest"]


@dataclass(frozen=True, kw_only=True)
class TuningRequest:
    """What `secateur.tune` was asked for, but for where it goes and who watches."""

    source: str | Path
    method: Method
    task: TaskSettings
    target: Target
    tuning: FineTuning
    metric: Metric
    max_new_tokens: int
    num_samples: int
    merge_adapters: bool
    tune_dense: bool
    continue_adapters: bool
    dtype: str
    precision: str
    revision: str | None
    trust_remote_code: bool
    seed: int

    def __post_init__(self) -> None:
        check_at_least(self, 1, "max_new_tokens")
        check_at_least(self, 0, "num_samples")

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run."""
        return identity(
            model=str(self.source), method={"name": self.method.name, **self.method.options()}, task=asdict(self.task),
            target=asdict(self.target), tuning=asdict(self.tuning), metric=self.metric, dtype=self.dtype,
            precision=self.precision, revision=self.revision, seed=self.seed, tune_dense=self.tune_dense,
            merge_adapters=self.merge_adapters, continue_adapters=self.continue_adapters,
            max_new_tokens=self.max_new_tokens, num_samples=self.num_samples,
        )  # fmt: skip

    @property
    def wide(self) -> bool:
        """Whether 16-bit weights are trained in float32."""
        return self.tuning.train == "full" and self.dtype == "auto"

    @property
    def writes_adapter(self) -> bool:
        """Whether what is trained lies beside the checkpoint in the end."""
        return self.tuning.train == "lora" and not self.merge_adapters

    def load_model(self) -> Any:
        """The dense model, read afresh."""
        return load_model(
            self.source, dtype=self.dtype, revision=self.revision, trust_remote_code=self.trust_remote_code
        )

    def check_adapters(self) -> None:
        """Make sure that what is asked of adapters can be had.

        Raises:
            RequestError: if there are none to merge or to go on with.
        """
        method, tuning = self.method, self.tuning
        if self.merge_adapters and tuning.train != "lora":
            raise RequestError("full training has no adapters to merge; choose train lora, or leave merge_adapters out")
        if not self.continue_adapters:
            return
        if (
            tuning.train != "lora"
            or not isinstance(method, GradPruner)
            or method.gradients != "lora"
            or self.target.layers
        ):
            raise RequestError(
                "continue_adapters is for train lora after a scoring of gradpruner with LoRA's gradients; leave it out"
            )
        if (method.scoring_rank, method.scoring_alpha) != (tuning.lora_rank, tuning.lora_alpha):
            raise RequestError(
                f"the scoring's adapters have rank {method.scoring_rank} and alpha {method.scoring_alpha}, the fine-tuning's "
                f"{tuning.lora_rank} and {tuning.lora_alpha}; choose the same to go on with them"
            )
