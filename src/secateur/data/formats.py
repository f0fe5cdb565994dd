r"""Which columns make which task: the row of a table as prompts and completions.

```
messages | conversations                           an example for each turn of the assistant
prompt, completion | response                      text or messages; a completion is taken just as it is written
instruction [input], output
ctx [activity_label], endings, label               HellaSwag
question | sentence with a gap _ [context],        multiple choice; the right one by index, digit or letter
    choices | option1 option2 …,
    label | answer | answerKey
text | document | article [title], summary
text | sentence, label_text | label                classification; what can be chosen is every label of the data
text | content | document | sentence               no task: plain text
```

The first line that fits is taken. A prompt never ends in a space: the completion begins with it, since that is where
tokenizers have it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from secateur.data.chat import Messages, messages_of
from secateur.data.choices import RIGHT, choices_of, fill_gap, right_choice, texts_of
from secateur.data.loader import TEXT_COLUMNS, Table
from secateur.data.rows import Row, as_text, joined, text_of, value_of
from secateur.data.template import PromptTemplate
from secateur.errors import DataError

__all__ = ["Draft", "Format", "Kind", "format_of", "row_named"]

Kind = Literal["choice", "completion", "text"]
"""Choose among completions; write one; or no prompt at all."""

_MARKUP = re.compile(r"\[.*?\]")


@dataclass(frozen=True, kw_only=True)
class Draft:
    """An example before its messages, if it is made of messages, are text."""

    options: tuple[tuple[str | Messages, str | Messages], ...]
    """Prompt and completion of each option."""

    label: int = 0
    """The right option."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """How the rows of one table are read."""

    kind: Kind
    """What the examples ask for."""

    template: PromptTemplate | None
    """What makes the prompt instead of the usual one."""

    labels: tuple[str, ...]
    """What a classification chooses among; empty for the rest."""

    class_names: tuple[str, ...]
    """What the integers in the column `label` stand for, where the data says so."""

    reader: Callable[[Row, Format], list[Draft]]
    """One of the functions below."""

    asks: str
    """What a row has to have, in words."""

    def drafts(self, row: Row) -> list[Draft]:
        """The examples of a row; none if it holds no text.

        Raises:
            DataError: if it holds something else, or its label means nothing.
        """
        return self.reader(row, self)


def format_of(table: Table, *, template: str | None = None, labels: Sequence[str] | None = None) -> Format:
    """Find out from the columns how to read a table.

    Args:
        table: rows.
        template: the prompt to make instead of the usual one; see `PromptTemplate`.
        labels: what a classification chooses among; None means all that the data has, sorted.

    Raises:
        DataError: if the columns fit no task, or there is no use for `template` or `labels`.
    """
    fitting = (form for form in _FORMATS if all(any(name in table.columns for name in group) for group in form[1]))
    kind, needed, reader = next(fitting, (None, (), None))
    if kind is None or reader is None:
        if template is not None:
            raise _no_answer(template, table)
        known = "; ".join(_shown(needed) for _, needed, _ in _FORMATS)
        raise DataError(
            f"cannot tell the task of {table.source} from its columns {list(table.columns)}; append #column to take one as "
            f"plain text, or name them as in one of: {known}"
        )
    if template is not None and reader in {_conversation, _document}:
        raise DataError(f"{table.source} has {_shown(needed)}, and no prompt to make; leave the template out")
    if labels and reader is not _classification:
        raise DataError(f"{table.source} has {_shown(needed)}, and no label to choose; leave the labels out")
    form = Format(
        kind=kind,
        template=None if template is None else PromptTemplate.parse(template, table.columns),
        labels=tuple(labels or ()),
        class_names=table.class_names.get("label", ()),
        reader=reader,
        asks="a turn of the role 'assistant' after another" if reader is _conversation else f"text in {_shown(needed)}",
    )
    return _with_labels(form, table) if reader is _classification else form


def _no_answer(template: str, table: Table) -> DataError:
    """What is said of a table of which a template makes the prompt, and no column the answer; that of the template first."""
    named = PromptTemplate.parse(template, table.columns).columns
    others = [name for name in table.columns if name not in named] or list(table.columns)
    return DataError(
        f"the template makes the prompt, and no column of {table.source} is known as the answer; if that is among {others}, "
        f"rename it to 'label' and {named[0]!r} to 'text' (one of a few answers), or to 'completion' and {named[0]!r} to "
        "'prompt' (any), in the template too"
    )


@contextmanager
def row_named(number: int, table: Table) -> Iterator[None]:
    """Say in an error which row it is about; rows count from 1."""
    try:
        yield
    except DataError as error:
        raise DataError(f"row {number} of {table.source}: {error}") from error


# What a row of each format says


def _conversation(row: Row, _: Format) -> list[Draft]:
    turns = messages_of(value_of(row, "messages", "conversations") or ())
    answers = [place for place, turn in enumerate(turns) if place and turn["role"] == "assistant"]
    return [Draft(options=((turns[:place], [turns[place]]),)) for place in answers]


def _completion(row: Row, form: Format) -> list[Draft]:
    before, after = row["prompt"], value_of(row, "completion", "response")
    if isinstance(before, list) or isinstance(after, list):
        if form.template is not None:
            raise DataError("the prompt is chat messages, so there is none to make; leave the template out")
        if not before or not after:
            return []
        return [Draft(options=((_turns(before, "prompt"), _turns(after, "completion")),))]
    prompt, answer = text_of(row, "prompt"), text_of(row, "completion", "response")
    if before is None or not answer.strip():
        return []
    if form.template is None and "completion" in row:  # the two are one text, parted where the user chose
        bare = prompt.rstrip(" ")
        return [Draft(options=((bare, prompt[len(bare) :] + answer),))]
    return [Draft(options=(joined(_prompt(row, form, prompt), answer),))]


def _instruction(row: Row, form: Format) -> list[Draft]:
    asked, given, output = (text_of(row, name) for name in ("instruction", "input", "output"))
    if not asked.strip() or not output.strip():
        return []
    given = f"Input: {given.strip()}\n" if given.strip() else ""
    return [Draft(options=(joined(_prompt(row, form, f"Instruction: {asked.strip()}\n{given}Response:"), output),))]


def _ending(row: Row, form: Format) -> list[Draft]:
    activity, context = text_of(row, "activity_label").strip(), _unmarked(text_of(row, "ctx"))
    endings = [_unmarked(ending) for ending in texts_of(row["endings"], "endings")]
    if not context or not all(endings):
        return []
    label = right_choice(row, len(endings))
    prompt = _prompt(row, form, f"{activity}: {context}" if activity else context)
    return [Draft(options=tuple(joined(prompt, ending) for ending in endings), label=label)]


def _choice(row: Row, form: Format) -> list[Draft]:
    choices, names = choices_of(row)
    asked, context = text_of(row, "question", "sentence").strip(), text_of(row, "context").strip()
    if not asked or not all(choices):
        return []
    label = right_choice(row, len(choices), names)
    context = f"Context: {context}\n" if context else ""
    if form.template is None and "question" not in row:
        options = tuple((context + before, after) for before, after in fill_gap(asked, choices))
        return [Draft(options=options, label=label)]
    prompt = _prompt(row, form, f"{context}Question: {asked}\nAnswer:")
    return [Draft(options=tuple(joined(prompt, choice) for choice in choices), label=label)]


def _summary(row: Row, form: Format) -> list[Draft]:
    title, text = text_of(row, "title").strip(), text_of(row, "text", "document", "article").strip()
    summary = text_of(row, "summary").strip()
    if not text or not summary:
        return []
    title = f"{title}\n\n" if title else ""
    return [Draft(options=(joined(_prompt(row, form, f"{title}{text}\n\nSummary:"), summary),))]


def _classification(row: Row, form: Format) -> list[Draft]:
    text = text_of(row, "text", "sentence").strip()
    if not text:
        return []
    name = _label_name(row, form)
    if name not in form.labels:
        raise DataError(
            f"the label {name!r} is none of {list(form.labels)}; add it to the labels, or leave the row out"
        )
    prompt = _prompt(row, form, f"{text}\nLabel:")
    return [Draft(options=tuple(joined(prompt, label) for label in form.labels), label=form.labels.index(name))]


def _document(row: Row, _: Format) -> list[Draft]:
    text = text_of(row, *TEXT_COLUMNS)
    return [Draft(options=(("", text),))] if text.strip() else []


_FORMATS: tuple[tuple[Kind, tuple[tuple[str, ...], ...], Callable[[Row, Format], list[Draft]]], ...] = (
    ("completion", (("messages", "conversations"),), _conversation),
    ("completion", (("prompt",), ("completion", "response")), _completion),
    ("completion", (("instruction",), ("output",)), _instruction),
    ("choice", (("ctx",), ("endings",), ("label",)), _ending),
    ("choice", (("question", "sentence"), ("choices", "option1"), RIGHT), _choice),
    ("completion", (("text", "document", "article"), ("summary",)), _summary),
    ("choice", (("text", "sentence"), ("label_text", "label")), _classification),
    ("text", (TEXT_COLUMNS,), _document),
)
"""Kind, columns (one of each group), and what reads a row; the first that fits is taken."""


def _turns(value: Any, column: str) -> str | Messages:
    return messages_of(value) if isinstance(value, list) else as_text(value, column)


def _prompt(row: Row, form: Format, usual: str) -> str:
    return usual if form.template is None else form.template.fill(row)


def _unmarked(text: str) -> str:
    """HellaSwag's text without the marks WikiHow left in it, as lm-evaluation-harness has it."""
    return _MARKUP.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ").strip()


