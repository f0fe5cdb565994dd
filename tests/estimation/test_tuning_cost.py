"""A fine-tuning's tokens against numbers by hand, its memory against weights that are counted and a Trainer that is watched."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from secateur.decoder import Decoder
from secateur.errors import RequestError
from secateur.estimation.dry_run import _Allocations, dry_run, forward_flops
from secateur.estimation.estimate import PROCESS_BYTES, Phase, Setting
from secateur.estimation.task_size import TaskSize
from secateur.estimation.tuning import TuningCost, tuning_peak, tuning_phases
from secateur.methods.gradpruner import GradPruner
from secateur.methods.shortgpt import ShortGPT
from secateur.step import RowSize, Step
from secateur.surgery.live import remove_layers_
from secateur.training.completion import IGNORED
from secateur.training.settings import FineTuning
from secateur.training.supervised import fine_tune_

CONFIG = LlamaConfig(
    vocab_size=211, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
)  # fmt: skip
LAYER = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
TOTAL = 2 * 211 * 32 + 6 * LAYER + 32
ADAPTERS = 2 * (
    2 * 64 + 2 * 48 + 3 * 96
)  # of rank 2 on a layer; q and o: 32 → 32, k and v: 32 → 16, the others 32 ↔ 64
DROP = 2
SINGLE = {"batch_size": 8, "micro_batch": 1, "epochs": 2, "max_length": 40, "lora_rank": 2}
TASK = TaskSize(num_train=40, num_validation=5, num_test=10, mean_tokens=20, completion_tokens=4, num_options=3)


def cost(*, task: TaskSize = TASK, method: Any = None, **more: Any) -> TuningCost:
    of_cost = {name: more.pop(name) for name in ("tune_dense", "speed") if name in more}
    tuning = FineTuning(**{**SINGLE, **more})
    return TuningCost(
        config=CONFIG, method=method or GradPruner(scoring_batch=1), drop=DROP, tuning=tuning, task=task,
        rows=task.rows(tuning.max_length, 64), **of_cost,
    )  # fmt: skip


def phases(asked: TuningCost, **setting: Any) -> dict[str, Phase]:
    return {phase.name: phase for phase in tuning_phases(asked, Setting(**{"dtype": torch.float32, **setting}))}


# ---- tokens ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("train", "passes"), [("lora", 2.3), ("full", 3.3)])
def test_tokens_are_those_of_each_phase_by_hand(train: str, passes: float) -> None:
    steps, left = 2 * 40 / 8, 4 / 6
    trained = steps * 8 * 20 * passes
    validated, tested = 2 * 5 * 3 * 20, 10 * 3 * 20
    expected = {
        "measure": tested, "choose": 10 * 20 * 2.3, "fine-tune": trained * left, "validate": validated * left,
        "prove": tested * left,
    }  # fmt: skip
    assert cost(train=train).tokens() == pytest.approx(expected)
    dense = {**expected, "measure": 2 * tested, "tune dense": trained + validated}
    assert cost(train=train, tune_dense=True).tokens() == pytest.approx(dense)


def test_activations_that_are_computed_again_are_a_pass_more() -> None:
    plain, again = (cost(trainer=options).tokens()["fine-tune"] for options in ({}, {"gradient_checkpointing": True}))
    assert again / plain == pytest.approx(3.3 / 2.3)


def test_as_many_are_validated_and_tested_on_as_tune_holds_out_itself() -> None:
    few, many = (TaskSize(num_train=count, mean_tokens=20) for count in (40, 9000))
    for task, validated, tested in ((few, 4, 4), (many, 200, 500)):
        tokens = cost(task=task, epochs=1).tokens()
        assert tokens["measure"] == tested * 20
        assert tokens["validate"] == pytest.approx(validated * 20 * 4 / 6)


def test_a_method_that_looks_at_text_has_windows_of_the_training_examples() -> None:
    asked = cost(method=ShortGPT())
    assert asked.windows.input_ids.shape == (800 // 64, 64)  # of the model's context
    assert asked.tokens()["choose"] == ShortGPT().cost(6, DROP, asked.windows).choose_tokens
    absorbing = cost(method=GradPruner(absorb="projection"))
    assert absorbing.tokens()["prepare"] == pytest.approx(1.6 * 12 * 64)
    assert phases(absorbing)["prepare"].tokens == absorbing.tokens()["prepare"]


def test_padding_is_to_the_longest_of_what_runs_together() -> None:
    rows = RowSize(mean=100, longest=1000, learnt=2)
    drawn = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0)) * 45 + 100
    assert rows.padded(1) == 100
    for together in (2, 4, 8):
        assert rows.padded(together) == pytest.approx(drawn[:, :together].amax(dim=1).mean().item(), rel=0.02)
    assert RowSize(mean=100, longest=120, learnt=2).padded(8) == 120
    assert (rows.logits(4), RowSize(mean=5, longest=7, learnt=2).logits(4)) == (8, 7)


# ---- operations ------------------------------------------------------------------------------------------------------------


def test_operations_leave_out_the_head_where_nothing_is_learnt() -> None:
    matrices, head = 6 * (LAYER - 2 * 32), 211 * 32
    forward = 3 * (2 * 20 * matrices + 2 * 4 * head + 6 * 4 * 20 * 20 * 32)
    assert forward_flops(CONFIG, sequences=3, tokens=20, logits=4) == forward
    found = phases(cost())
    assert found["fine-tune"].flops == pytest.approx(found["fine-tune"].tokens * forward / 60)
    whole = forward_flops(CONFIG, sequences=1, tokens=64) / 64
    by_text = phases(cost(method=ShortGPT()))["choose"]
    assert by_text.flops == pytest.approx(by_text.tokens * whole)


# ---- memory ----------------------------------------------------------------------------------------------------------------


def test_all_weights_that_are_left_have_a_gradient_and_two_moments() -> None:
    found = phases(cost(train="full", tune_dense=True, micro_batch=8))
    left = 4 * (TOTAL - DROP * LAYER)
    step = found["fine-tune"].step
    assert (step.weights_bytes, step.trained_bytes, step.moments_bytes) == (left, left, 2 * left)
    assert found["fine-tune"].memory_bytes >= 4 * left + PROCESS_BYTES
    assert found["validate"].step.kept_bytes == 2 * left
    dense = found["tune dense"].step
    assert (dense.weights_bytes, dense.trained_bytes) == (2 * 4 * TOTAL, 4 * TOTAL)  # beside the one that is pruned
    assert found["choose"].step.weights_bytes == 4 * TOTAL


def test_adapters_of_the_layers_that_are_left_have_a_gradient_and_two_moments() -> None:
    found = phases(cost(method=GradPruner(scoring_batch=1, scoring_rank=4)))
    step, adapters = found["fine-tune"].step, 4 * (6 - DROP) * ADAPTERS
    assert (step.weights_bytes, step.trained_bytes) == (4 * (TOTAL - DROP * LAYER), adapters)
    assert step.moments_bytes == 2 * adapters
    scoring = found["choose"].step
    assert scoring.trained_bytes == 4 * 6 * 2 * ADAPTERS
    assert scoring.kept_bytes == 10 * scoring.trained_bytes  # the gradients of ten steps, for the merge


@pytest.mark.parametrize("train", ["lora", "full"])
def test_peak_is_that_of_the_trainer_on_a_model_that_was_cut(train: Literal["lora", "full"], tmp_path: Path) -> None:
    tuning = FineTuning(**{**SINGLE, "train": train, "batch_size": 4, "micro_batch": 4, "epochs": 2})
    prompt, completion = list(range(3, 39)), [5, 6]
    rows = [{"input_ids": prompt + completion, "labels": [IGNORED] * 36 + completion}] * 8
    with _Allocations() as memory:  # of real storages
        model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIG)).eval()
        remove_layers_(model, range(6 - DROP, 6))
        memory.restart()
        fine_tune_(Decoder(model), rows, settings=tuning, work=tmp_path, save=False)
    step = tuning.step(RowSize(mean=38, longest=38, learnt=2), without=DROP)
    found = dry_run(CONFIG, step, sequences=1, tokens=1, dtype=torch.float32)
    assert memory.peak < found.peak_bytes < 1.12 * memory.peak  # real sums of gradients reuse their storage


def test_logits_of_what_is_learnt_alone_are_held() -> None:
    few, all_of_them = (
        dry_run(CONFIG, Step(trains="lora", logits=logits), sequences=2, tokens=40, dtype=torch.float32).step_bytes
        for logits in (4, None)
    )
    assert all_of_them - few > 2 * 4 * 2 * 35 * 211  # the logits, and what is computed of them


def test_scoring_takes_its_losses_row_by_row_however_much_is_learnt() -> None:
    """No float32 copies of all logits: those of all tokens are four bytes each, in 16 rows of 40 tokens."""
    part, whole = (
        phases(cost(task=TaskSize(num_train=40, mean_tokens=40, completion_tokens=tokens)))["measure"].passing_bytes
        for tokens in (39, None)
    )
    assert whole - part == pytest.approx(16 * 211 * 4, abs=16 * 211 * 4)


def test_16_bit_weights_are_wide_from_the_choice_to_the_end_of_the_training_unless_their_dtype_was_asked_for() -> None:
    asked = cost(train="full")
    wide, narrow = (phases(asked, dtype=torch.bfloat16, wide=wide) for wide in (True, False))
    left = TOTAL - DROP * LAYER
    assert {name: phase.step.weights_bytes for name, phase in wide.items()} == {
        "measure": 2 * TOTAL, "choose": 4 * TOTAL, "fine-tune": 4 * left, "validate": 4 * left, "prove": 2 * left,
    }  # fmt: skip
    assert {name: phase.step.weights_bytes for name, phase in narrow.items()} == {
        "measure": 2 * TOTAL, "choose": 2 * TOTAL, "fine-tune": 2 * left, "validate": 2 * left, "prove": 2 * left,
    }  # fmt: skip


def test_the_proof_holds_the_pruned_model_twice_and_for_its_speed_the_dense_one() -> None:
    left = 4 * (TOTAL - DROP * LAYER)
    assert phases(cost(speed=False))["prove"].step.kept_bytes == left
    timed = phases(cost(task=TaskSize(num_train=9, num_test=1, mean_tokens=2, completion_tokens=1), max_length=2))
    assert timed["prove"].step.kept_bytes == left + 4 * TOTAL


def test_a_training_is_shared_out_and_the_dense_model_beside_it_is_whole() -> None:
    asked = cost(train="full", tune_dense=True)
    whole, shared = phases(asked), phases(asked, devices=4, sharded=True)
    assert [name for name in whole if whole[name].memory_bytes != shared[name].memory_bytes] == [
        "tune dense", "fine-tune", "validate",
    ]  # fmt: skip
    assert shared["tune dense"].weights_bytes == 4 * TOTAL * (1 + 1 / 4)
    assert shared["fine-tune"].weights_bytes == TOTAL - DROP * LAYER


def test_the_peak_is_that_of_the_phase_that_takes_most() -> None:
    asked, setting = cost(train="full"), Setting(dtype=torch.float32)
    assert tuning_peak(asked, setting) == max(phase.memory_bytes for phase in tuning_phases(asked, setting))


@pytest.mark.parametrize(
    "wrong", [{"num_train": 0}, {"num_test": 0}, {"num_validation": -1}, {"mean_tokens": 0.5}, {"num_options": 0}]
)
def test_less_than_one_of_anything_is_refused_with_its_value(wrong: dict[str, Any]) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(RequestError, match=f"{name} must be 1 or more, not {value}"):
        TaskSize(**{"num_train": 1, **wrong})
