"""Weights that are written while they are being verified: right in the end whatever was foreseen, and never left behind."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from families.family_models import build as build_any
from listening import Listener
from secateur import disk, progress
from secateur.errors import ModelError, WriteError
from secateur.plan import PruningPlan
from secateur.surgery import early, files
from secateur.surgery.files import cut_checkpoint
from surgery.test_files import expect_refusal, gemma3_with_eyes, save, stored, tree


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The names of tensors that were begun with, a set a cut."""
    seen: list[set[str]] = []
    original = early.EarlyShards.begin

    def begin(self: Any, shards: Any) -> None:
        seen.append({name for tensors in shards.values() for name in tensors})
        original(self, shards)

    monkeypatch.setattr(early.EarlyShards, "begin", begin)
    return seen


def test_what_is_foreseen_is_what_is_verified_in_the_end(tiny_checkpoint, tmp_path, begun):
    cut_checkpoint(tiny_checkpoint, tmp_path / "out", [1, 4])
    assert begun == [set(stored(tmp_path / "out"))]


def test_what_was_foreseen_wrongly_is_written_again(tiny_checkpoint, tmp_path, begun, monkeypatch):
    cut_checkpoint(tiny_checkpoint, tmp_path / "right", [1, 4], max_shard_size="60KB")
    foreseen = files._foreseen
    monkeypatch.setattr(files, "_foreseen", lambda tensors, dropped: foreseen(tensors, [2]))
    cut_checkpoint(tiny_checkpoint, tmp_path / "out", [1, 4], max_shard_size="60KB")
    assert begun[0] != begun[1]
    assert tree(tmp_path / "out") == tree(tmp_path / "right")


@pytest.mark.parametrize("family", ["gemma3n_text", "gemma4", "gemma4_text"])
def test_tensors_over_all_layers_are_foreseen_and_written_once(family, tmp_path, monkeypatch):
    written = []
    real = early.write_shard
    monkeypatch.setattr(early, "write_shard", lambda path, *args: written.append(path.name) or real(path, *args))
    source = save(build_any(family), tmp_path / "dense")
    report = cut_checkpoint(source, tmp_path / "out", [1], max_shard_size="30KB")
    assert len(report.weights) > 1
    assert sorted(written) == sorted(report.weights)


def test_nothing_is_begun_where_names_leave_it_open_or_weights_are_computed(tiny_checkpoint, tmp_path, begun):
    source = save(gemma3_with_eyes(), tmp_path / "two stacks")
    cut_checkpoint(source, tmp_path / "a", [2])
    folds = [{"into": 1, "layers": [2]}]
    plan = PruningPlan(num_layers=6, order=(2,), provenance={"folds": folds})
    assert cut_checkpoint(tiny_checkpoint, tmp_path / "b", plan).num_folded
    cut_checkpoint(tiny_checkpoint, tmp_path / "c", [2], dry_run=True)
    assert begun == []


def test_what_is_refused_after_the_copying_began_leaves_nothing_and_no_thread(tiny_checkpoint, tmp_path, begun):
    dense = Path(shutil.copytree(tiny_checkpoint, tmp_path / "dense"))
    (dense / "config.json").write_text(
        (dense / "config.json").read_text().replace('"hidden_size": 32', '"hidden_size": 64')
    )
    expect_refusal(ModelError, "in the shape", dense)
    assert len(begun) == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "early shards"]


def test_a_disk_that_is_full_meanwhile_is_said_in_the_end(tiny_checkpoint, tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(early, "write_shard", full)
    with pytest.raises(WriteError, match="the disk is full"):
        cut_checkpoint(tiny_checkpoint, tmp_path / "out", [1])
    assert tree(tmp_path) == {}


def test_less_room_than_the_cut_takes_is_refused_before_anything_is_copied(
    tiny_checkpoint, tmp_path, begun, monkeypatch
):
    monkeypatch.setattr(disk, "free_space", lambda _: 1000)
    with pytest.raises(WriteError, match=r"the disk is full: .*it takes about \d+\.\d kB, and 1\.0 kB is free"):
        cut_checkpoint(tiny_checkpoint, tmp_path / "out", [1])
    assert begun == []
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("folds", [False, True], ids=["begun early", "computed"])
def test_what_is_written_and_the_room_for_it_are_said_before_and_all_bytes_are_counted(
    tiny_checkpoint, tmp_path, monkeypatch, folds
):
    monkeypatch.setattr(progress, "_MEGABYTE", 1)
    monkeypatch.setattr(files, "free_space", lambda _: 5 * 10**9)
    listener = Listener()
    plan = PruningPlan(num_layers=6, order=(2,), provenance={"folds": [{"into": 1, "layers": [2]}]} if folds else {})
    report = cut_checkpoint(tiny_checkpoint, tmp_path / "out", plan, progress=listener)
    written = sum(len(raw) for _, _, raw in stored(tmp_path / "out").values())
    assert report.num_bytes == written
    assert listener.steps == [["copying the weights (MB)", written, written]]
    assert listener.notes == [f"{written / 1000:.1f} kB of weights to write, where 5.0 GB are free"]


def test_a_thread_that_is_not_wanted_any_more_stops_at_the_next_tensor(tmp_path, monkeypatch):
    written = []

    def slowly(_: Path, tensors: Any, __: Any, done: Any) -> None:
        for name in tensors:
            time.sleep(0.02)
            written.append(name)
            done(1)

    monkeypatch.setattr(early, "write_shard", slowly)
    with early.EarlyShards(tmp_path, {}) as writing:
        writing.begin({"a": dict.fromkeys(range(1000))})
    assert len(written) <= 2


@pytest.mark.parametrize("begins", [True, False])
def test_an_interrupt_while_the_thread_is_started_is_what_comes_out(tmp_path, monkeypatch, begins):
    class Interrupted(threading.Thread):
        def start(self):
            if begins:
                threading.Timer(0.1, super().start).start()
            raise KeyboardInterrupt

    monkeypatch.setattr(early, "Thread", Interrupted)
    with pytest.raises(KeyboardInterrupt), early.EarlyShards(tmp_path, {}) as writing:
        writing.begin({"model.safetensors": {}})
    assert not [thread for thread in threading.enumerate() if thread.name == "early shards"]
    assert not list(tmp_path.iterdir())
