from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pytest
from datasets import Dataset, IterableDataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secateur.data import load_documents
from secateur.data.text import HUB_TEXTS
from secateur.errors import DataError

DOCUMENTS = ["one, two\nthree", 'say "so"', "NA", "naïve 戦場", "  spaces kept  ", ""]


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)))


def write_json(path: Path, texts: list[str]) -> None:
    path.write_text(json.dumps([{"id": n, "text": text} for n, text in enumerate(texts)], indent=1))


def write_csv(path: Path, texts: list[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerows([["id", "text"], *enumerate(texts)])


def write_parquet(path: Path, texts: list[str]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"id": list(range(len(texts))), "text": texts}), path)


WRITERS: dict[str, Callable[[Path, list[str]], None]] = {
    ".jsonl": write_jsonl,
    ".json": write_json,
    ".csv": write_csv,
    ".parquet": write_parquet,
}


def message_of(spec: str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_documents(spec, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Files


@pytest.mark.parametrize("ending", WRITERS)
def test_every_table_format_gives_back_the_documents_written(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"data{ending}"
    WRITERS[ending](path, DOCUMENTS)
    assert load_documents(str(path)) == DOCUMENTS


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(codec="ascii", categories=["L", "P", "Z"]), min_size=1), min_size=1))
def test_jsonl_gives_back_any_printable_documents(tmp_path: Path, texts: list[str]) -> None:
    texts = [f"a {text}" for text in texts]  # a text that is only a date would be read as a date
    write_jsonl(tmp_path / "any.jsonl", texts)
    assert load_documents(str(tmp_path / "any.jsonl")) == texts


def test_text_file_is_one_document_with_its_newlines(tmp_path: Path) -> None:
    text = "\n first line \n\n\nsecond\tline\nlast without end"
    (tmp_path / "a.txt").write_text(text)
    assert load_documents(str(tmp_path / "a.txt")) == [text]


def test_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.TXT").write_bytes(b"\xef\xbb\xbfhello\r\nthere")
    assert load_documents(str(tmp_path / "a.TXT")) == ["hello\nthere"]


