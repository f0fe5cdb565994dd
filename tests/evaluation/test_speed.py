"""Time taken in turn: who is measured when, what exactly is timed, and that the tokens are the greedy ones."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from secateur.errors import RequestError, RunError
from secateur.evaluation import speed
from secateur.evaluation.speed import Laps, SpeedSettings, Workload, measure_speed, time_once


def test_models_are_measured_in_turn_after_a_warm_up(model, monkeypatch):
    other = copy.deepcopy(model)
    calls = []

    def time(measured, prompt, new_tokens, *, cuda_graphs):
        calls.append(("a" if measured is model else "b", len(prompt), new_tokens))
        return Laps(prefill=len(calls), first_token=0.0, decode=0.0)

    monkeypatch.setattr(speed, "time_once", time)
    settings = SpeedSettings(prompt_tokens=20, new_tokens=8, batch_sizes=(1, 3), repeats=2)
    laps = measure_speed({"dense": model, "pruned": other}, settings)
    turn = [("a", 1, 8), ("b", 1, 8), ("a", 3, 8), ("b", 3, 8)]
    assert calls == [(name, batch, 4) for name, batch, _ in turn] + 2 * turn
    numbers = {
        load.batch_size: {name: [lap.prefill for lap in laps[load][name]] for name in laps[load]} for load in laps
    }
    assert numbers == {1: {"dense": [5, 9], "pruned": [6, 10]}, 3: {"dense": [7, 11], "pruned": [8, 12]}}


def test_laps_are_the_times_between_the_marks_of_a_fake_clock(model, monkeypatch):
    """A clock that a pass moves by one second, and choosing a token by none: what is timed is counted in passes."""
    now = 0.0

    def forward(*args, plain=model.forward, **kwargs):
        nonlocal now
        now += 1.0
        return plain(*args, **kwargs)

    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(model, "forward", forward)
    assert time_once(model, torch.arange(8)[None], 5) == Laps(prefill=1.0, first_token=1.0, decode=5.0)


def test_the_tokens_written_are_the_greedy_continuation_of_each_prompt(model, monkeypatch):
    chosen = []
    plain = speed._likeliest
    monkeypatch.setattr(speed, "_likeliest", lambda *args: chosen.append(plain(*args)) or chosen[-1])
    prompt = torch.stack([torch.arange(8), torch.arange(8, 16)])
    time_once(model, prompt, 5)
    expected = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert torch.equal(torch.cat(chosen, dim=1), expected[:, 8:])


def test_models_keep_their_mode(model):
    model.train()
    laps = measure_speed({"only": model}, SpeedSettings(prompt_tokens=8, new_tokens=2, batch_sizes=(1,), repeats=1))
    (measured,) = laps[Workload()]["only"]
    assert 0 < measured.prefill <= measured.first_token
    assert all(part.training for part in model.modules())


def test_prompts_are_the_same_tokens_that_the_smaller_vocabulary_has(model):
    small = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=10)))
    prompt = speed.made_up_prompt([model, small], 3, 50)
    assert prompt.shape == (3, 50)
    assert prompt.max() == 9
    assert torch.equal(prompt, speed.made_up_prompt([small, model], 3, 50))


def test_a_context_just_long_enough_is_taken_and_one_token_shorter_is_refused(model):
    settings = {"batch_sizes": (1,), "repeats": 1, "new_tokens": 4}
    assert measure_speed({"only": model}, SpeedSettings(prompt_tokens=60, **settings))
    with pytest.raises(RequestError, match="only has a context of 64 tokens, fewer than 61 prompt tokens and 4 new"):
        measure_speed({"only": model}, SpeedSettings(prompt_tokens=61, **settings))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"prompt_tokens": 0}, "prompt_tokens must be 1 or more, not 0"),
        ({"new_tokens": -1}, "new_tokens must be 1 or more, not -1"),
        ({"repeats": 0}, "repeats must be 1 or more, not 0"),
        ({"batch_sizes": ()}, "give at least one"),
        ({"batch_sizes": (1, 0)}, "a batch size must be 1 or more, not 0"),
        ({"batch_sizes": (4, 1, 4)}, "the batch size 4 is given twice"),
    ],
)
def test_wrong_settings_are_refused(wrong, says):
    with pytest.raises(RequestError, match=says):
        SpeedSettings(**wrong)


def test_cuda_graphs_without_a_cuda_device_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match="need a CUDA device"):
        SpeedSettings(cuda_graphs=True)


def test_cuda_graphs_are_measured_besides_the_plain_way(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loads = SpeedSettings(batch_sizes=(1, 8), cuda_graphs=True).workloads()
    assert [(load.batch_size, load.cuda_graphs) for load in loads] == [(1, False), (1, True), (8, False), (8, True)]


def test_no_model_is_refused():
    with pytest.raises(RequestError, match="no model"):
        measure_speed({}, SpeedSettings())


def test_a_full_device_is_said_with_the_remedy(model, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(RunError, match=r"a batch of 2 do not fit .*smaller batch sizes"):
        time_once(model, torch.zeros(2, 4, dtype=torch.long), 1)
