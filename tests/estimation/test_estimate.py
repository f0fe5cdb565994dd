"""Phases against their cost, sharding against arithmetic, hardware against its data sheet."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from secateur.data import TokenBatches
from secateur.errors import RequestError
from secateur.estimation.estimate import PROCESS_BYTES, Setting, estimated_peak, estimated_phases
from secateur.estimation.hardware import CARDS, hardware_here, hardware_named
from secateur.methods import Cost
from secateur.step import Step

CONFIG = LlamaConfig(
    vocab_size=211, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip
COST = Cost(
    choose_tokens=100, prepare_tokens=70, recover_tokens=30, choosing=Step(trains="gates"),
    preparing=Step(trains="full", sequences=2), recovering=Step(trains="lora", sequences=1),
)  # fmt: skip


def windows(count: int) -> TokenBatches:
    return TokenBatches(torch.zeros(count, 16, dtype=torch.long), 4, "none")


def phases(cost: Cost = COST, **setting: Any) -> dict[str, Any]:
    found = estimated_phases(CONFIG, cost, windows(8), windows(4), Setting(**{"dtype": torch.float32, **setting}))
    return {phase.name: phase for phase in found}


def test_phases_take_the_tokens_of_the_cost_and_the_operations_of_forward_passes() -> None:
    found = phases()
    assert {name: phase.tokens for name, phase in found.items()} == {
        "measure": 3 * 64, "choose": 100, "prepare": 70, "recover": 30, "cut and prove": 64,
    }  # fmt: skip
    matrices = 211 * 32 + 6 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    per_token = 2 * matrices + 6 * 4 * 16 * 32
    assert all(phase.flops == pytest.approx(phase.tokens * per_token) for phase in found.values())
    peak = estimated_peak(CONFIG, COST, windows(8), windows(4), Setting(dtype=torch.float32))
    assert peak == found["prepare"].memory_bytes


def test_a_method_that_only_chooses_has_no_further_phases() -> None:
    assert list(phases(Cost(choose_tokens=5))) == ["measure", "choose", "cut and prove"]


def test_sixteen_bit_weights_are_trained_in_32_and_run_in_16() -> None:
    wide, narrow = phases(), phases(dtype=torch.bfloat16)
    assert narrow["prepare"].step.trained_bytes == wide["prepare"].step.trained_bytes
    assert 2 * narrow["measure"].step.weights_bytes == wide["measure"].step.weights_bytes
    assert 2 * narrow["recover"].step.weights_bytes == wide["recover"].step.weights_bytes  # adapters


def test_trainings_alone_are_shared_out_and_each_device_has_two_layers_whole() -> None:
    whole, shared = phases(), phases(devices=4, sharded=True)
    copied = phases(devices=4)
    for name, phase in whole.items():
        assert copied[name].memory_bytes == phase.memory_bytes
        if name not in ("prepare", "recover"):  # measure, choose, cut and prove: the whole model on each device
            assert shared[name].memory_bytes == phase.memory_bytes
            continue
        step = phase.step
        static = step.weights_bytes + step.trained_bytes + step.moments_bytes + step.kept_bytes
        passing = step.peak_bytes - static
        expected = static / 4 + passing + 2 * step.largest_layer_bytes + PROCESS_BYTES
        assert shared[name].memory_bytes == pytest.approx(expected)


def test_a_merge_trains_nothing_and_is_not_shared_out() -> None:
    merge = Cost(choose_tokens=1, prepare_tokens=1, preparing=Step())
    found = phases(merge, devices=4, sharded=True)["prepare"]
    assert (found.trains, found.memory_bytes) == (False, phases(merge)["prepare"].memory_bytes)


def test_the_layers_that_were_cut_off_before_a_recovery_are_whole_on_each_device() -> None:
    cost = Cost(choose_tokens=1, recover_tokens=1, recovering=Step(trains="lora", sequences=1, without=2))
    whole, shared = (phases(cost, **setting)["recover"] for setting in ({}, {"devices": 4, "sharded": True}))
    layer = 4 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32)
    assert whole.weights_bytes == whole.step.weights_bytes
    assert shared.weights_bytes == (whole.step.weights_bytes - 2 * layer) / 4 + 2 * layer


def test_a_card_takes_the_operations_over_two_fifths_of_its_peak_shared_by_its_devices() -> None:
    phase = dataclasses.replace(phases()["measure"], flops=989e12)
    assert phase.seconds_on(CARDS["h100"]) == pytest.approx(2.5)
    assert phase.seconds_on(CARDS["h100"], devices=5) == pytest.approx(0.5)


def test_this_machine_is_timed_on_a_few_layers_and_the_rate_is_that_of_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    laps = [1.0, 2.0] * 2 + [1.0, 20.0] + [3.0, 2.0] * 2  # of two and of four layers in turn: medians 1 and 2
    clock = iter([time for lap in laps for time in (0.0, lap)])
    monkeypatch.setattr("secateur.estimation.hardware.time.perf_counter", lambda: next(clock))
    state = torch.get_rng_state()
    here = hardware_here(CONFIG, sequences=4, tokens=16, dtype=torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    layer, head = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64, 211 * 32
    flops = 4 * (2 * 16 * (6 * layer + head) + 6 * 4 * 16 * 16 * 32)
    assert here.measured
    assert here.flops_per_second == pytest.approx(flops / 3.0)  # half a second a layer, and none for the head
    assert CONFIG.num_hidden_layers == 6


def test_a_model_of_two_layers_is_timed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LlamaConfig(**{**CONFIG.to_dict(), "num_hidden_layers": 2})
    clock = iter([0.0, 4.0] * 5)
    monkeypatch.setattr("secateur.estimation.hardware.time.perf_counter", lambda: next(clock))
    here = hardware_here(config, sequences=1, tokens=16, dtype=torch.float32)
    layer, head = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64, 211 * 32
    assert here.flops_per_second == (2 * 16 * (2 * layer + head) + 2 * 4 * 16 * 16 * 32) / 4


def test_unknown_hardware_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RequestError, match="unknown hardware 'h10'; did you mean 'h100'"):
        hardware_named("h10")
    with pytest.raises(RequestError, match="choose here or one of a10, a100-40gb"):
        hardware_named("quantum")
