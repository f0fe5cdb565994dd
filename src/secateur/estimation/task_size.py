"""How large a task is: what an estimate of a fine-tuning asks of data that it does not see. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.settings import check_at_least
from secateur.step import RowSize

__all__ = ["TaskSize"]


@dataclass(frozen=True, kw_only=True)
class TaskSize:
    """How many examples there are, and how long they are."""

    num_train: int
    """Training examples."""

    num_validation: int | None = None
    """Validation examples; a tenth as many as to train on, 200 at most, if null."""

    num_test: int | None = None
    """Test examples; a tenth as many as to train on, 500 at most, if null."""

    mean_tokens: float | None = None
    """Tokens of an example on average, prompt and completion; max_length if null, which the longest is taken to have."""

    completion_tokens: int | None = None
    """Tokens of a completion at most, which alone need logits; all tokens of an example, as in plain text, if null."""

    num_options: float = 1.0
    """Texts that are read to score an example: its options, 1 where they are single tokens."""

    def __post_init__(self) -> None:
        check_at_least(
            self, 1, "num_train", "num_validation", "num_test", "mean_tokens", "completion_tokens", "num_options"
        )

    def rows(self, max_length: int, context: int | None) -> RowSize:
        """How long the examples are, the longest as long as they may be.

        Args:
            max_length: tokens of an example at most.
            context: tokens that the model reads at most, if that is known.
        """
        longest = min(max_length, context or max_length)
        return RowSize(
            mean=min(self.mean_tokens or longest, longest),
            longest=longest,
            learnt=min(self.completion_tokens or longest, longest),
        )
