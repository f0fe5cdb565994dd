"""A task's data: what is trained on, what chooses settings, and what is reported on, with nothing in two of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from secateur.data.chat import ChatUse
from secateur.errors import DataError, RequestError
from secateur.settings import check_at_least

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from secateur.data.examples import Examples
    from secateur.data.tokens import TokenBatches

__all__ = ["Task", "TaskSettings", "calibration_shape", "calibration_windows", "num_held_out", "windows_of"]

logger = logging.getLogger(__name__)

_HELD_OUT = 0.1
_MOST_HELD_OUT = 500
_WINDOW, _MOST_WINDOWS = 256, 128  # of a task's text


@dataclass(frozen=True, kw_only=True)
class Task:
    """Three disjoint sets of examples."""

    train: Examples
    """To train on, in a seeded order."""

    validation: Examples
    """To choose the best checkpoint by."""

    test: Examples
    """To report on, once."""

    def describe(self) -> dict[str, Any]:
        """What a record says about this data; with what is trained on, how its prompts look and which labels may follow."""
        found = {name: getattr(self, name).describe() for name in ("train", "validation", "test")}
        if self.train.pattern is not None:
            found["train"] |= {**self.train.pattern.describe(), "labels": list(self.train.labels)}
        return found


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Which task, and how much of it."""

    data: str
    """Training examples: a .jsonl .json .csv .parquet file, a folder of splits, or `hub:owner/name[/config][:split]`."""

    validation_data: str | None = None
    """Examples to choose the best checkpoint by; the data's own validation split, or a part of the training data, if null."""

    test_data: str | None = None
    """Examples to report on; the data's own test split, or a part of the training data, if null."""

    template: str | None = None
    """The prompt to make of each row, such as "{text}\\nSentiment:"; the columns' usual one if null."""

    chat: ChatUse = "auto"
    """Use the tokenizer's chat template: for messages (auto), for every row (always), not at all (never)."""

    labels: tuple[str, ...] | None = None
    """What a classification chooses among, and what labels that are numbers stand for, from 0 on; all of the data if null."""

    num_train: int | None = None
    """Training examples, a seeded sample; all if null."""

    num_validation: int = 200
    """Validation examples at most."""

    num_test: int | None = None
    """Test examples, a seeded sample; all if null."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "num_train", "num_validation", "num_test")
        if self.labels is not None and not (len(self.labels) > 1 and len(set(self.labels)) == len(self.labels)):
            raise RequestError(f"labels are {list(self.labels)}; give two or more different ones")

    def load(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> Task:
        """Load the three sets. An example that is tested or validated on is never trained on.

        Raises:
            DataError: if one of them cannot be read, or nothing is left to train on.
        """
        from secateur.data.tables import splits_of

        train = self._read(self.data, "train", tokenizer, self.labels).shuffled(seed=seed)
        there = len(train)
        splits = splits_of(self.data)
        # Where there is no test split, the validation split is what others report on: it is not chosen by then.
        own_test = next((split for split in ("test", "validation") if split in splits), None)
        own_validation = "validation" if "validation" in splits and (own_test == "test" or self.test_data) else None
        test = self._other(self.test_data, own_test, "test", tokenizer, train)
        if test is None:
            train, test = train.split(_share_of(train, there), seed=seed)
        if self.num_test is not None:
            test = test.sample(min(self.num_test, len(test)), seed=seed)
        train = _without(train, test)
        validation = self._other(self.validation_data, own_validation, "validation", tokenizer, train)
        if validation is None:
            train, validation = train.split(min(self.num_validation, _share_of(train, there)), seed=seed)
        else:
            validation = _without(validation, test)
            validation = validation.sample(min(self.num_validation, len(validation)), seed=seed)
            train = _without(train, validation)
        if self.num_train is not None:
            train = train.take(min(self.num_train, len(train)))
        return Task(train=train, validation=validation, test=test)

    def _other(
        self, given: str | None, own_split: str | None, split: str, tokenizer: PreTrainedTokenizerBase, train: Examples
    ) -> Examples | None:
        """That split of what was named, or else the data's own; None if there is neither."""
        if given is None and own_split is None:
            return None
        spec, split = (given, split) if given is not None else (self.data, own_split or split)
        labels = train.labels or None
        try:
            examples = self._read(spec, split, tokenizer, labels)
        except DataError:
            plain = self._without_labels(spec, split, tokenizer) if labels else None
            if plain is None or plain.labels:
                raise
            examples = plain
        if _task_of(examples) != _task_of(train):
            raise DataError(
                f"{spec} holds {_task_of(examples)} examples, but the training data {_task_of(train)} examples; "
                "give data with the same columns"
            )
        return examples

    def _without_labels(self, spec: str, split: str, tokenizer: PreTrainedTokenizerBase) -> Examples | None:
        """What the data is by itself, if it can be read."""
        try:
            return self._read(spec, split, tokenizer, None)
        except DataError:
            return None

    def _read(
        self, spec: str, split: str, tokenizer: PreTrainedTokenizerBase, labels: tuple[str, ...] | None
    ) -> Examples:
        from secateur.data.examples import load_examples

        return load_examples(
            spec, split=split, template=self.template, tokenizer=tokenizer, chat=self.chat, labels=labels
        )


