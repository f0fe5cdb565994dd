"""The room of several processes, without any: what is the same with one, and what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from secateur import processes, signals
from secateur.data.task import TaskSettings
from secateur.errors import RequestError
from secateur.methods.gradpruner import GradPruner
from secateur.processes import by_first, count, is_first, joined, share_out
from secateur.request import Target
from secateur.training.igia import IGIACallback
from secateur.training.trainer import rows_at_once
from secateur.tuning import tune


@pytest.fixture
def of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes._group, "count", 2)
    monkeypatch.setattr(processes._group, "joined", True)


def test_one_process_computes_everything_in_order_and_counts_what_is_done() -> None:
    done: list[int] = []
    assert share_out(lambda item: 2 * item, [3, 1, 2], done.append, size=lambda item: item) == [6, 2, 4]
    assert done == [3, 1, 2]
    assert (count(), is_first()) == (1, True)


def test_a_first_signal_takes_effect_between_two_items() -> None:
    said, done = [], []

    def compute(item: int) -> None:
        if item == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        done.append(item)

    with signals.watched(said.append), pytest.raises(KeyboardInterrupt):
        share_out(compute, range(3))
    assert done == [0, 1]
    assert said == ["finishing this batch; once more stops at once"]


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_takes_every_second_item_and_repeats_the_last_if_it_has_none(
    monkeypatch: pytest.MonkeyPatch, of_two: None, rank: int
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(processes._group, "rank", rank)
    monkeypatch.setattr(processes, "in_order", lambda own, total: own)
    share_out(seen.append, ["a", "b", "c"])
    assert seen == [["a", "c"], ["b", "c"]][rank]


def test_what_the_first_does_alone_is_not_shared_out(monkeypatch: pytest.MonkeyPatch, of_two: None) -> None:
    monkeypatch.setattr(processes, "agreed", lambda value: value)
    assert by_first(count) == 1
    assert count() == 2


def test_an_error_of_the_first_is_raised_and_the_group_is_one_again(
    monkeypatch: pytest.MonkeyPatch, of_two: None
) -> None:
    monkeypatch.setattr(processes, "agreed", lambda value: value)

    def fail() -> None:
        raise RequestError("no")

    with pytest.raises(RequestError, match="no"):
        by_first(fail)
    assert count() == 2


def test_rows_of_a_step_are_shared_evenly_or_refused_with_the_remedy(of_two: None) -> None:
    assert rows_at_once(8, 8) == 4
    assert rows_at_once(12, 4) == 2  # six rows a process, of which four at once would not be even
    with pytest.raises(RequestError, match="a step of 3 rows cannot be shared by 2 processes; choose a multiple of 2"):
        rows_at_once(3, 3)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "say fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "on GPUs only"),
    ],
)
def test_what_trainings_here_cannot_give_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for kind in ("MULTI_CPU", "NO"):  # several processes, and one
        with pytest.raises(RequestError, match=said):
            processes._refuse_unsupported(kind)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"ZERO_STAGE": "3"}, "stage 3 keeps no whole weights"),
        ({"ZERO_STAGE": "0"}, "stage 0 shares nothing out"),
        ({"CONFIG_FILE": '{"zero_optimization": {"stage": 3}}'}, "stage 3 keeps no whole weights"),
        ({"CONFIG_FILE": "/no/such/file.json"}, "configuration of DeepSpeed: Expected .* /no/such/file.json"),
        ({"ZERO_STAGE": "2"}, "DeepSpeed, which is not installed: pip install deepspeed"),
    ],
)
def test_what_deepspeed_cannot_give_here_is_refused_before_processes_meet(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, str], said: str
) -> None:
    monkeypatch.setattr(processes, "find_spec", lambda name: None)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for name, value in asked.items():
        monkeypatch.setenv(f"ACCELERATE_DEEPSPEED_{name}", value)
    with pytest.raises(RequestError, match=said), joined():
        pytest.fail("joined")


def test_without_a_launcher_nothing_heavy_is_imported() -> None:
    words = "import sys; from secateur.processes import joined\nwith joined(): print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    with joined():
        assert count() == 1


def test_generation_is_refused_where_trainings_are_sharded(
    monkeypatch: pytest.MonkeyPatch, of_two: None, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(processes, "agreed", lambda value: value)
    with pytest.raises(RequestError, match="choose another --metric, or DDP"):
        tune(
            tiny_checkpoint, task=TaskSettings(data="unread.jsonl"), target=Target(drop=1), out=tmp_path / "out",
            metric="generation",
        )  # fmt: skip


def test_gradpruner_is_refused_under_deepspeed_unless_nothing_reads_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes._group, "zero_stage", 2)
    with pytest.raises(RequestError, match="choose another --method, or go without DeepSpeed"):
        GradPruner(merge="none").check_launcher(chooses=True)
    GradPruner(merge="none").check_launcher(chooses=False)
    with pytest.raises(RequestError, match="which DeepSpeed does not show"):
        GradPruner().check_launcher(chooses=False)


def test_deepspeed_of_the_launcher_is_refused_by_the_callback(tiny_model: Any) -> None:
    class Arguments:
        deepspeed, deepspeed_plugin, fp16 = None, object(), False

    class State:
        global_step, max_steps = 0, 10

    with pytest.raises(RequestError, match="no gradient can be read"):
        IGIACallback().on_train_begin(Arguments(), State(), None, model=tiny_model)
