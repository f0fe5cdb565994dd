"""The one place that calls `datasets`: quietly, leaving nothing beside the user's files, failing in one line."""

from __future__ import annotations

import glob
import logging
import re
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from secateur.connection import asking_hub
from secateur.errors import DataError

__all__ = [
    "LOADERS",
    "TEXT_COLUMNS",
    "Table",
    "hub_splits",
    "load_file_table",
    "load_files",
    "load_hub",
    "load_hub_table",
]

logger = logging.getLogger(__name__)

Taken = TypeVar("Taken")

LOADERS: dict[str, tuple[str, dict[str, Any]]] = {
    # A byte order mark is no text; a .txt file is one document, its newlines kept ("\r\n" is read as "\n").
    ".txt": ("text", {"sample_by": "document", "encoding": "utf-8-sig"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    # "NA" and "null" are words of a text, not missing values.
    ".csv": ("csv", {"keep_default_na": False}),
    ".parquet": ("parquet", {}),
}
"""File ending → the loader of `datasets` that reads it, and its options."""

TEXT_COLUMNS = ("text", "content", "document", "sentence")
"""The columns taken as text if nobody says which; the first that exists."""

_STRING_TYPES = ("string", "large_string", "string_view")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of named columns, in memory."""

    source: str
    """Where they came from; for messages."""

    columns: tuple[str, ...]
    """The names; every row has all of them."""

    rows: list[dict[str, Any]] = field(repr=False)
    """The rows in the order of their source; a value that is missing is None."""

    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Column of integers → what they stand for, where the source says so."""


def load_files(files: Sequence[Path], *, column: str | None = None) -> list[str]:
    """Read local files that share one loader, in the order given.

    The Arrow copy that `datasets` makes lives in a temporary folder and is gone on return.

    Args:
        files: files whose endings have the same loader in `LOADERS`.
        column: the column to take from tables; one of `TEXT_COLUMNS`, else the only column of text.

    Raises:
        DataError: if a file cannot be decoded or parsed, or no column can be chosen.
    """
    return _from_files(files, lambda table, source: _texts(table, source, column))


def load_file_table(files: Sequence[Path]) -> Table:
    """Read local files of tables that share one loader, as `load_files` does, with all their columns.

    Raises:
        DataError: if a file cannot be decoded or parsed.
    """
    return _from_files(files, _table)


def _from_files(files: Sequence[Path], take: Callable[[Any, str], Taken]) -> Taken:
    import datasets

    loader, options = LOADERS[files[0].suffix.lower()]
    try:
        with tempfile.TemporaryDirectory(prefix="secateur-data-") as cache, _quiet():
            patterns = [glob.escape(str(file.absolute())) for file in files]
            table = datasets.load_dataset(
                loader, data_files=patterns, split="train", cache_dir=cache, keep_in_memory=True, **options
            )
            return take(table, _shown(files))
    except DataError:
        raise
    except Exception as error:  # whatever the parsers raise means the same here: this file is no text
        if len(files) > 1:
            for file in files:  # name the file at fault
                _from_files([file], take)
        raise DataError(_unreadable(_shown(files), loader, error)) from error


def load_hub(
    spec: str,
    splits: Sequence[str],
    *,
    dataset: str,
    config: str | None = None,
    revision: str | None = None,
    files: dict[str, str] | None = None,
    column: str | None = None,
    limit: int | None = None,
) -> list[str]:
    """Load the first of `splits` that a data set on the Hub has.

    Args:
        spec: what the user wrote; for messages.
        splits: names of splits, best first.
        dataset: its id, `owner/name`.
        config: its configuration.
        revision: the branch to take.
        files: split → file in the data set, where only that file is wanted.
        column: the column to take; None chooses as `load_files` does.
        limit: stream, and stop after so many rows; None loads the split whole.

    Raises:
        DataError: if there is no such data set or split, the Hub cannot be reached, or no column can be chosen.
    """
    source = {
        "path": dataset,
        "name": config,
        "revision": revision,
        "data_files": files,
        "streaming": limit is not None,
    }
    return _from_hub(spec, splits, source, lambda table, shown: _texts(table, shown, column, limit=limit))


def hub_splits(spec: str, *, dataset: str, config: str | None = None) -> list[str]:
    """The names of the splits that a data set on the Hub has.

    Args:
        spec: what the user wrote; for messages.
        dataset: its id, `owner/name`.
        config: its configuration.

    Raises:
        DataError: if there is no such data set, or the Hub cannot be reached.
    """
    import datasets

    try:
        with _quiet(), asking_hub():
            return list(datasets.get_dataset_split_names(dataset, config))
    except Exception as error:  # transport, Hub and parser errors alike
        raise DataError(
            f"cannot load {spec!r} from the Hub ({_reason(error)}); check the name (hub:owner/name/config:split) and the "
            "connection, or give a local file"
        ) from error


def load_hub_table(spec: str, splits: Sequence[str], *, dataset: str, config: str | None = None) -> Table:
    """Load the first of `splits` that a data set on the Hub has, as `load_hub` does, with all its columns.

    Raises:
        DataError: if there is no such data set or split, or the Hub cannot be reached.
    """
    source = {"path": dataset, "name": config, "streaming": False}
    return _from_hub(spec, splits, source, _table)


def _from_hub(spec: str, splits: Sequence[str], source: dict[str, Any], take: Callable[[Any, str], Taken]) -> Taken:
    import datasets

    split, *others = splits
    try:
        with _quiet(), asking_hub():
            return take(datasets.load_dataset(**source, split=split), repr(spec))
    except DataError:
        raise
    except Exception as error:  # transport, Hub and parser errors alike: there is no text
        no_such_split = isinstance(error, ValueError) and re.match("(Unknown|Bad) split", str(error)) is not None
        if not (no_such_split and others):
            # What has a short name is text, for which there is some that needs no connection.
            else_ = "a local file" if ":" in spec else "a local file, or python-docs, the text that comes with Python"
            remedy = (
                "name a split that it has, as in hub:owner/name:train"
                if no_such_split
                else f"check the name (hub:owner/name/config:split) and the connection, or give {else_}"
            )
            raise DataError(f"cannot load {spec!r} from the Hub ({_reason(error)}); {remedy}") from error
    logger.info("%s has no split %s; trying %s", spec, split, others[0])
    return _from_hub(spec, others, source, take)


def _table(table: Any, source: str) -> Table:
    names = {column: getattr(feature, "names", None) for column, feature in (table.features or {}).items()}
    return Table(
        source=source,
        columns=tuple(_columns(table)),
        rows=list(table),
        class_names={column: tuple(values) for column, values in names.items() if values},
    )


def _texts(table: Any, source: str, column: str | None, *, limit: int | None = None) -> list[str]:
    """The documents of one column; rows without a value are left out."""
    column = _chosen_column(table, source, column)
    # islice also ends a streamed table, which has no length
    values = [row[column] for row in islice(table, limit)] if limit is not None else list(table[column])
    texts = [value for value in values if value is not None]
    wrong = next((value for value in texts if not isinstance(value, str)), None)
    if wrong is not None:
        raise DataError(
            f"column {column!r} of {source} holds {type(wrong).__name__}, not text; "
            f"append #column to choose another of {_columns(table)}"
        )
    return texts


def _chosen_column(table: Any, source: str, column: str | None) -> str:
    columns = _columns(table)
    if column is not None:
        if columns and column not in columns:
            raise DataError(f"{source} has no column {column!r}; choose one of {columns}")
        return column
    for name in TEXT_COLUMNS:
        if name in columns:
            return name
    features = table.features or {}
    of_text = [name for name in columns if getattr(features.get(name), "dtype", None) in _STRING_TYPES]
    if len(of_text) == 1:
        return of_text[0]
    raise DataError(f"cannot tell which column of {source} is the text: it has {columns}; append #column to choose one")


def _columns(table: Any) -> list[str]:
    return list(table.column_names or [])


def _shown(files: Sequence[Path]) -> str:
    return repr(str(files[0])) if len(files) == 1 else f"the {len(files)} files from {str(files[0])!r} on"


def _unreadable(shown: str, loader: str, error: Exception) -> str:
    cause = _cause(error)
    if isinstance(cause, UnicodeDecodeError):
        byte = cause.object[cause.start]
        return f"{shown} is not UTF-8 text (byte 0x{byte:02x} at position {cause.start}); save it as UTF-8"
    remedy = {
        "json": "a .jsonl file has one JSON object a line, a .json file one list of objects",
        "csv": "a .csv file begins with a line of column names, and quotes text that holds commas",
    }.get(loader, "check that it is complete and of the kind its name says")
    return f"cannot read {shown} as {loader} ({_reason(error)}); {remedy}"


def _cause(error: BaseException) -> BaseException:
    """What went wrong below the wrapper that `datasets` puts around the errors of parsers."""
    import datasets

    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        return _cause(error.__cause__)
    return error


def _reason(error: Exception) -> str:
    cause = _cause(error)
    return textwrap.shorten(str(cause), width=300, placeholder=" …").rstrip(".:") or type(cause).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars (unless this logger shows INFO) and no log lines of `datasets`; both as before afterwards."""
    import datasets
    import huggingface_hub.utils as hub
    from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS

    with ExitStack() as stack:
        verbosity = datasets.logging.get_verbosity()
        stack.callback(datasets.logging.set_verbosity, verbosity)
        datasets.logging.set_verbosity(logging.CRITICAL)  # what it would log as an error is raised as one
        if not logger.isEnabledFor(logging.INFO):
            # An environment variable that insists on bars has priority: asking against it would only warn.
            if datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is None:
                _hide_bars(
                    stack,
                    datasets.are_progress_bars_disabled(),
                    datasets.disable_progress_bars,
                    datasets.enable_progress_bars,
                )
            if HF_HUB_DISABLE_PROGRESS_BARS is None:
                _hide_bars(stack, hub.are_progress_bars_disabled(), hub.disable_progress_bars, hub.enable_progress_bars)
        yield


def _hide_bars(stack: ExitStack, hidden: bool, hide: Callable[[], None], show: Callable[[], None]) -> None:
    if not hidden:
        hide()
        stack.callback(show)
