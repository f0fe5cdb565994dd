"""Recovery: the budget counted by hand, what each kind trains, and what it must leave as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.errors import RequestError, TrainingDivergedError
from secateur.methods import Cost
from secateur.stages import with_recovery
from secateur.step import Step
from secateur.surgery.live import remove_layers_
from secateur.training.recovery import Recovery, check_recovery, recover_
from tiny_families import build

LENGTH, WINDOWS = 16, 6
KINDS = ("lora", "partial", "full", "distill")


@pytest.fixture
def decoder(tiny_model: Any) -> Decoder:
    """Four layers, cut from six."""
    remove_layers_(tiny_model, (2, 3))
    return Decoder(tiny_model)


@pytest.fixture
def windows() -> TokenBatches:
    """Each window begins with its own number, so that it is known again."""
    input_ids = torch.randint(10, 50, (WINDOWS, LENGTH), generator=torch.Generator().manual_seed(7))
    input_ids[:, 0] = torch.arange(WINDOWS)
    return TokenBatches(input_ids, 4, "made up")


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def recover(decoder: Decoder, windows: TokenBatches, kind: str, **settings: Any) -> dict[str, Any]:
    teacher = copy.deepcopy(decoder.model) if kind == "distill" else None
    return recover_(decoder, windows, settings=Recovery(recover=kind, **settings), teacher=teacher)  # type: ignore[arg-type]


# ---- the budget ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "batch", "micro_batch", "seen", "steps"),
    [
        (None, 2, None, 6, 3),  # one pass
        (6 * LENGTH, 4, None, 6, 2),  # the last step has two windows
        (LENGTH, 2, None, 1, 1),
        (4 * LENGTH + 5, 2, None, 4, 2),  # 5 tokens are not a window
        (15 * LENGTH, 4, 2, 15, 4),  # two passes and a half
    ],
)
def test_tokens_trained_on_are_the_budget_in_whole_windows(
    decoder: Decoder,
    windows: TokenBatches,
    tokens: int | None,
    batch: int,
    micro_batch: int | None,
    seen: int,
    steps: int,
) -> None:
    read: list[int] = []  # the windows that went through the model in training

    def watch(module: Any, _: Any, kwargs: dict[str, Any]) -> None:
        if module.training:
            read.extend(kwargs["input_ids"][:, 0].tolist())

    decoder.model.register_forward_pre_hook(watch, with_kwargs=True)
    settings = {"recover_tokens": tokens, "recover_batch": batch, "recover_micro_batch": micro_batch}
    report = recover(decoder, windows, "full", **settings)
    assert len(read) == report["windows"] == seen
    assert report["tokens"] == seen * LENGTH == Recovery(recover="full", **settings).num_tokens(windows)
    assert report["steps"] == len(report["losses"]) == steps
    assert report["passes"] == pytest.approx(seen / WINDOWS, abs=1e-4)
    counts = sorted(read.count(window) for window in range(WINDOWS))
    assert counts[-1] - counts[0] <= 1  # no window again before all were seen
    for start in range(0, seen, WINDOWS):
        part = read[start : start + WINDOWS]
        assert len(set(part)) == len(part)


def test_budget_below_one_window_is_refused_and_nothing_changed(decoder: Decoder, windows: TokenBatches) -> None:
    start = weights_of(decoder.model)
    with pytest.raises(RequestError, match="recover_tokens=15 is less than one window of 16 tokens; choose 16 or more"):
        recover(decoder, windows, "full", recover_tokens=15)
    assert all(torch.equal(weight, start[name]) for name, weight in decoder.model.named_parameters())


def test_cost_of_a_recovery_is_its_tokens_times_what_a_step_takes(windows: TokenBatches) -> None:
    """Full: forward, backward and the weights' gradients, 3.3 passes, through the half of the layers that is left."""
    before = Cost(choose_tokens=7.0, prepare_tokens=11.0, training_tokens=13, choosing=Step(trains="gates"))
    settings = Recovery(recover="full", recover_tokens=32)
    after = with_recovery(before, settings, 4, 2, windows)
    assert after == Cost(
        choose_tokens=7.0, prepare_tokens=11.0, recover_tokens=32 * 3.3 / 2, training_tokens=13 + 32,
        choosing=Step(trains="gates"), recovering=Step(trains="full", sequences=2, without=2, lora_rank=16, trained_copies=1.0),
    )  # fmt: skip
    assert with_recovery(before, Recovery(), 4, 2, windows) == before


