import copy
from dataclasses import asdict

import pytest
import torch

from secateur.errors import RequestError
from secateur.evaluation import speed
from secateur.evaluation.speed import measure_speed


def test_models_are_measured_in_turn_after_a_warm_up(model, monkeypatch):
    other = copy.deepcopy(model)
    calls = []

    def time(measured, prompt, new_tokens):
        calls.append(("a" if measured is model else "b", new_tokens))
        return (0.5, 2.0) if measured is model else (0.25, 1.0)

    monkeypatch.setattr(speed, "_time", time)
    results = measure_speed({"dense": model, "pruned": other}, prompt_tokens=20, new_tokens=8, repeats=2)
    assert calls == [("a", 4), ("b", 4), ("a", 8), ("b", 8), ("a", 8), ("b", 8)]
    assert asdict(results["dense"]) == {
        "prefill_tokens_per_second": 40.0,
        "decode_tokens_per_second": 4.0,
        "prompt_tokens": 20,
        "new_tokens": 8,
        "repeats": 2,
    }
    assert results["pruned"].decode_tokens_per_second == 8.0


def test_real_models_give_positive_speeds_and_keep_their_mode(model):
    model.train()
    result = measure_speed({"only": model}, prompt_tokens=8, new_tokens=4, repeats=1)["only"]
    assert result.prefill_tokens_per_second > 0
    assert result.decode_tokens_per_second > 0
    assert all(part.training for part in model.modules())


def test_decoding_is_the_greedy_continuation(model, monkeypatch):
    seen = []
    step = speed._step
    monkeypatch.setattr(speed, "_step", lambda *args: seen.append(args[1].logits[0, -1].argmax().item()) or step(*args))
    prompt = torch.arange(8)[None]
    speed._time(model, prompt, 5)
    expected = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=5,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert seen == expected[0, 8:].tolist()


def test_the_prompt_fits_the_context(model):
    assert measure_speed({"only": model}, prompt_tokens=500, new_tokens=4, repeats=1)["only"].prompt_tokens == 60


@pytest.mark.parametrize("wrong", [{"new_tokens": 64}, {"repeats": 0}, {"prompt_tokens": 0}])
def test_wrong_numbers_are_refused(model, wrong):
    with pytest.raises(RequestError):
        measure_speed({"only": model}, **wrong)


def test_no_model_is_refused():
    with pytest.raises(RequestError):
        measure_speed({})