def test_folder_gives_its_files_sorted_by_path_without_hidden_and_empty_ones(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/c.txt", ".hidden/h.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty.txt").touch()
    assert load_documents(str(tmp_path)) == ["a/c.txt", "a/z.txt", "b.txt"]


def test_name_with_glob_characters_is_taken_literally(tmp_path: Path) -> None:
    (tmp_path / "a[1]*#x.txt").write_text("this one")
    (tmp_path / "a1bc#x.txt").write_text("not this one")
    assert load_documents(str(tmp_path / "a[1]*#x.txt")) == ["this one"]


def test_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in ("before", "behind"):
        path.write_text(text)
        assert load_documents(str(path)) == [text]


def test_reading_leaves_the_folder_and_the_settings_of_datasets_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    (tmp_path / "bad.jsonl").write_text('{"text": 1')
    before = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    load_documents(str(tmp_path / "a.jsonl"))
    message_of(str(tmp_path / "bad.jsonl"))
    assert (datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "bad.jsonl"]
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_verbose_shows_the_bars_of_datasets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    with caplog.at_level(logging.INFO, logger="secateur"):
        load_documents(str(tmp_path / "a.jsonl"))
    assert "Generating train split" in capfd.readouterr().err


# Columns


@pytest.mark.parametrize(
    ("row", "suffix", "expected"),
    [
        ({"document": "no", "content": "yes", "id": 1}, "", "yes"),
        ({"sentence": "yes", "other": "no"}, "", "yes"),
        ({"body": "yes", "id": 1}, "", "yes"),
        ({"text": "no", "body": "yes"}, "#body", "yes"),
    ],
)
def test_column_taken_is_the_first_known_one_or_the_only_one_or_the_one_named(
    tmp_path: Path, row: dict[str, Any], suffix: str, expected: str
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert load_documents(f"{tmp_path / 'a.jsonl'}{suffix}") == [expected]


def test_rows_without_a_value_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": null}\n{"text": "b"}\n')
    assert load_documents(str(tmp_path / "a.jsonl")) == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "suffix", "said"),
    [
        ({"question": "q", "answer": "a"}, "", "['question', 'answer']; append #column"),
        ({"text": 3, "body": "b"}, "", "holds int, not text; append #column to choose another of ['text', 'body']"),
        ({"text": "t"}, "#body", "has no column 'body'; choose one of ['text']"),
        ({"text": "t"}, "#", "names no column"),
    ],
)
def test_column_that_is_not_clear_gives_an_error_with_the_columns(
    tmp_path: Path, row: dict[str, Any], suffix: str, said: str
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert said in message_of(f"{tmp_path / 'a.jsonl'}{suffix}")


# Bad input


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n \n", "holds no text"),
        ("a.jsonl", b"", "holds no text"),
        ("a.jsonl", b'{"text": ""}\n', "holds no text"),
        ("a.txt", b"abc\xff\xfe", "not UTF-8 text (byte 0xff at position 3); save it as UTF-8"),
        ("a.csv", b"text\n\xff\xfe\n", "not UTF-8"),
        ("a.jsonl", b'{"text": "a\xff"}\n', "not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\nno json\n', "one JSON object a line"),
        ("a.json", b'[{"text": "a"', "one list of objects"),
        ("a.csv", b"text,a\n1,2\n1,2,3,4\n", "Expected 2 fields in line 3"),
        ("a.csv", b"text,a\n", "as csv"),
        ("a.parquet", b"nonsense", "as parquet"),
        ("a.docx", b"x", "unknown ending '.docx'; give a .txt .json"),
        ("line\nbreak.md", b"x", "unknown ending"),
    ],
)
def test_bad_file_gives_an_error_of_one_line_with_the_remedy(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert said in message_of(str(tmp_path / name))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "give a file"),
        ("nowhere/notes.txt", "no such file or folder: 'nowhere/notes.txt'; give a .txt"),
        ("x" * 5000, "no such file or folder"),
        ("a\0b", "no such file or folder"),
        ("wikitext", "did you mean 'wikitext2'?"),
        ("WikiText-2", "did you mean 'wikitext2'?"),
        ("pythondocs", "did you mean 'python-docs'?"),
        ("Salesforce/wikitext", "write 'hub:Salesforce/wikitext'"),
        ("hub:wikitext", "write hub:owner/name"),
        ("hub:", "write hub:owner/name"),
        ("python-docs#text", "has no columns"),
    ],
)
def test_spec_that_means_nothing_gives_an_error_of_one_line_with_the_remedy(spec: str, said: str) -> None:
    assert said in message_of(spec)


def test_column_of_a_text_file_gives_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert "plain text and has no columns" in message_of(f"{tmp_path / 'a.txt'}#text")


def test_folder_without_usable_files_or_with_several_kinds_gives_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    assert "holds no .txt" in message_of(str(tmp_path))
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.csv").write_text("x")
    assert "mixes csv and text files" in message_of(str(tmp_path))


def test_bad_file_in_a_folder_is_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["a"])
    (tmp_path / "b.jsonl").write_text("{")
    assert "b.jsonl" in message_of(str(tmp_path))


def test_files_of_a_folder_with_different_columns_give_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    (tmp_path / "b.jsonl").write_text('{"other": "b"}')
    assert "the 2 files from" in message_of(str(tmp_path))


# The Hub


class Hub:
    """Stands in for `datasets.load_dataset`: data sets as split → rows, and what was asked for."""

    def __init__(self, **splits: list[dict[str, Any]]) -> None:
        self.splits = splits
        self.calls: list[dict[str, Any]] = []

    def __call__(self, path: str, name: str | None = None, *, split: str, streaming: bool, **rest: Any) -> Any:
        self.calls.append({"path": path, "name": name, "split": split, "streaming": streaming, **rest})
        if split not in self.splits:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(self.splits)}.')
        rows = self.splits[split]
        return IterableDataset.from_generator(lambda: iter(rows)) if streaming else Dataset.from_list(rows)


@pytest.mark.parametrize(
    ("spec", "path", "config", "split"),
    [
        ("hub:owner/name", "owner/name", None, "train"),
        ("hub:owner/name/config", "owner/name", "config", "train"),
        ("hub:owner/name:test", "owner/name", None, "test"),
        ("hub:owner/na.me_2/con-fig:test#text", "owner/na.me_2", "con-fig", "test"),
    ],
)
def test_hub_spec_asks_for_its_data_set_config_and_split(
    monkeypatch: pytest.MonkeyPatch, spec: str, path: str, config: str | None, split: str
) -> None:
    hub = Hub(train=[{"text": "train"}], test=[{"text": "test"}])
    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert load_documents(spec) == [split]
    (call,) = hub.calls
    assert (call["path"], call["name"], call["split"]) == (path, config, split)
    assert "trust_remote_code" not in call


