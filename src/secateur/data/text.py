"""What a data SPEC means, as a list of documents.

```
wikitext2 | c4 | ptb                    short names of data sets on the Hub
hub:owner/name[/config][:split]         any other data set on the Hub
path                                    a .txt .jsonl .json .csv .parquet file, or a folder of files of one kind
python-docs                             the reference text that ships with Python, a document a topic
...#column                              the column to take
```
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path

from secateur.data.loader import LOADERS, load_files, load_hub
from secateur.errors import DataError

__all__ = ["HUB_TEXTS", "PYTHON_DOCS", "HubText", "check_there", "dataset_on_hub", "load_documents", "part_on_hub"]

PYTHON_DOCS = "python-docs"
"""The SPEC of the text that ships with Python."""

_FALLBACK = {"test": "validation"}  # what stands in for a split that a data set does not have


@dataclass(frozen=True)
class HubText:
    """A data set on the Hub that has a short name."""

    dataset: str
    """Its id, `owner/name`."""

    column: str
    """The column that holds the text."""

    config: str | None = None
    """Its configuration."""

    revision: str | None = None
    """The branch to take; None is the main one."""

    files: dict[str, str] = field(default_factory=dict)
    """Split → its file in the data set, if only that file is wanted."""

    separator: str | None = None
    """What joins the rows into one document, where a row is a line; None where every row is a document."""

    limit: int | None = None
    """Rows to stream; None loads the split whole."""


HUB_TEXTS: dict[str, HubText] = {
    # 4,000 pages are about two million tokens: enough to sample from, without the 300 MB of the whole file.
    "c4": HubText(
        "allenai/c4",
        "text",
        files={"train": "en/c4-train.00000-of-01024.json.gz", "validation": "en/c4-validation.00000-of-00008.json.gz"},
        limit=4000,
    ),
    # Its main branch is a script, which `datasets` no longer runs; this branch holds the same rows as Parquet.
    # The usual protocol (GPTQ, SparseGPT) joins the sentences with blanks.
    "ptb": HubText(
        "ptb-text-only/ptb_text_only",
        "sentence",
        revision="refs/convert/parquet",
        files={split: f"penn_treebank/{split}/0000.parquet" for split in ("train", "validation", "test")},
        separator=" ",
    ),
    # Rows are lines, and the usual protocol joins them with an empty line.
    "wikitext2": HubText("Salesforce/wikitext", "text", config="wikitext-2-raw-v1", separator="\n\n"),
}
"""The short names. They win over a file of the same name; write `./c4` for the file."""


def load_documents(spec: str, *, split: str = "train") -> list[str]:
    """Load the documents that `spec` means, in the order of their source.

    Args:
        spec: see the module's docstring. A `.txt` file is one document. Of a table the column `text` is taken, else
            `content`, `document` or `sentence`, else its only column of text.
        split: the split of a data set on the Hub whose SPEC names none; `test` falls back to `validation`. Local files
            have no splits.

    Returns:
        The documents: rows just as they are (an empty one too), without those that have no value.

    Raises:
        DataError: if the text is missing, unreadable or empty; the message is one line with the remedy.
    """
    name, column = _name_and_column(spec)
    if name == PYTHON_DOCS:
        documents = _python_docs(column)
    elif name in HUB_TEXTS:
        documents = _short_name(name, column, split)
    elif name.startswith("hub:"):
        documents = _hub(name, column, split)
    else:
        documents = _local(name, column)
    if not any(document.strip() for document in documents):
        raise DataError(f"{spec!r} is empty: it holds no text; give text with at least a few sentences")
    return documents


def check_there(spec: str) -> None:
    """Make sure, before anything heavy is imported, that a file or folder that `spec` names is there.

    Raises:
        DataError: if it is not.
    """
    name, _ = _name_and_column(spec)
    if name not in {*HUB_TEXTS, PYTHON_DOCS} and not name.startswith("hub:") and _existing(name) is None:
        raise DataError(_missing(name))


def dataset_on_hub(spec: str) -> str | None:
    """The id of the data set on the Hub that `spec` means; None where it means something else."""
    name = spec.partition("#")[0]
    if name in HUB_TEXTS:
        return HUB_TEXTS[name].dataset
    match = re.match(r"hub:([^/:\s]+/[^/:\s]+)", name)
    return match[1] if match else None


def part_on_hub(spec: str) -> tuple[str | None, str | None]:
    """The configuration and the split of the data set on the Hub that `spec` means, each None where it names none."""
    name = spec.partition("#")[0]
    if name in HUB_TEXTS:
        return HUB_TEXTS[name].config, None
    match = re.fullmatch(r"hub:[^/:\s]+/[^/:\s]+(?:/([^:\s]+))?(?::(\S+))?", name)
    return (match[1], match[2]) if match else (None, None)


def _name_and_column(spec: str) -> tuple[str, str | None]:
    if not spec.strip():
        raise DataError(f"the data is {spec!r}; give a file, a folder, hub:owner/name, or one of {', '.join(_names())}")
    if "#" not in spec or _existing(spec) is not None:
        return spec, None
    name, _, column = spec.rpartition("#")
    if not name or not column:
        raise DataError(f"{spec!r} names no column or no data; write SPEC#column, as in notes.csv#body")
    return name, column


def _python_docs(column: str | None) -> list[str]:
    if column is not None:
        raise DataError(f"{PYTHON_DOCS} has no columns, so no {column!r}; write {PYTHON_DOCS}")
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(f"this Python comes without pydoc_data, so without {PYTHON_DOCS}; give a local file") from error
    # How the module is written changes between versions (3.13, for one); what it holds should not.
    if not isinstance(topics, dict) or not all(isinstance(text, str) for text in topics.values()):
        raise DataError(f"this Python keeps its topics in a form unknown to {PYTHON_DOCS}; give a local file")
    return [topics[topic] for topic in sorted(topics)]


def _short_name(name: str, column: str | None, split: str) -> list[str]:
    text = HUB_TEXTS[name]
    splits = [candidate for candidate in _splits(split) if not text.files or candidate in text.files]
    if not splits:
        raise DataError(f"{name} has no split {split!r}; choose one of {sorted(text.files)}")
    rows = load_hub(
        name,
        splits,
        dataset=text.dataset,
        config=text.config,
        revision=text.revision,
        files={candidate: text.files[candidate] for candidate in splits} if text.files else None,
        column=column or text.column,
        limit=text.limit,
    )
    return rows if text.separator is None else [text.separator.join(rows)]


def _hub(spec: str, column: str | None, split: str) -> list[str]:
    match = re.fullmatch(r"hub:([^/:\s]+/[^/:\s]+)(?:/([^:\s]+))?(?::(\S+))?", spec)
    if match is None:
        raise DataError(f"{spec!r} is no data set on the Hub; write hub:owner/name, with /config and :split if needed")
    dataset, config, own_split = match.groups()
    splits = [own_split] if own_split else _splits(split)
    return load_hub(spec, splits, dataset=dataset, config=config, column=column)


def _splits(split: str) -> list[str]:
    return [split, _FALLBACK[split]] if split in _FALLBACK else [split]


def _local(name: str, column: str | None) -> list[str]:
    path = _existing(name)
    if path is None:
        raise DataError(_missing(name))
    files = _files_in(path) if path.is_dir() else [path]
    if files[0].suffix.lower() not in LOADERS:
        raise DataError(f"cannot read {name!r}: unknown ending {path.suffix!r}; give a {_endings()} file")
    if column is not None and files[0].suffix.lower() == ".txt":
        raise DataError(f"{name!r} is plain text and has no columns, so no {column!r}; leave #{column} out")
    files = [file for file in files if file.stat().st_size > 0]
    return load_files(files, column=column) if files else []


def _existing(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long for a file name, an unknown ~user, a null byte
        return None


def _files_in(folder: Path) -> list[Path]:
    """The data files of a folder and the folders below it, sorted; hidden ones are left out."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in LOADERS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    kinds = {LOADERS[path.suffix.lower()][0] for path in files}
    if not files:
        raise DataError(f"the folder {str(folder)!r} holds no {_endings()} file; give a folder that does")
    if len(kinds) > 1:
        raise DataError(
            f"the folder {str(folder)!r} mixes {' and '.join(sorted(kinds))} files; give one file, or one kind"
        )
    return files


def _missing(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), _names(), n=1)
    if near:
        return f"no data is called {name!r}; did you mean {near[0]!r}?"
    if re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w.-]+)?(:\w+)?", name) and Path(name).suffix.lower() not in LOADERS:
        return f"no such file or folder: {name!r}; for a data set on the Hub write 'hub:{name}'"
    return (
        f"no such file or folder: {name!r}; give a {_endings()} file, hub:owner/name, or one of {', '.join(_names())}"
    )


def _names() -> list[str]:
    return sorted([*HUB_TEXTS, PYTHON_DOCS])


def _endings() -> str:
    return " ".join(LOADERS)
