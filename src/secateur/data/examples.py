"""Supervised examples: a task's items as prompts and completions, to fine-tune a language model on and to score it by.

`tables` turns a data SPEC into rows, `formats` finds out from the columns what the task is, and `chat` writes messages out.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

import torch

from secateur.data.chat import ChatTemplate, ChatUse
from secateur.data.formats import Kind, format_of, row_named
from secateur.data.pattern import PromptPattern, pattern_of
from secateur.data.tables import load_table
from secateur.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Example", "Examples", "load_examples"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One item of a task: what may be said, and which of it is right."""

    options: tuple[tuple[str, str], ...]
    """Prompt and completion of each option; one if there is nothing to choose among."""

    label: int = 0
    """The right option."""

    row: int | None = field(default=None, compare=False)
    """The row of the data it was made of, from 1; the turns of a conversation share one."""

    def __post_init__(self) -> None:
        if not 0 <= self.label < len(self.options):
            raise DataError(f"the label {self.label} is none of {len(self.options)} options; count them from 0")

    @property
    def prompt(self) -> str:
        """What stands before the right completion."""
        return self.options[self.label][0]

    @property
    def completion(self) -> str:
        """The right completion."""
        return self.options[self.label][1]

    @property
    def num_options(self) -> int:
        """How many options there are."""
        return len(self.options)

    @property
    def is_choice(self) -> bool:
        """Whether there is something to choose among."""
        return len(self.options) > 1