# ---- what is trained -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_recovery_overfits_the_text_it_sees(decoder: Decoder, windows: TokenBatches, kind: str) -> None:
    """Thirty passes over six windows: the loss falls below that of any guess that does not know them, ln 40 = 3.7."""
    rate = 6e-3 if kind != "lora" else 2e-2
    settings = {"recover_tokens": 30 * WINDOWS * LENGTH, "recover_batch": 6, "recover_rate": rate}
    teacher = {} if kind != "distill" else {"distill_weight": 0.01}
    losses = [step["cross_entropy"] for step in recover(decoder, windows, kind, **settings, **teacher)["losses"]]
    assert losses[0] > 4
    assert losses[-1] < 3.5


def test_no_recovery_leaves_every_bit(decoder: Decoder, windows: TokenBatches) -> None:
    start, state = weights_of(decoder.model), torch.random.get_rng_state()
    report = recover(decoder, windows, "none")
    assert (report["kind"], report["steps"], report["tokens"], report["losses"]) == ("none", 0, 0, [])
    assert all(torch.equal(weight, start[name]) for name, weight in decoder.model.named_parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_partial_recovery_trains_the_end_alone_and_a_tied_head_stays_tied(family: str, windows: TokenBatches) -> None:
    model = build(family)
    few = TokenBatches(windows.input_ids % 60 + 3, 2, "made up")
    decoder = Decoder(model)
    start, tied = weights_of(model), model.get_output_embeddings().weight is model.get_input_embeddings().weight
    recover(decoder, few, "partial", recover_layers=2, recover_rate=1e-2)
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, start[name])}
    last = tuple(f"{decoder.path}.{layer}." for layer in (decoder.num_layers - 2, decoder.num_layers - 1))
    behind = {"model.norm.weight", "lm_head.weight"}
    if family == "gpt2":
        behind = {"transformer.ln_f.weight", "transformer.ln_f.bias", "transformer.wte.weight"}
    assert behind < changed
    assert all(name.startswith(last) for name in changed - behind)
    assert tied == (family == "gpt2")
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


def test_lora_is_merged_into_the_linear_weights_and_leaves_no_adapter(decoder: Decoder, windows: TokenBatches) -> None:
    names, start = set(decoder.model.state_dict()), weights_of(decoder.model)
    recover(decoder, windows, "lora", recover_rank=2, recover_rate=1e-2)
    assert set(decoder.model.state_dict()) == names
    changed = {name for name in start if not torch.equal(decoder.model.get_parameter(name), start[name])}
    assert changed == {name for name in start if name.endswith("_proj.weight")}
    for name in changed:  # what was added has the adapters' rank
        added = (decoder.model.get_parameter(name) - start[name]).double()
        sizes = torch.linalg.svdvals(added)
        assert sizes[2] < 1e-4 * sizes[0]


def test_distilling_from_itself_alone_changes_nothing(decoder: Decoder, windows: TokenBatches) -> None:
    start = weights_of(decoder.model)
    report = recover(decoder, windows, "distill", distill_weight=1.0)
    assert [step["loss"] for step in report["losses"]] == pytest.approx([0.0] * 3, abs=1e-6)
    for name, weight in decoder.model.named_parameters():
        assert torch.allclose(weight, start[name], atol=1e-3), name