def windows_of(examples: Examples, tokenizer: Any, *, sequence_length: int, num_sequences: int) -> TokenBatches:
    """The examples' texts as windows of plain text, for methods that calibrate on such.

    Raises:
        DataError: if the texts together have fewer than two tokens.
    """
    from secateur.data.tokens import TokenBatches, tokenize

    stream = tokenize(examples.texts(), tokenizer)
    count, length = _shape(len(stream), sequence_length, num_sequences)
    if length < 2:
        raise DataError(f"{examples.spec} has {len(stream)} tokens in all; give more examples")
    return TokenBatches(input_ids=stream[: count * length].view(count, length), batch_size=4, spec=examples.spec)


def calibration_windows(examples: Examples, model: Any, tokenizer: Any) -> TokenBatches:
    """Windows of a task's text, no longer than the model's context: enough for methods that calibrate on plain text."""
    from secateur.data.prompts import context_length

    length = context_length(model, _WINDOW)
    return windows_of(examples, tokenizer, sequence_length=length, num_sequences=_MOST_WINDOWS)


def calibration_shape(num_tokens: int, context: int | None) -> tuple[int, int]:
    """How many such windows there are in a text of so many tokens, and of how many tokens each."""
    return _shape(num_tokens, min(_WINDOW, context or _WINDOW), _MOST_WINDOWS)


def _shape(num_tokens: int, sequence_length: int, num_sequences: int) -> tuple[int, int]:
    length = min(sequence_length, num_tokens)
    return min(num_tokens // max(length, 1), num_sequences), length


def _task_of(examples: Examples) -> str:
    return "classification" if examples.labels else examples.kind


def num_held_out(num_examples: int) -> int:
    """How many of so many examples are held out where data has no split for that."""
    return max(1, min(_MOST_HELD_OUT, int(_HELD_OUT * num_examples)))


def _share_of(examples: Examples, there: int) -> int:
    """How many of the examples are held out; `there` were so many before others were."""
    if len(examples) < 2:
        raise DataError(
            f"{examples.spec} has {there} example{'s' if there > 1 else ''}, too few to train on and to hold others out; give "
            "three or more in all, or name test and validation data"
        )
    return num_held_out(len(examples))


def _without(examples: Examples, others: Examples) -> Examples:
    """The examples that are not among the others."""
    known = {example.options for example in others}
    left = tuple(example for example in examples if example.options not in known)
    if not left:
        raise DataError(f"every example of {examples.spec} is also in {others.spec}; give different data")
    if len(left) < len(examples):
        logger.info(
            "%d examples of %s are also in %s and are left out", len(examples) - len(left), examples.spec, others.spec
        )
    return replace(examples, items=left)
