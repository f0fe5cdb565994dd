"""Where models are fine-tuned on a task and measured on it, all alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from secateur.data.examples import Examples
from secateur.data.prompts import context_length
from secateur.data.task import Task
from secateur.decoder import Decoder, unwrapped
from secateur.estimation.task_size import TaskSize
from secateur.estimation.tuning import TuningCost
from secateur.evaluation.intervals import TaskResult, paired_difference
from secateur.evaluation.likelihood import num_sequences
from secateur.evaluation.similarity import continuations
from secateur.evaluation.tasks import Metric, suitable, task_score
from secateur.methods import Method, Run
from secateur.progress import Progress, Silent
from secateur.report.record import count_parameters
from secateur.step import RowSize
from secateur.training.checkpoints import Keeping
from secateur.training.completion import IGNORED
from secateur.training.rows import Rows
from secateur.training.supervised import FineTuning, fine_tune_

__all__ = ["TaskWorkbench"]

_SAMPLED = ("dense", "pruned")
_SAMPLE_TOKENS = 40
_SHOWN = 400
"""Characters of a prompt's end that are shown."""


@dataclass(frozen=True, kw_only=True)
class TaskWorkbench:
    """Fine-tunes models on the task and measures them on it, all alike; remembers what it measured."""

    tokenizer: Any
    data: Task
    rows: Rows
    tuning: FineTuning
    metric: Metric
    max_new_tokens: int
    num_samples: int
    run: Run
    results: dict[str, TaskResult] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    written: dict[str, list[str]] = field(default_factory=dict)

    def measure(self, name: str, model: Any, description: str) -> None:
        """Score a model on the test examples, as `name`."""
        self.run.progress.note(f"{description} ({len(self.data.test):,} examples)")
        result = self._score(model, self.data.test, progress=self.run.progress)
        layers = Decoder(unwrapped(model), verify=False).num_layers
        self.results[name] = result
        self.metrics[name] = {
            "num_layers": layers, "num_parameters": count_parameters(model), "task": result.describe(),
        }  # fmt: skip
        if name in _SAMPLED:
            self.written[name] = self._written(model)

    def fine_tune_(
        self,
        model: Any,
        keeping: Keeping,
        description: str = "fine-tuning",
        adapters: dict[str, torch.Tensor] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Fine-tune, and keep the epoch that is best on the validation examples; `dense` was measured before."""
        return fine_tune_(
            Decoder(model), self.rows, settings=self.tuning, work=keeping.folder, checkpoint_minutes=keeping.minutes,
            validate=lambda trained: {"score": self._score(trained, self.data.validation).value},
            greater_is_better=self.results["dense"].greater_is_better, precision=self.run.precision,
            seed=self.run.seed, progress=self.run.progress, description=description, adapters=adapters,
        )  # fmt: skip

    def cost(self, decoder: Decoder, method: Method, drop: int, *, tune_dense: bool, speed: bool) -> TuningCost:
        """What a run on this task uses: see `TuningCost`."""
        lengths = [len(row["input_ids"]) for row in self.rows]
        read = len(self.data.test)
        if suitable(self.metric, self.data.test) == "accuracy":
            options = [option for example in self.data.test for option in example.options]
            read = num_sequences(decoder.model, self.tokenizer, options, max_length=self.tuning.max_length)
        learnt = [sum(label != IGNORED for label in row["labels"]) for row in self.rows]
        return TuningCost(
            config=decoder.model.config,
            method=method,
            drop=drop,
            tuning=self.tuning,
            task=TaskSize(
                num_train=len(self.rows),
                num_validation=len(self.data.validation),
                num_test=len(self.data.test),
                num_options=max(1, read / len(self.data.test)),
            ),
            rows=RowSize(mean=sum(lengths) / len(lengths), longest=max(lengths), learnt=max(learnt)),
            tune_dense=tune_dense,
            speed=speed,
        )

    def differences(self) -> dict[str, Any]:
        """The pruned model's figure less each other's, with 95 % intervals over the same items."""
        pruned = self.results["pruned"]
        return {
            name: dict(zip(("difference", "low", "high"), paired_difference(pruned, other), strict=True))
            for name, other in self.results.items()
            if other is not pruned
        }

    def samples(self) -> dict[str, list[str]] | None:
        """What the dense and the pruned model wrote after a few test prompts, for people to read; None where there are none."""
        shown = [prompt if len(prompt) <= _SHOWN else f"…{prompt[-_SHOWN:]}" for prompt in self._prompts()]
        return {"prompts": shown, **self.written} if shown else None

    def _prompts(self) -> list[str]:
        return [example.prompt for example in self.data.test if example.prompt.strip()][: self.num_samples]

    def _written(self, model: Any) -> list[str]:
        if not self._prompts():
            return []
        room = context_length(model, self.tuning.max_length) // 2
        texts, _ = continuations(
            model, self.tokenizer, self._prompts(), max_new_tokens=min(_SAMPLE_TOKENS, self.max_new_tokens, room),
            batch_size=self.num_samples, max_length=self.tuning.max_length, precision=None, progress=Silent(),
        )  # fmt: skip
        return texts

    def _score(self, model: Any, examples: Examples, progress: Progress | None = None) -> TaskResult:
        return task_score(
            model,
            self.tokenizer,
            examples,
            self.metric,
            max_length=self.tuning.max_length,
            max_new_tokens=self.max_new_tokens,
            progress=progress,
        )