@dataclass(frozen=True, kw_only=True)
class Examples(Sequence[Example]):
    """Examples of one task, in a fixed order."""

    items: tuple[Example, ...] = field(repr=False)
    """The examples."""

    kind: Kind
    """What they ask for: a choice, a completion, or plain text with an empty prompt."""

    spec: str
    """Where they came from."""

    labels: tuple[str, ...] = ()
    """What a classification chooses among; give it to `load_examples` with the test data."""

    pattern: PromptPattern | None = None
    """How the prompts look; None where there are none, or it is not known."""

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Examples: ...

    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return replace(self, items=self.items[index])
        return self.items[index]

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that tell these examples from others: of the SHA-256 of options and labels in their order."""
        digest = hashlib.sha256()
        for example in self.items:
            digest.update(json.dumps([example.options, example.label]).encode() + b"\n")
        return digest.hexdigest()[:16]

    def texts(self) -> list[str]:
        """Each prompt with its right completion, as one text."""
        return [example.prompt + example.completion for example in self.items]

    def take(self, num_examples: int) -> Examples:
        """The first examples, or all if there are fewer.

        Raises:
            DataError: if that is none.
        """
        if num_examples < 1:
            raise DataError(f"the number of examples is {num_examples}; choose 1 or more")
        return replace(self, items=self.items[:num_examples])

    def shuffled(self, *, seed: int = 0) -> Examples:
        """The same examples in a seeded order."""
        return replace(self, items=tuple(self.items[index] for index in _order(len(self), seed)))

    def sample(self, num_examples: int, *, seed: int = 0) -> Examples:
        """A seeded sample without replacement, or all in the same seeded order if there are fewer.

        Raises:
            DataError: if that is none.
        """
        if num_examples > len(self):
            logger.warning("%s has only %d examples, not %d; all are used", self.spec, len(self), num_examples)
        return self.shuffled(seed=seed).take(num_examples)

    def split(self, held_out: float, *, seed: int = 0) -> tuple[Examples, Examples]:
        """Part the examples, by a seeded choice, into those to train on and those held out; both keep their order.

        The turns of a conversation stay together, so that a few more may be held out than asked for. A copy of an example
        held out (the same options, whichever is right) is not trained on.

        Args:
            held_out: how many to hold out (an integer), or what share of them (below 1); a share rounds half up, and never
                to none or all.
            seed: of the choice.

        Returns:
            Those to train on, and those held out.

        Raises:
            DataError: if one of the two would be empty.
        """
        number = self._number(held_out)
        together: dict[int, list[int]] = {}
        for index, example in enumerate(self.items):
            together.setdefault(-1 - index if example.row is None else example.row, []).append(index)
        groups = list(together.values())
        held: set[int] = set()
        for group in _order(len(groups), seed):
            if len(held) < number:
                held.update(groups[group])
        scored = {self.items[index].options for index in held}
        others = [example for index, example in enumerate(self.items) if index not in held]
        train = tuple(example for example in others if example.options not in scored)
        if len(train) < len(others):
            logger.info("%d copies of held-out examples of %s are not trained on", len(others) - len(train), self.spec)
        if not train:
            raise DataError(f"nothing of {self.spec!r} is left to train on beside what is held out; give more data")
        return replace(self, items=train), replace(self, items=tuple(self.items[index] for index in sorted(held)))

    def describe(self) -> dict[str, Any]:
        """What a record says about this data."""
        return {"spec": self.spec, "kind": self.kind, "examples": len(self), "fingerprint": self.fingerprint}

    def _number(self, held_out: float) -> int:
        most = len(self) - 1
        if most >= 1 and isinstance(held_out, float) and 0 < held_out < 1:
            return min(max(int(held_out * len(self) + 0.5), 1), most)
        if isinstance(held_out, int) and 1 <= held_out <= most:
            return held_out
        remedy = f"choose 1..{most}, or a share between 0 and 1" if most >= 1 else "give two or more"
        raise DataError(f"cannot hold out {held_out} of {len(self)} examples; {remedy}")


def load_examples(
    spec: str,
    *,
    split: str = "train",
    template: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    chat: ChatUse = "auto",
    labels: Sequence[str] | None = None,
) -> Examples:
    r"""Load the examples that `spec` means, in the order of their source.

    Args:
        spec: a file or a folder, `hub:owner/name[/config][:split]`, or what else `load_documents` takes; the columns say
            what the task is, see `formats`. With `#column` that column is plain text, as a `.txt` file is.
        split: the split of a folder whose files are named after splits, or of a data set on the Hub whose SPEC names none;
            `test` falls back to `validation`. A single file has no splits.
        template: the prompt to make of each row instead of the usual one: `{text}\nSentiment:` names columns in braces.
        tokenizer: whose chat template writes messages; needed for them alone.
        chat: `auto` writes messages with the chat template; `always` also makes every other row a user's turn and the
            assistant's; `never` refuses messages.
        labels: what a classification chooses among: `labels` of the training data. All the data has, sorted, if None.
            Where labels are integers without names, these are the names, from 0 on.

    Returns:
        The examples; rows that hold no text are left out.

    Raises:
        DataError: if the data is missing, unreadable or empty, its columns fit no task, a row's label means nothing, the
            template names no column, or messages cannot be rendered; the message is one line with the remedy.
    """
    table = load_table(spec, split=split)
    form = format_of(table, template=template, labels=labels)
    writer = ChatTemplate(tokenizer=tokenizer, use=chat)
    items: list[Example] = []
    num_empty = 0
    for number, row in enumerate(table.rows, start=1):
        with row_named(number, table):
            drafts = form.drafts(row)
            for draft in drafts:
                options = tuple(writer.pair(prompt, completion) for prompt, completion in draft.options)
                items.append(Example(options=options, label=draft.label, row=number))
        num_empty += not drafts
    if num_empty:
        logger.info("%d of %d rows of %s hold no text and are left out", num_empty, len(table.rows), table.source)
    if not items:
        raise DataError(
            f"{spec!r} is empty: none of its {len(table.rows)} rows holds an example ({form.asks}); give other data"
        )
    pattern = pattern_of(form, table, writer)
    return Examples(items=tuple(items), kind=form.kind, spec=spec, labels=form.labels, pattern=pattern)


def _order(number: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(number, generator=torch.Generator().manual_seed(seed)).tolist()
    return order
