"""Training towards a removal, against float64 by hand and against itself done another way."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments, integrations

from secateur.data import TokenBatches
from secateur.decoder import Activations, Decoder
from secateur.errors import RequestError, TrainingDivergedError
from secateur.training.recovery import Recovery
from secateur.training.removal import RemovalTraining, identity_penalty, removal_arguments, train_towards_removal_
from secateur.training.settings import FineTuning
from secateur.training.trainer_options import for_another_machine, options_as_named_here
from tiny_families import build

GONE = [1, 4]
SGD: dict[str, Any] = {"optim": "sgd"}


@pytest.fixture
def decoder(tiny_model: Any) -> Decoder:
    return Decoder(tiny_model)


@pytest.fixture(scope="module")
def windows() -> TokenBatches:
    input_ids = torch.randint(3, 120, (8, 16), generator=torch.Generator().manual_seed(7))
    return TokenBatches(input_ids, 2, "made up")


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def train(decoder: Decoder, windows: TokenBatches, **settings: Any) -> dict[str, Any]:
    extra = {name: settings.pop(name) for name in ("teacher", "seed", "progress") if name in settings}
    return train_towards_removal_(decoder, GONE, windows, settings=RemovalTraining(**settings), **extra)


# ---- the terms of the loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "order"), [("l2", 2.0), ("l1", 1.0)])
def test_identity_penalty_equals_float64_by_hand(norm: Any, order: float) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = torch.randn(2, 3, 2, 5, 7, generator=generator)  # (in or out, layer, batch, tokens, hidden)
    seen = Activations(inputs=dict(enumerate(tensors[0])), outputs=dict(enumerate(tensors[1])))
    expected = 0.0
    for layer in (0, 2):
        change = (tensors[1, layer].double() - tensors[0, layer].double()).flatten(0, 1)
        norms = [sum(abs(float(entry)) ** order for entry in token) ** (1 / order) for token in change]
        expected += sum(norms) / len(norms)
    assert identity_penalty(seen, [2, 0], norm).item() == pytest.approx(expected, rel=1e-6)


def test_identity_penalty_of_identities_is_zero_and_its_gradient_finite() -> None:
    hidden = torch.randn(1, 3, 4)
    moved = hidden.clone().requires_grad_(True)
    penalty = identity_penalty(Activations(inputs={0: hidden}, outputs={0: moved}), [0])
    penalty.backward()
    assert penalty.item() == 0
    assert moved.grad is not None
    assert bool(torch.isfinite(moved.grad).all())


def by_hand(model: Any, teacher: Any, input_ids: Tensor, *, distil: float, lambda_2: float, norm: float) -> Tensor:
    """The loss of the module's docstring in float64, with the hidden states that transformers itself returns."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    handles = [
        model.model.layers[layer].register_forward_hook(
            lambda _m, args, out, layer=layer: seen.update({layer: (args[0], out)})
        )
        for layer in GONE
    ]
    logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1]
    for handle in handles:
        handle.remove()
    logs = logits.log_softmax(-1)
    targets = input_ids[:, 1:]
    entropy = -logs.gather(-1, targets[..., None]).mean()
    loss = (1 - distil) * entropy
    if distil:
        with torch.no_grad():
            wanted = teacher(input_ids=input_ids, use_cache=False).logits[:, :-1].softmax(-1)
        divergence = (wanted * (wanted.log() - logs)).sum(-1).mean()
        loss = loss + distil * divergence
    for before, after in seen.values():
        loss = loss + lambda_2 * (after - before).abs().pow(norm).sum(-1).pow(1 / norm).mean()
    return loss


