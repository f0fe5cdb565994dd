"""A step without data, against the same step with data: storages counted alike, operations by formula, memory by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from secateur.decoder import Decoder
from secateur.errors import ModelError
from secateur.estimation.dry_run import _Allocations, _pass, _trained, dry_run, forward_flops
from secateur.step import Step

SEQUENCES, TOKENS = 3, 16
STEPS = [
    Step(),
    Step(trains="gates"),
    Step(trains="lora", lora_rank=2),
    Step(trains="partial", partial_layers=2),
    Step(trains="full"),
    Step(trains="full", without=2),
    Step(trains="full", teacher=True),
    Step(trains="full", checkpointing=True),
]


@pytest.fixture
def config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=211, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip


def footprint(config: Any, step: Step, **how: Any) -> Any:
    return dry_run(config, step, **{"sequences": SEQUENCES, "tokens": TOKENS, "dtype": torch.float32, **how})


def parameters(config: Any) -> tuple[int, int, int]:
    """Numbers of the table of embeddings or the head, of a layer, and of all."""
    model = AutoModelForCausalLM.from_config(config)
    layer = sum(parameter.numel() for parameter in Decoder(model).layers[0].parameters())
    return config.vocab_size * config.hidden_size, layer, sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "step", STEPS, ids=lambda step: f"{step.trains}-{step.without}-{step.teacher}-{step.checkpointing}"
)
def test_peak_without_data_equals_the_peak_of_the_same_step_with_data(config: Any, step: Step) -> None:
    found = footprint(config, step)
    with _Allocations() as memory:  # of real storages
        decoder = Decoder(AutoModelForCausalLM.from_config(config).eval(), verify=False)
        teacher = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False) if step.teacher else None
        trained = _trained(decoder, step)
        memory.restart()
        with decoder.bypass(range(6 - step.without, 6)):
            _pass(decoder, teacher, torch.zeros(SEQUENCES, TOKENS, dtype=torch.long), step, trained)
    assert found.step_bytes == pytest.approx(memory.peak, rel=0.1)  # real sums of gradients reuse their storage


@pytest.mark.parametrize(
    ("step", "trained"),
    [
        (Step(), lambda table, layer, total: 0),
        (Step(trains="gates"), lambda table, layer, total: 6),
        (Step(trains="full"), lambda table, layer, total: total),
        (Step(trains="full", without=2), lambda table, layer, total: total - 2 * layer),
        (Step(trains="partial", partial_layers=2), lambda table, layer, total: table + 2 * layer),
        # q and o: 32 → 32, k and v: 32 → 16, gate and up: 32 → 64, down: 64 → 32.
        (Step(trains="lora", lora_rank=2), lambda table, layer, total: 6 * 2 * (2 * 64 + 2 * 48 + 3 * 96)),
    ],
    ids=lambda value: value.trains if isinstance(value, Step) else "",
)
def test_what_is_trained_and_its_moments_are_as_large_as_its_numbers_say(config: Any, step: Step, trained: Any) -> None:
    found, count = footprint(config, step), trained(*parameters(config))
    assert found.weights_bytes == 4 * parameters(config)[2]
    assert found.trained_bytes == 4 * count
    assert found.moments_bytes == 8 * count
    assert found.update_bytes >= (found.weights_bytes + 3 * found.trained_bytes if count else 0)
    assert found.peak_bytes >= found.static_bytes


def test_operations_are_two_for_each_weight_and_token_and_four_for_each_pair_of_attention(config: Any) -> None:
    table, layer, _ = parameters(config)
    matrices = table + 6 * (layer - 2 * 32)  # a layer without its two norms
    pairs = 6 * 4 * TOKENS * TOKENS * 32
    forward = SEQUENCES * (2 * matrices * TOKENS + pairs)
    assert forward_flops(config, sequences=SEQUENCES, tokens=TOKENS) == forward


def test_what_is_kept_counts_in_copies_of_what_is_trained_and_of_the_model(config: Any) -> None:
    plain, kept = (
        footprint(config, Step(trains="partial", trained_copies=copies, copies=3 * copies)) for copies in (0.0, 0.5)
    )
    assert kept.kept_bytes == 0.5 * plain.trained_bytes + 1.5 * plain.weights_bytes
    assert kept.peak_bytes == plain.peak_bytes + kept.kept_bytes


def test_gradients_that_are_only_read_have_no_moments(config: Any) -> None:
    found = footprint(config, Step(trains="full", optimizer=False))
    assert (found.moments_bytes, found.update_bytes) == (0, 0)
    assert found.peak_bytes == found.step_bytes


@pytest.mark.parametrize("moments", [0.0, 0.5, 1.0])
def test_an_optimiser_that_keeps_less_than_adamw_takes_so_much_less(config: Any, moments: float) -> None:
    adamw, other = (footprint(config, Step(trains="full", moments=kept)) for kept in (2.0, moments))
    less = (2 - moments) * adamw.trained_bytes
    assert other.moments_bytes == moments * other.trained_bytes
    assert (other.step_bytes, other.update_bytes) == (adamw.step_bytes, adamw.update_bytes - less)
    assert other.static_bytes == adamw.static_bytes - less
    assert other.peak_bytes == adamw.peak_bytes - less  # whichever of the two peaks is higher


def test_half_the_bits_are_half_the_weights_and_a_step_of_its_own_shape_wins_over_that_of_the_windows(
    config: Any,
) -> None:
    assert 2 * footprint(config, Step(), dtype=torch.bfloat16).weights_bytes == footprint(config, Step()).weights_bytes
    assert footprint(config, Step(sequences=1, tokens=4)) == footprint(config, Step(), sequences=1, tokens=4)


def test_nothing_is_allocated_and_nothing_is_drawn_for_a_model_larger_than_the_machine() -> None:
    large = LlamaConfig(hidden_size=16384, intermediate_size=53248, num_hidden_layers=2, num_attention_heads=128)
    state = torch.get_rng_state()
    found = footprint(large, Step(trains="full"))
    assert found.peak_bytes > 4 * 4 * 5e9
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_cannot_be_run_is_one_line_with_the_reason(config: Any) -> None:
    config.num_attention_heads = 5
    with pytest.raises(ModelError, match=r"a llama model cannot be run without data, .*reason: ") as told:
        footprint(config, Step())
    assert "\n" not in str(told.value)
