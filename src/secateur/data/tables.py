"""What a data SPEC means, as the rows of a table with all their columns; `text` has the same as documents.

A folder may hold a file a split, named after it: `train.jsonl`, `validation.jsonl`, `test-00000-of-00001.parquet`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from secateur.data.loader import LOADERS, Table, hub_splits, load_file_table, load_files, load_hub_table
from secateur.data.text import HUB_TEXTS, PYTHON_DOCS, load_documents
from secateur.errors import DataError

__all__ = ["load_table", "splits_of"]

logger = logging.getLogger(__name__)

_SPLITS = {"train": "train(ing)?", "validation": "val(id(ation)?)?|dev", "test": "test"}  # and what files are called
_HUB = re.compile(r"hub:([^/:#\s]+/[^/:#\s]+)(?:/([^:#\s]+))?(?::([^#\s]+))?")
_FALLBACK = {"test": "validation"}  # what stands in for a split that is not there


def load_table(spec: str, *, split: str) -> Table:
    """Load the rows that `spec` means, in the order of their source.

    Args:
        spec: a file or a folder, `hub:owner/name[/config][:split]`, or what else `load_documents` takes. Text that is no
            table, and a `#column`, is one whose only column is `text`.
        split: the split of a folder whose files are named after splits, or of a data set on the Hub whose SPEC names none;
            `test` falls back to `validation`. A single file has no splits.

    Raises:
        DataError: if the data is missing, unreadable or empty; the message is one line with the remedy.
    """
    if spec in HUB_TEXTS or spec == PYTHON_DOCS:
        return _of_documents(load_documents(spec, split=split), spec)
    path, column = _existing(spec), None
    if path is None and "#" in spec:
        name, _, column = spec.rpartition("#")
        path = _existing(name) if column else None
    if path is not None and (path.is_dir() or path.suffix.lower() in LOADERS):
        files = [file for file in _files_in(path, split) if file.stat().st_size > 0]
        if not files:
            raise DataError(f"{spec!r} is empty; give a file that holds rows")
        if column or (files[0].suffix.lower() == ".txt"):
            return _of_documents(load_files(files, column=column), spec)
        return load_file_table(files)
    hub = _HUB.fullmatch(spec)
    if hub is None:
        return _of_documents(load_documents(spec, split=split), spec)  # it says, too, what is wrong with a SPEC
    dataset, config, own_split = hub.groups()
    return load_hub_table(spec, [own_split] if own_split else _or_fallback(split), dataset=dataset, config=config)


def splits_of(spec: str) -> list[str]:
    """The splits among which a SPEC leaves the choice: of a folder with files named after splits, or of a data set on the Hub.

    Raises:
        DataError: if the Hub cannot be asked.
    """
    path = _existing(spec)
    if path is not None:
        files = _data_files(path) if path.is_dir() else []
        return [split for split in _SPLITS if any(_is_named(file, split) for file in files)]
    hub = _HUB.fullmatch(spec)
    return [] if hub is None or hub[3] else hub_splits(spec, dataset=hub[1], config=hub[2])


def _of_documents(documents: Sequence[str], spec: str) -> Table:
    return Table(source=repr(spec), columns=("text",), rows=[{"text": document} for document in documents])


def _or_fallback(split: str) -> list[str]:
    return [split, _FALLBACK[split]] if split in _FALLBACK else [split]


def _existing(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if name.strip() and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long for a file name, an unknown ~user, a null byte
        return None


def _files_in(path: Path, split: str) -> list[Path]:
    """The file, or of a folder the files of the split; all of them if none is named after a split."""
    if not path.is_dir():
        return [path]
    files = _data_files(path)
    if not files:
        raise DataError(f"the folder {str(path)!r} holds no {' '.join(LOADERS)} file; give a folder that does")
    of_split = {name: [file for file in files if _is_named(file, name)] for name in {*_SPLITS, split}}
    there = sorted(name for name, found in of_split.items() if found)
    if there:
        chosen = next((name for name in _or_fallback(split) if name in there), None)
        if chosen is None:
            raise DataError(f"the folder {str(path)!r} has no split {split!r}; choose one of {there}")
        if chosen != split:
            logger.info("%s has no split %s; %s is taken", path, split, chosen)
        files = of_split[chosen]
    kinds = sorted({LOADERS[file.suffix.lower()][0] for file in files})
    if len(kinds) > 1:
        raise DataError(f"the folder {str(path)!r} mixes {' and '.join(kinds)} files; give one file, or one kind")
    return files


def _data_files(folder: Path) -> list[Path]:
    """The files of a folder that can be read, sorted; those in folders below it and hidden ones are left out."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in LOADERS and not file.name.startswith("."))


def _is_named(file: Path, split: str) -> bool:
    """Whether a file is called after a split: `test.csv`, `test-00000-of-00001.parquet`, but not `testimony.csv`."""
    called = _SPLITS.get(split, re.escape(split))
    return re.match(f"({called})(?![a-z])", file.stem, re.IGNORECASE) is not None
