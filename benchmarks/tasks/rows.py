"""Rows of the task files beside this one: JSON lines in the folder that the environment variable SECATEUR_DATA names."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from datasets import Dataset, DatasetDict


def splits(*, folder: str, names: list[str], **_: object) -> DatasetDict:
    """The splits of one task, as `custom_dataset` of an lm-eval task.

    Args:
        folder: of the task, in the data folder.
        names: of the splits, each a file `NAME.jsonl`.

    Raises:
        FileNotFoundError: if the variable is not set, or a file is not there.
    """
    data = os.environ.get("SECATEUR_DATA")
    if data is None:
        raise FileNotFoundError(f"set SECATEUR_DATA to the folder that holds {folder}/{names[-1]}.jsonl")
    return DatasetDict({name: _rows(Path(data) / folder / f"{name}.jsonl") for name in names})


def unbracketed(rows: Dataset) -> Dataset:
    """HellaSwag as the harness has it: what stands in brackets goes, be it a mark of WikiHow's or not."""
    return rows.map(
        lambda row: {
            "question": _unbracketed(row["question"]),
            "choices": [_unbracketed(choice) for choice in row["choices"]],
        }
    )


def up_to_gap(row: dict[str, str]) -> list[str]:
    """A WinoGrande sentence up to its gap, which each option fills."""
    before = row["sentence"].partition("_")[0]
    return [before + row["option1"], before + row["option2"]]


def after_gap(row: dict[str, str]) -> str:
    """What comes after the gap."""
    return row["sentence"].partition("_")[2].strip()


def _rows(path: Path) -> Dataset:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; SECATEUR_DATA is the folder that holds one folder a task")
    with path.open(encoding="utf-8") as lines:
        return Dataset.from_list([json.loads(line) for line in lines])


def _unbracketed(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ") if "[" in text else text