def test_split_test_falls_back_to_validation_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(validation=[{"text": "validation"}])
    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert load_documents("hub:owner/name", split="test") == ["validation"]
    assert [call["split"] for call in hub.calls] == ["test", "validation"]
    assert "Should be one of ['validation']); name a split" in message_of("hub:owner/name", split="train")
    assert "Unknown split test" in message_of("hub:owner/name:test").replace('"', "")


def test_wikitext2_is_its_lines_as_one_document_joined_as_in_the_usual_protocol(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = ["", " = Title = \n", "", " text \n"]
    hub = Hub(test=[{"text": row} for row in rows])
    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert load_documents("wikitext2", split="test") == ["\n\n".join(rows)]
    assert (hub.calls[0]["path"], hub.calls[0]["name"]) == ("Salesforce/wikitext", "wikitext-2-raw-v1")


def test_ptb_is_taken_from_the_parquet_branch_as_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(train=[{"sentence": "a b"}, {"sentence": "c"}])
    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert load_documents("ptb") == ["a b c"]
    assert hub.calls[0]["revision"] == "refs/convert/parquet"
    assert hub.calls[0]["data_files"] == {"train": "penn_treebank/train/0000.parquet"}


def test_c4_is_the_first_rows_of_one_file_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = HUB_TEXTS["c4"].limit
    assert limit is not None
    hub = Hub(validation=[{"text": str(number)} for number in range(limit + 5)])
    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert load_documents("c4", split="test") == [str(number) for number in range(limit)]
    assert [call["split"] for call in hub.calls] == ["validation"]
    assert hub.calls[0]["streaming"]
    assert hub.calls[0]["data_files"] == {"validation": "en/c4-validation.00000-of-00008.json.gz"}


def test_short_name_without_the_split_gives_an_error() -> None:
    assert "c4 has no split 'dev'; choose one of ['train', 'validation']" in message_of("c4", split="dev")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'owner/name' on the Hub\n(OfflineModeIsEnabled)"),
        datasets.exceptions.DatasetNotFoundError(
            "Dataset 'owner/name' doesn't exist on the Hub or cannot be accessed."
        ),
        RuntimeError("Dataset scripts are no longer supported, but found name.py"),
        ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']"),
    ],
)
def test_hub_that_fails_gives_an_error_that_points_to_local_files(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = message_of("hub:owner/name")
    assert str(error).split("\n", maxsplit=1)[0].rstrip(".") in message
    assert "or give a local file" in message


def test_offline_hub_gives_an_error_that_points_to_local_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "or give a local file" in message_of("hub:secateur-tests/no-such-data")


# The text that ships with Python


def test_python_docs_are_the_topics_of_pydoc_sorted_by_name() -> None:
    from pydoc_data.topics import topics

    documents = load_documents("python-docs")
    assert documents == [text for _, text in sorted(topics.items())]
    assert sum(map(len, documents)) > 100_000


@pytest.mark.parametrize("content", [None, [("with", "text")], {"with": b"bytes"}])
def test_python_docs_of_an_unknown_layout_give_an_error(monkeypatch: pytest.MonkeyPatch, content: Any) -> None:
    module = ModuleType("pydoc_data.topics")
    if content is not None:
        module.topics = content  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", module)
    assert "give a local file" in message_of("python-docs")


# Real data


def test_shared_data_has_the_rows_and_bytes_that_its_table_says(shared_data: Path) -> None:
    (document,) = load_documents(str(shared_data / "wikitext2" / "test.txt"))
    assert len(document.splitlines()) == 2891
    assert len(document.encode()) == 1290547 - 2891  # the file ends its lines with "\r\n"
    assert len(load_documents(str(shared_data / "c4"))) == 1280 + 200
    assert len(load_documents(f"{shared_data / 'arc_easy' / 'test.jsonl'}#question")) == 2376