def _label_name(row: Row, form: Format) -> str:
    """What the label is called: by the row, or by the names of the numbers there are."""
    name = text_of(row, "label_text").strip()
    value = row.get("label")
    if name:
        return name
    if isinstance(value, str) and value.strip():
        return value.strip()
    if value in (None, "", -1) or isinstance(value, str):
        raise DataError("it has no label; choose a split whose rows are labelled")
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"the label {value!r} is {type(value).__name__}; write it as text")
    names = form.class_names or form.labels
    if not names:
        raise DataError(
            f"nothing says what the label {value} means; add a column label_text, or name "
            "what 0, 1 … stand for: --labels negative,positive"
        )
    if not 0 <= value < len(names):
        raise DataError(f"the label {value} is none of 0..{len(names) - 1} for {list(names)}; correct it")
    return names[value]


def _with_labels(form: Format, table: Table) -> Format:
    """Choose the labels: those given, or all that rows with a text have."""
    labels = form.labels
    if not labels:
        found = set()
        for number, row in enumerate(table.rows, start=1):
            with row_named(number, table):
                if text_of(row, "text", "sentence").strip():
                    found.add(_label_name(row, form))
        labels = tuple(sorted(found))
    if labels and (len(labels) < 2 or len(set(labels)) < len(labels)):
        raise DataError(f"the labels of {table.source} are {list(labels)}; give two or more different ones")
    return replace(form, labels=labels)


def _shown(needed: tuple[tuple[str, ...], ...]) -> str:
    return " + ".join("|".join(group) for group in needed)