@pytest.mark.parametrize(
    ("distil", "lambda_2", "norm"), [(0.0, 0.0, "l2"), (0.0, 0.2, "l2"), (0.3, 0.1, "l1"), (1.0, 0.0, "l2")]
)
def test_one_step_moves_weights_along_the_gradient_computed_in_float64(
    decoder: Decoder, windows: TokenBatches, distil: float, lambda_2: float, norm: str
) -> None:
    torch.manual_seed(1)
    reference = copy.deepcopy(decoder.model).double()
    teacher = copy.deepcopy(decoder.model)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.mul_(1 + 0.1 * torch.rand_like(weight))
    before = weights_of(decoder.model)
    report = train(
        decoder, windows, distil=distil, lambda_2=lambda_2, norm=norm, teacher=teacher, steps=1, sequences_per_step=8,
        warmup=0.0, learning_rate=1e-2, max_grad_norm=0.0, trainer=SGD,
    )  # fmt: skip
    teacher.double()
    order = 1.0 if norm == "l1" else 2.0
    loss = by_hand(reference, teacher, windows.input_ids, distil=distil, lambda_2=lambda_2, norm=order)
    loss.backward()
    assert report["losses"][0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, weight in reference.named_parameters():
        moved = (before[name] - decoder.model.get_parameter(name).detach()) / 1e-2
        assert torch.allclose(moved, weight.grad.float(), atol=3e-5 + 1e-3 * weight.grad.abs().max().item()), name


def test_recorded_divergence_equals_float64_kl(decoder: Decoder, windows: TokenBatches) -> None:
    teacher = copy.deepcopy(decoder.model)
    with torch.no_grad():
        teacher.lm_head.weight.mul_(1.3)
    with torch.no_grad():
        wanted = teacher(input_ids=windows.input_ids).logits[:, :-1].double().log_softmax(-1)
        found = decoder.model(input_ids=windows.input_ids).logits[:, :-1].double().log_softmax(-1)
    expected = (wanted.exp() * (wanted - found)).sum(-1).mean().item()
    report = train(decoder, windows, distil=1.0, teacher=teacher, steps=1, sequences_per_step=8)
    assert report["losses"][0]["distillation"] == pytest.approx(expected, rel=1e-4)


def test_own_copy_as_teacher_diverges_by_nothing_at_first(decoder: Decoder, windows: TokenBatches) -> None:
    report = train(decoder, windows, distil=1.0, steps=2, warmup=0.0, learning_rate=1e-2)
    assert report["losses"][0]["distillation"] == pytest.approx(0, abs=1e-6)
    assert report["losses"][1]["distillation"] > 1e-5


# ---- schedules ----------------------------------------------------------------------------------------------------------


def gates_seen(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the layers that go are weighed by in each step: 1 plain, 0 bypassed."""
    seen: list[float] = []
    gate, bypass = decoder.gate, decoder.bypass

    def watched_gate(values: Tensor, **rest: Any) -> Any:
        assert sorted(rest["layers"]) == GONE
        seen.append(values[GONE[0]].item())
        return gate(values, **rest)

    def watched_bypass(layers: Any) -> Any:
        assert sorted(layers) == GONE
        seen.append(0.0)
        return bypass(layers)

    monkeypatch.setattr(decoder, "gate", watched_gate)
    monkeypatch.setattr(decoder, "bypass", watched_bypass)
    return seen


@pytest.mark.parametrize(
    ("fade_over", "expected"),
    [(1.0, [0.75, 0.5, 0.25, 0.0]), (0.5, [0.5, 0.0, 0.0, 0.0]), (0.0, [0.0] * 5), (None, [])],
)
def test_gates_fade_linearly_and_end_at_exactly_0(
    decoder: Decoder,
    windows: TokenBatches,
    monkeypatch: pytest.MonkeyPatch,
    fade_over: float | None,
    expected: list[float],
) -> None:
    seen = gates_seen(decoder, monkeypatch)
    report = train(decoder, windows, fade_over=fade_over, steps=5)
    assert seen == pytest.approx(expected, abs=1e-7)
    assert report["final_gate"] == (1.0 if fade_over is None else 0.0)
    if fade_over is not None:
        assert seen[-1] == 0.0


def test_identity_penalty_ramps_up_from_0(decoder: Decoder, windows: TokenBatches) -> None:
    report = train(decoder, windows, lambda_2=0.4, lambda_2_ramp=1.0, steps=3)
    weights = [(row["loss"] - row["cross_entropy"]) / row["identity"] for row in report["losses"]]
    assert weights == pytest.approx([0.0, 0.2, 0.4], abs=1e-4)


# ---- the same thing done another way --------------------------------------------------------------------------------------


def assert_close(one: Any, other: Any, moved_from: dict[str, Tensor]) -> None:
    largest = 0.0
    for name, weight in one.named_parameters():
        assert torch.allclose(weight, other.get_parameter(name), atol=1e-5), name
        largest = max(largest, (weight - moved_from[name]).abs().max().item())
    assert largest > 1e-3  # otherwise nothing was compared


COMBINED: dict[str, Any] = {
    "lambda_2": 0.1, "distil": 0.5, "fade_over": None, "steps": 3, "sequences_per_step": 4, "warmup": 0.0,
    "learning_rate": 0.02, "trainer": SGD,
}  # fmt: skip


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_accumulated_micro_batches_equal_the_big_batch(
    decoder: Decoder, windows: TokenBatches, micro_batch: int
) -> None:
    start, twin = weights_of(decoder.model), Decoder(copy.deepcopy(decoder.model))
    whole = train(decoder, windows, **COMBINED)
    parts = train(twin, windows, **COMBINED, micro_batch=micro_batch)
    assert_close(decoder.model, twin.model, start)
    assert whole["tokens"] == parts["tokens"] == 3 * 4 * 16


@pytest.mark.parametrize("fade_over", [None, 1.0])
def test_activation_checkpointing_gives_the_same_weights(
    decoder: Decoder, windows: TokenBatches, fade_over: float | None
) -> None:
    start, twin = weights_of(decoder.model), Decoder(copy.deepcopy(decoder.model))
    settings = {**COMBINED, "fade_over": fade_over}
    train(decoder, windows, **settings)
    train(twin, windows, **{**settings, "trainer": {**SGD, "activation_checkpointing": True}})
    assert_close(decoder.model, twin.model, start)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in twin.model.modules())


def test_resumed_training_ends_with_the_weights_of_the_uninterrupted(
    decoder: Decoder, windows: TokenBatches, tmp_path: Path
) -> None:
    start = Decoder(copy.deepcopy(decoder.model))
    settings = {**COMBINED, "steps": 4, "fade_over": 1.0, "learning_rate": 1e-3}
    saving = {"output_dir": str(tmp_path), "save_steps": 2}
    train(decoder, windows, **{**settings, "trainer": saving})
    assert (tmp_path / "checkpoint-2").is_dir()
    resuming = {"output_dir": str(tmp_path), "resume_from_checkpoint": str(tmp_path / "checkpoint-2")}
    report = train(start, windows, **{**settings, "trainer": resuming})
    assert len(report["losses"]) == 2
    for name, weight in decoder.model.named_parameters():
        assert torch.allclose(weight, start.model.get_parameter(name), atol=1e-7), name


# ---- adapters -----------------------------------------------------------------------------------------------------------


def test_merged_model_has_no_adapters_and_gives_the_adapted_outputs(
    decoder: Decoder, windows: TokenBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import LoraModel

    names, start = set(dict(decoder.model.named_modules())), weights_of(decoder.model)
    adapted: list[Tensor] = []
    merge = LoraModel.merge_and_unload

    def watched(self: Any, *args: Any, **rest: Any) -> Any:
        with torch.no_grad():
            self.eval()
            adapted.append(self.model(input_ids=windows.input_ids).logits)
        return merge(self, *args, **rest)

    monkeypatch.setattr(LoraModel, "merge_and_unload", watched)
    train(decoder, windows, train="lora", lora_rank=4, steps=3, learning_rate=1e-2)
    with torch.no_grad():
        merged = decoder.model(input_ids=windows.input_ids).logits
    assert set(dict(decoder.model.named_modules())) == names
    assert torch.allclose(merged, adapted[0], atol=1e-4)
    changed = {name for name, weight in decoder.model.named_parameters() if not torch.equal(weight, start[name])}
    assert changed == {name for name in start if name.endswith("_proj.weight")}
    assert all(weight.requires_grad for weight in decoder.model.parameters())


class _Interrupting:
    """Somebody who presses Ctrl-C at the first step."""

    def track(self, *_: Any) -> Any:
        from contextlib import nullcontext

        def advance(_: int) -> None:
            raise KeyboardInterrupt

        return nullcontext(advance)

    def note(self, message: str) -> None: ...


def test_interrupted_adapters_are_taken_off_and_weights_are_as_before(decoder: Decoder, windows: TokenBatches) -> None:
    start = weights_of(decoder.model)
    with pytest.raises(KeyboardInterrupt):
        train(decoder, windows, train="lora", steps=3, learning_rate=1e-2, progress=_Interrupting())
    assert weights_of(decoder.model).keys() == start.keys()
    assert all(torch.equal(weight, start[name]) for name, weight in decoder.model.named_parameters())


# ---- a part of the model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "behind"),
    [
        ("llama", {"model.norm.weight", "lm_head.weight"}),
        ("gpt2", {f"transformer.{name}" for name in ("ln_f.weight", "ln_f.bias", "wte.weight")}),  # a tied head
        ("opt", {f"model.decoder.{norm}" for norm in ("final_layer_norm.weight", "final_layer_norm.bias")}
            | {"model.decoder.embed_tokens.weight"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("checkpointing", [False, True])
def test_partial_training_changes_the_last_layers_that_stay_and_what_runs_behind_them(
    family: str, behind: set[str], windows: TokenBatches, checkpointing: bool
) -> None:
    decoder = Decoder(build(family))
    few = TokenBatches(windows.input_ids % 60 + 3, 2, "made up")
    start = weights_of(decoder.model)
    settings = {"train": "partial", "partial_layers": 2, "fade_over": 0.0, "steps": 2, "learning_rate": 1e-2}
    train(decoder, few, **settings, trainer={"activation_checkpointing": checkpointing})
    changed = {name for name, weight in decoder.model.named_parameters() if not torch.equal(weight, start[name])}
    last = {name for name in start if name.startswith((f"{decoder.path}.3.", f"{decoder.path}.5."))}
    assert changed >= behind
    assert changed <= behind | last
    assert {f"{decoder.path}.{layer}" for layer in (3, 5)} == {
        ".".join(name.split(".")[: decoder.path.count(".") + 2]) for name in changed - behind
    }


# ---- what is given back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["full", "lora", "partial"])
def test_configuration_and_trainability_are_given_back(decoder: Decoder, windows: TokenBatches, how: Any) -> None:
    decoder.model.model.embed_tokens.requires_grad_(False)
    config, generation = decoder.model.config.to_dict(), decoder.model.generation_config.to_dict()
    train(decoder, windows, train=how, steps=2, fade_over=0.0)
    assert decoder.model.config.to_dict() == config
    assert decoder.model.generation_config.to_dict() == generation
    frozen = [name for name, weight in decoder.model.named_parameters() if not weight.requires_grad]
    assert frozen == ["model.embed_tokens.weight"]
    assert not decoder.model.training
    assert all(weight.grad is None for weight in decoder.model.parameters())
    assert all("forward" not in vars(module) for module in decoder.model.modules())


def test_layers_faded_from_the_start_keep_their_weights(decoder: Decoder, windows: TokenBatches) -> None:
    start = weights_of(decoder.model)
    train(decoder, windows, fade_over=0.0, steps=2, learning_rate=1e-2, weight_decay=0.1)
    for name, weight in decoder.model.named_parameters():
        gone = any(f"layers.{layer}." in name for layer in GONE)
        assert torch.equal(weight, start[name]) == gone, name


def test_nothing_is_written_to_standard_output(
    decoder: Decoder, windows: TokenBatches, capsys: pytest.CaptureFixture[str]
) -> None:
    train(decoder, windows, steps=2)
    assert capsys.readouterr().out == ""


# ---- a loss that is not finite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["full", "lora", "partial"])
@pytest.mark.parametrize("steps", [1, 6])
def test_diverged_training_gives_back_the_last_good_weights(
    decoder: Decoder, windows: TokenBatches, how: Any, steps: int
) -> None:
    start = weights_of(decoder.model)
    with pytest.raises(
        TrainingDivergedError, match=r"the last good weights are kept: try a lower learning rate"
    ) as caught:
        train(decoder, windows, train=how, steps=steps, learning_rate=1e39, warmup=0.0, max_grad_norm=0.0)
    assert "\n" not in str(caught.value)
    assert weights_of(decoder.model).keys() == start.keys()
    for name, weight in decoder.model.named_parameters():
        assert torch.allclose(weight, start[name], atol=1e-7), name


def test_loss_that_turns_nan_later_gives_back_finite_weights_of_that_run(
    decoder: Decoder, windows: TokenBatches
) -> None:
    start = weights_of(decoder.model)
    calls = [0]

    def spoil(_m: Any, _a: Any, out: Tensor) -> Tensor | None:
        calls[0] += 1
        return out * math.nan if calls[0] == 12 else None

    decoder.model.lm_head.register_forward_hook(spoil)
    with pytest.raises(TrainingDivergedError, match="the loss became nan at step 12"):
        train(decoder, windows, steps=24, learning_rate=1e-3, warmup=0.0)
    weights = weights_of(decoder.model)
    assert all(bool(torch.isfinite(weight).all()) for weight in weights.values())
    assert any(not torch.equal(weights[name], start[name]) for name in start)


# ---- settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"trainer": {"learning_speed": 1}},
            "trainer has no option 'learning_speed'; see transformers.TrainingArguments",
        ),
        ({"micro_batch": 3, "sequences_per_step": 4}, "micro_batch=3 does not divide sequences_per_step=4"),
        ({"lambda_2": -1.0}, "lambda_2 must be 0 or more, not -1"),
        ({"lambda_2": math.inf}, "lambda_2 must be 0 or more, not inf"),
        ({"fade_over": 2.0}, "fade_over is a share, not 2"),
        ({"warmup": math.nan}, "warmup is a share, not nan"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, not 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be 0 or more, not -1"),
        ({"lora_rank": 0}, "lora_rank must be above 0, not 0"),
        ({"partial_layers": 0}, "partial_layers must be above 0, not 0"),
    ],
)
def test_setting_that_makes_no_sense_is_refused_with_its_value(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        RemovalTraining(**wrong)


def test_trainer_option_of_a_wrong_value_is_refused_in_one_line(decoder: Decoder, windows: TokenBatches) -> None:
    with pytest.raises(RequestError, match="trainer options: ") as caught:
        train(decoder, windows, steps=1, trainer={"logging_strategy": "no-such"})
    assert "\n" not in str(caught.value)


def test_steps_default_to_one_pass_over_the_windows(windows: TokenBatches) -> None:
    assert RemovalTraining(sequences_per_step=3).num_steps(windows) == 3
    assert RemovalTraining(sequences_per_step=3, steps=7).num_steps(windows) == 7


def test_trainings_that_report_log_every_step_and_what_is_not_installed_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="cannot report to 'nowhere', which is not installed here"):
        RemovalTraining(trainer={"report_to": "nowhere"})
    monkeypatch.setattr(integrations, "get_available_reporting_integrations", lambda: ["somewhere"])
    batches = TokenBatches(torch.ones(4, 8, dtype=torch.long), 2, "ones")
    for theirs, strategy in (({"report_to": ["somewhere"]}, "steps"), ({}, "no")):
        arguments = removal_arguments(RemovalTraining(trainer=theirs), batches, scratch=str(tmp_path))
        assert arguments.logging_strategy == strategy
        assert arguments.logging_steps == 1
        assert arguments.report_to == theirs.get("report_to", [])


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        (
            {"optim": "paged_adamw_8bit"},
            "optim 'paged_adamw_8bit' here: .*pip install .*bitsandbytes.*choose adamw_torch",
        ),
        ({"optim": "adamw_9bit"}, "no optim 'adamw_9bit'; choose adamw_torch"),
    ],
)
def test_an_optimizer_that_is_not_here_is_refused_at_once_with_the_remedy(
    trainer: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
    for settings in (
        lambda: RemovalTraining(trainer=trainer),
        lambda: FineTuning(trainer=trainer),
        lambda: Recovery(recover="lora", recover_trainer=trainer),
    ):
        with pytest.raises(RequestError, match=said) as caught:
            settings()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("optimizer", "moments"),
    [
        (None, 2.0), ("adamw_torch", 2.0), ("adamw_torch_fused", 2.0), ("adamw_8bit", 0.5), ("adamw_bnb_8bit", 0.5),
        ("adamw_torch_4bit", 0.25), ("lion_32bit", 1.0), ("lion_8bit", 0.25), ("rmsprop", 1.0), ("sgd", 0.0),
        ("adafactor", 0.0), ("paged_adamw_32bit", 0.0), ("paged_adamw_8bit", 0.0), ("galore_adamw", 2.0),
    ],
)  # fmt: skip
def test_an_optimizer_counts_for_another_machine_with_what_it_keeps(optimizer: str | None, moments: float) -> None:
    trainer = {} if optimizer is None else {"optim": optimizer}
    with for_another_machine():
        assert RemovalTraining(trainer=trainer).step(without=2).moments == moments


def test_for_another_machine_names_are_checked_and_what_this_one_lacks_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
    offload = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"offload": True}}
    with for_another_machine():
        RemovalTraining(trainer={"optim": "paged_adamw_8bit", "report_to": "comet_ml", **offload})
        for wrong in ({"optim": "adamw_9bit"}, {"optimum": "sgd"}):
            with pytest.raises(RequestError, match=r"adamw_9bit|optimum"):
                RemovalTraining(trainer=wrong)
    with pytest.raises(RequestError, match="paged_adamw_8bit"):
        RemovalTraining(trainer={"optim": "paged_adamw_8bit"})


def test_an_optimizer_that_is_here_or_needs_the_model_is_not_refused_and_starts_nothing() -> None:
    for trainer in (
        {"optim": "sgd"},
        {"optim": "adafactor"},
        {"optim": "rmsprop", "optim_args": "alpha=0.9"},
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": '{"num_cycles": 0.3}'},
    ):
        assert RemovalTraining(trainer=trainer).trainer == trainer


def test_an_optimizer_that_asks_for_the_model_is_left_to_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """As LOMO, whose package is not here: the Trainer fails before there is a class."""

    def asks(_: Any, model: Any = None) -> Any:
        assert model is None
        raise ValueError("You need to pass a `model`")

    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(asks))
    assert RemovalTraining(trainer={"optim": "lomo"}).trainer == {"optim": "lomo"}


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        ({"bf16": "maybe"}, "trainer: bf16 is of type bool, not 'maybe'"),
        ({"adam_epsilon": "x"}, "trainer: adam_epsilon is of type float, not 'x'"),
        ({"max_steps": True}, "trainer: max_steps is of type int, not 'True'"),
        ({"warmup_steps": -5}, "trainer: warmup_steps is 0 or more, not -5"),
        ({"label_smoothing_factor": 9.0}, "trainer: label_smoothing_factor is a share of 0 or more and less than 1"),
        ({"neftune_noise_alpha": -1.0}, "trainer: neftune_noise_alpha is above 0, not -1"),
        ({"adam_beta1": 2.0}, "trainer cannot train with adam_beta1 2.0: Invalid beta parameter"),
        ({"optim": "adamw_torch", "adam_beta2": 2.0}, "trainer cannot train with optim adamw_torch, adam_beta2 2.0"),
        ({"learning_rate": -1.0}, "trainer cannot train with learning_rate -1.0: Invalid learning rate"),
        ({"lr_scheduler_type": "linnear"}, "trainer: lr_scheduler_type is one of linear, cosine, .*, not 'linnear'"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "One of min_lr or min_lr_rate should be set"),
        ({"torch_compile_backend": "no-such"}, "trainer: torch_compile_backend is one of .*inductor.*, not 'no-such'"),
        ({"weight_decay": -1.0}, "trainer: weight_decay is 0 or more, not -1"),
        ({"load_best_model_at_end": False}, "trainer cannot set load_best_model_at_end: the best epoch is taken"),
        ({"save_total_limit": 1}, "trainer cannot set save_total_limit: the last checkpoint is kept, and the best"),
        ({"report_to": 5}, "trainer: report_to is of type list or null or str, not '5'"),
        (
            {"activation_checkpointing_kwargs": 3},
            "activation_checkpointing_kwargs is of type dict or null or str, not '3'",
        ),
        ({"push_to_hub": True}, "trainer cannot set push_to_hub: that is --push-to-hub"),
        ({"hub_token": "hf_abcdefghijkl"}, "trainer cannot set hub_token: log in by hf auth login"),
        ({"seed": 3}, "trainer cannot set seed: that is --seed"),
        ({"fsdp": "full_shard"}, "trainer cannot set fsdp: that is for accelerate's config"),
    ],
)
def test_a_value_of_another_type_or_place_is_refused_at_once(trainer: dict[str, Any], said: str) -> None:
    for settings in (RemovalTraining, FineTuning):
        with pytest.raises(RequestError, match=said):
            settings(trainer=trainer)


def test_whole_numbers_are_good_where_any_number_is() -> None:
    assert RemovalTraining(trainer={"weight_decay": 0, "save_steps": 2, "report_to": None}).trainer["weight_decay"] == 0


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_activations_are_offloaded_from_a_gpu_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = {name: True, f"{name}_kwargs": {"offload": True}}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert RemovalTraining(trainer=trainer).trainer == trainer
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match=f"cannot offload activations here, .*leave offload out of {name}_kwargs"):
        RemovalTraining(trainer=trainer)
    assert RemovalTraining(trainer={name: True, f"{name}_kwargs": {"use_reentrant": False}}).trainer[name]


def test_a_transformers_before_the_renaming_is_given_the_names_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = TrainingArguments.__dataclass_fields__
    before = {name: field for name, field in fields.items() if not name.startswith("activation_")}
    monkeypatch.setattr(TrainingArguments, "__dataclass_fields__", before)
    trainer = {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"every_n_layers": 2},
        "optim": "sgd",
    }
    assert options_as_named_here(RemovalTraining(trainer=trainer).trainer) == {
        "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"every_n_layers": 2}, "optim": "sgd",
    }  # fmt: skip
    with pytest.raises(RequestError, match="no option 'activation_offloading'"):
        RemovalTraining(trainer={"activation_offloading": True})