def test_distill_without_a_teacher_is_refused(decoder: Decoder, windows: TokenBatches) -> None:
    with pytest.raises(RequestError, match="learns from the dense model; give it as teacher"):
        recover_(decoder, windows, settings=Recovery(recover="distill"))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_same_seed_gives_the_same_weights_and_another_seed_others(windows: TokenBatches, kind: str) -> None:
    found = []
    for seed in (1, 1, 2):
        decoder = Decoder(build("llama"))
        torch.manual_seed(len(found))
        few = TokenBatches(windows.input_ids % 60 + 3, 2, "made up")
        recover_(decoder, few, settings=Recovery(recover=kind), seed=seed)  # type: ignore[arg-type]
        found.append(torch.cat([weight.detach().flatten() for weight in decoder.model.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("wide", [True, False])
def test_bfloat16_weights_are_trained_in_float32_where_asked_to(
    decoder: Decoder, windows: TokenBatches, wide: bool
) -> None:
    """A step of 1e-4 is less than half the gap of a bfloat16 number above 0.06: few weights move in 16 bits, most in 32."""
    decoder.model.to(torch.bfloat16)
    start = decoder.model.lm_head.weight.detach().clone()
    settings = Recovery(recover="full", recover_rate=1e-4, recover_tokens=16 * WINDOWS * LENGTH, recover_batch=6)
    recover_(decoder, windows, settings=settings, wide=wide)
    assert {weight.dtype for weight in decoder.model.parameters()} == {torch.bfloat16}
    large = start.abs() > 0.06
    moved = (decoder.model.lm_head.weight != start)[large].float().mean().item()
    assert (moved > 0.4) if wide else (moved < 0.1)


def test_diverged_recovery_gives_back_the_last_good_weights_and_says_nothing_of_a_penalty(
    decoder: Decoder, windows: TokenBatches
) -> None:
    start = weights_of(decoder.model)
    with pytest.raises(TrainingDivergedError, match=r"try a lower learning rate \(now 1e\+38\), or fp32") as caught:
        recover(decoder, windows, "full", recover_rate=1e38)
    assert "lambda" not in str(caught.value)
    for name, weight in decoder.model.named_parameters():
        assert torch.allclose(weight, start[name], atol=1e-7), name


# ---- settings --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"recover": "half"}, "recover is one of none, lora, partial, full, distill, not 'half'"),
        ({"recover_tokens": 0}, "recover_tokens must be 1 or more, not 0"),
        ({"recover_rate": 0.0}, "recover_rate must be above 0, not 0"),
        ({"recover_rate": float("nan")}, "recover_rate must be above 0, not nan"),
        ({"recover_batch": 4, "recover_micro_batch": 3}, "recover_micro_batch=3 does not divide recover_batch=4"),
        ({"recover_rank": 0}, "recover_rank must be 1 or more, not 0"),
        ({"recover_layers": -1}, "recover_layers must be 1 or more, not -1"),
        ({"distill_weight": 1.5}, "distill_weight is a share, not 1.5; choose above 0 to 1"),
        ({"distill_temperature": -1.0}, "distill_temperature must be above 0, not -1"),
        ({"distill_top_k": 0}, "distill_top_k must be 1 or more, not 0"),
        ({"recover_trainer": {"nope": 1}}, "trainer has no option 'nope'"),
        (
            {"recover_trainer": {"max_steps": 1}},
            "recover_trainer cannot set max_steps, which follows from recover_tokens",
        ),
    ],
)
def test_setting_that_makes_no_sense_is_refused_with_its_value(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Recovery(**wrong)


def test_what_the_trainer_refuses_is_found_before_anything_runs(windows: TokenBatches) -> None:
    settings = Recovery(recover="lora", recover_trainer={"logging_strategy": "no-such"})
    with pytest.raises(RequestError, match=r"trainer options: .*no-such") as caught:
        check_recovery(settings, windows)
    assert "\n" not in str(caught.value)
    check_recovery(Recovery(), windows)
