"""What several devices would take, held to one device with their share of the rows."""

from __future__ import annotations

from typing import Any

import pytest

from secateur import processes
from secateur.estimation.task_size import TaskSize
from secateur.forecast import forecast, forecast_tuning
from secateur.training.recovery import Recovery
from secateur.training.settings import FineTuning


def prune(model: str, rows: int, devices: int) -> dict[str, Any]:
    recovery = Recovery(recover="full", recover_batch=rows)
    found = forecast(
        model, method="shortgpt", drop=2, recovery=recovery, sequence_length=16, num_sequences=8, num_eval_sequences=4,
        hardware="h100", devices=devices,
    )  # fmt: skip
    return {phase["phase"]: phase for phase in found["phases"]}


def tune(model: str, rows: int, devices: int) -> dict[str, Any]:
    task = TaskSize(num_train=32, num_validation=4, num_test=4)
    tuning = FineTuning(train="full", batch_size=rows, micro_batch=rows, max_length=16)
    found = forecast_tuning(
        model, method="shortgpt", drop=2, task=task, tuning=tuning, hardware="h100", devices=devices
    )
    return {phase["phase"]: phase for phase in found["phases"]}


@pytest.mark.parametrize(("command", "training"), [(prune, "recover"), (tune, "fine-tune")])
def test_each_device_holds_the_activations_of_its_own_rows(command, training, tiny_checkpoint):
    of_one, of_four = command(str(tiny_checkpoint), 8, 1)[training], command(str(tiny_checkpoint), 8, 4)[training]
    of_two_rows = command(str(tiny_checkpoint), 2, 1)[training]
    assert of_four["activations_bytes"] == of_two_rows["activations_bytes"] < of_one["activations_bytes"] / 3
    assert of_four["tokens"] == of_one["tokens"]
    assert of_four["seconds"] == pytest.approx(of_one["seconds"] / 4)


def test_supposing_several_processes_ends_with_the_block() -> None:
    with processes.supposed(4):
        assert processes.count() == 4
    assert processes.count() == 1
