"""Fine-tuning on a task: steps by hand in float64, and runs against themselves done another way."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_rows import made_up_rows
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM, TrainerCallback

from secateur.decoder import Decoder
from secateur.errors import RequestError, TrainingDivergedError
from secateur.training.rows import Rows
from secateur.training.supervised import FineTuning, fine_tune_

# ---- one step by hand ----------------------------------------------------------------------------------------------------


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def tune(model: Any, rows: Rows, work: Path, **settings: Any) -> tuple[Any, dict[str, Any]]:
    others = ("validate", "greater_is_better", "callbacks", "precision", "seed", "progress", "save")
    extra = {name: settings.pop(name) for name in others if name in settings}
    settings = {"train": "full", "learning_rate": 1e-2, "warmup": 0.0, "micro_batch": None, "batch_size": 4, **settings}
    return fine_tune_(Decoder(model), rows, settings=FineTuning(**settings), work=work, **extra)


def token_mean(model: Any, rows: Rows) -> Tensor:
    """−1/N Σ ln p over the completions of all rows, one pass a row, without padding."""
    total: Tensor = torch.zeros((), dtype=torch.float64)
    count = 0
    for row in rows:
        logs = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for place, label in enumerate(row["labels"]):
            if label != -100:
                total = total - logs[place - 1, label]
                count += 1
    return total / count


def adamw(model: Any, rows: Rows, *, steps: int, rate: float, decay: float, clip: float) -> list[float]:
    """AdamW (arXiv 1711.05101) as it is written, on all rows a step, linear decay; the norms are not decayed."""
    moments = {name: (torch.zeros_like(weight), torch.zeros_like(weight)) for name, weight in model.named_parameters()}
    losses = []
    for step in range(steps):
        loss = token_mean(model, rows)
        losses.append(loss.item())
        gradients = dict(
            zip(moments, torch.autograd.grad(loss, [weight for _, weight in model.named_parameters()]), strict=True)
        )
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
        lr = rate * (1 - step / steps)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                gradient = gradients[name] * min(1.0, clip / norm)
                mean, square = moments[name]
                mean.mul_(0.9).add_(0.1 * gradient)
                square.mul_(0.999).add_(0.001 * gradient**2)
                if weight.dim() > 1:
                    weight.mul_(1 - lr * decay)
                corrected = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
                weight.sub_(lr * corrected[0] / (corrected[1].sqrt() + 1e-8))
    return losses


def test_steps_equal_adamw_by_hand_in_float64(tiny_model: Any, tmp_path: Path) -> None:
    tiny_model.double()
    rows, start, reference = made_up_rows(4), weights_of(tiny_model), copy.deepcopy(tiny_model)
    settings = {"max_steps": 3, "weight_decay": 0.1, "max_grad_norm": 0.7}
    _, report = tune(tiny_model, rows, tmp_path, **settings)
    losses = adamw(reference, rows, steps=3, rate=1e-2, decay=0.1, clip=0.7)
    assert [entry["loss"] for entry in report["losses"]] == pytest.approx(losses, rel=1e-6)
    for name, weight in reference.named_parameters():
        # transformers takes norms and losses in float32, and Adam divides by gradients that may be as small as the rounding
        error, moved = (weight - tiny_model.get_parameter(name)).norm(), (weight - start[name]).norm()
        assert moved > 1e-3, name
        assert error < 1e-4 * moved, (name, error / moved)


def test_two_micro_batches_of_two_equal_one_of_four(tiny_model: Any, tmp_path: Path) -> None:
    """Token-mean over the accumulated batch: the completions have 1 and 5 tokens, so a mean of means is another."""
    tiny_model.double()
    twin = copy.deepcopy(tiny_model)
    rows = made_up_rows(8)
    one, _ = tune(tiny_model, rows, tmp_path / "1", max_steps=4)
    other, _ = tune(twin, rows, tmp_path / "2", max_steps=4, micro_batch=2)
    moved = 0.0
    for (name, weight), same in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(weight, same, rtol=1e-6, atol=1e-8), name
        moved = max(moved, weight.abs().max().item())
    assert moved > 1e-3


def test_activation_checkpointing_gives_the_same_weights_and_is_off_again(tiny_model: Any, tmp_path: Path) -> None:
    for train in ("lora", "full"):  # full last: it changes the model
        twin = copy.deepcopy(tiny_model)
        plain, _ = tune(copy.deepcopy(tiny_model), made_up_rows(4), tmp_path / train, train=train, max_steps=2)
        trainer = {"activation_checkpointing": True}
        lean, _ = tune(twin, made_up_rows(4), tmp_path / f"{train}-lean", train=train, max_steps=2, trainer=trainer)
        for weight, same in zip(plain.parameters(), lean.parameters(), strict=True):
            assert torch.allclose(weight, same, atol=1e-5)
        assert not any(getattr(module, "gradient_checkpointing", False) for module in twin.modules())


# ---- what is trained, and which epoch of it ------------------------------------------------------------------------------


def test_lora_leaves_the_weights_of_the_model_bit_for_bit(tiny_model: Any, tmp_path: Path) -> None:
    before, names = weights_of(tiny_model), set(dict(tiny_model.named_modules()))
    tuned, _ = tune(tiny_model, made_up_rows(8), tmp_path, train="lora", max_steps=4)
    assert any(bool(weight.any()) for name, weight in tuned.named_parameters() if "lora_B" in name)
    plain = tuned.unload()
    assert set(dict(plain.named_modules())) == names
    assert all(torch.equal(weight, before[name]) for name, weight in plain.named_parameters())


class Judge:
    """Gives the epochs these scores, and remembers the weights that each had."""

    def __init__(self, *scores: float) -> None:
        self.scores = scores
        self.seen: list[dict[str, Tensor]] = []

    def __call__(self, model: Any) -> dict[str, float]:
        self.seen.append(weights_of(model))
        return {"score": self.scores[len(self.seen) - 1]}


@pytest.mark.parametrize(
    ("train", "scores", "greater_is_better", "best"),
    [
        ("full", (0.9, 0.5, 0.6), True, 0),
        ("full", (3.0, 2.0, 1.0), False, 2),
        ("lora", (0.9, 0.5, 0.6), True, 0),
        ("lora", (0.9, 0.5, 0.6), False, 1),
    ],
)
def test_weights_are_those_of_the_epoch_with_the_best_validation_score(
    tiny_model: Any, tmp_path: Path, train: str, scores: tuple[float, ...], greater_is_better: bool, best: int
) -> None:
    judge = Judge(*scores)
    tuned, report = tune(
        tiny_model,
        made_up_rows(8),
        tmp_path,
        train=train,
        epochs=3,
        validate=judge,
        greater_is_better=greater_is_better,
    )
    assert [entry["score"] for entry in report["validation"]] == list(scores)
    assert (report["steps"], report["best_step"]) == (6, 2 * (best + 1))
    found = weights_of(tuned)
    assert [all(torch.equal(found[name], seen[name]) for name in found) for seen in judge.seen] == [
        epoch == best for epoch in range(3)
    ]


def test_experts_that_files_hold_one_by_one_are_those_of_the_best_epoch_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=128, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    judge = Judge(0.9, 0.5)
    tuned, _ = tune(MixtralForCausalLM(config), made_up_rows(8), tmp_path, epochs=2, validate=judge)
    found = weights_of(tuned)
    experts = [name for name in found if ".experts." in name]
    assert experts
    assert not any(torch.equal(judge.seen[0][name], judge.seen[1][name]) for name in experts)
    assert all(torch.equal(found[name], judge.seen[0][name]) for name in found)


def test_without_validation_the_weights_are_the_last(tiny_model: Any, tmp_path: Path) -> None:
    class Last(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
            self.weights = weights_of(model)

    last = Last()
    _, report = tune(tiny_model, made_up_rows(8), tmp_path, epochs=2, callbacks=[last])
    assert all(torch.equal(weight, last.weights[name]) for name, weight in tiny_model.named_parameters())
    assert (report["best_step"], report["validation"], report["examples"]) == (4, [], 16)


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 4), (None, 6)])
def test_patience_ends_the_training_after_so_many_epochs_that_are_no_better(
    tiny_model: Any, tmp_path: Path, patience: int | None, epochs: int
) -> None:
    judge = Judge(0.5, 0.6, 0.6, 0.1, 0.2, 0.3)
    _, report = tune(tiny_model, made_up_rows(4), tmp_path, epochs=6, validate=judge, patience=patience)
    assert report["steps"] == len(judge.seen) == epochs
    assert report["best_step"] == 2


@pytest.mark.parametrize(("epochs", "max_steps", "expected"), [(1.5, None, 3), (3, 5, 5), (0.1, None, 1)])
def test_last_part_of_an_epoch_is_measured_too(
    tiny_model: Any, tmp_path: Path, epochs: float, max_steps: int | None, expected: int
) -> None:
    judge = Judge(0.1, 0.2, 0.3)
    _, report = tune(tiny_model, made_up_rows(8), tmp_path, epochs=epochs, max_steps=max_steps, validate=judge)
    assert FineTuning(epochs=epochs, max_steps=max_steps, batch_size=4).num_steps(8) == report["steps"] == expected
    assert report["best_step"] == report["validation"][-1]["step"] == expected


@pytest.mark.parametrize("train", ["full", "lora"])
def test_same_seed_gives_the_same_weights_and_another_seed_others(tiny_model: Any, tmp_path: Path, train: str) -> None:
    found = []
    for run, seed in enumerate((1, 1, 2)):
        torch.manual_seed(run)
        settings = {"train": train, "max_steps": 2, "lora_dropout": 0.2, "seed": seed, "save": False}
        tuned, _ = tune(copy.deepcopy(tiny_model), made_up_rows(16), tmp_path / str(run), **settings)
        found.append(weights_of(tuned))
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())
    assert not all(torch.equal(weight, found[2][name]) for name, weight in found[0].items())


# ---- interrupted ---------------------------------------------------------------------------------------------------------


class Interrupt(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


class NoStep(TrainerCallback):  # type: ignore[misc]
    def on_step_begin(self, *_: Any, **__: Any) -> None:
        raise AssertionError("it is trained on")


def same_each_time(model: Any) -> dict[str, float]:
    """A score that depends on the weights alone."""
    return {"score": sum(weight.detach().double().abs().sum().item() for weight in model.parameters())}


@pytest.mark.parametrize(
    ("train", "step"),
    [("full", 3), ("full", 4), ("lora", 5)],  # within the second epoch, at its end before it is saved, in the third
)
def test_interrupted_and_resumed_training_ends_with_the_bytes_of_the_undisturbed(
    tiny_model: Any, tmp_path: Path, train: str, step: int
) -> None:
    settings = {"train": train, "epochs": 3, "micro_batch": 2, "lora_dropout": 0.2, "validate": same_each_time}
    whole, expected = tune(copy.deepcopy(tiny_model), made_up_rows(8), tmp_path / "whole", **settings)
    broken = copy.deepcopy(tiny_model)
    with pytest.raises(KeyboardInterrupt):
        tune(broken, made_up_rows(8), tmp_path / "work", **settings, callbacks=[Interrupt(step)])
    assert set(dict(broken.named_modules())) == set(dict(tiny_model.named_modules()))
    resumed, report = tune(copy.deepcopy(tiny_model), made_up_rows(8), tmp_path / "work", **settings)
    for (name, weight), same in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(weight, same), name
    assert report["best_step"] == expected["best_step"]
    assert report["validation"] == expected["validation"]
    assert [entry["loss"] for entry in report["losses"]] == [entry["loss"] for entry in expected["losses"]]


def test_interrupt_before_the_first_checkpoint_starts_over(tiny_model: Any, tmp_path: Path) -> None:
    whole, _ = tune(copy.deepcopy(tiny_model), made_up_rows(8), tmp_path / "whole", epochs=2)
    with pytest.raises(KeyboardInterrupt):
        tune(copy.deepcopy(tiny_model), made_up_rows(8), tmp_path / "work", epochs=2, callbacks=[Interrupt(1)])
    resumed, _ = tune(copy.deepcopy(tiny_model), made_up_rows(8), tmp_path / "work", epochs=2)
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize(
    ("train", "epochs", "scores"), [("full", 1.5, ()), ("full", 2, (0.9, 0.1)), ("lora", 1.5, (0.9, 0.1))]
)
def test_training_that_had_ended_is_not_trained_on(
    tiny_model: Any, tmp_path: Path, train: str, epochs: float, scores: tuple[float, ...]
) -> None:
    """An epoch that was to end half-way is not ended, and the best epoch is the best still."""
    settings = {"train": train, "epochs": epochs, "validate": Judge(*scores) if scores else None}
    whole, expected = tune(copy.deepcopy(tiny_model), made_up_rows(8), tmp_path, **settings)
    again, report = tune(copy.deepcopy(tiny_model), made_up_rows(8), tmp_path, **settings, callbacks=[NoStep()])
    for (name, weight), same in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, same), name
    assert {**report, "seconds": 0} == {**expected, "seconds": 0}


def test_training_that_patience_had_ended_is_not_trained_on(tiny_model: Any, tmp_path: Path) -> None:
    settings = {"epochs": 5, "patience": 1}
    whole, expected = tune(copy.deepcopy(tiny_model), made_up_rows(4), tmp_path, **settings, validate=Judge(0.5, 0.4))
    again, report = tune(copy.deepcopy(tiny_model), made_up_rows(4), tmp_path, **settings, validate=Judge(0.9, 0.9))
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), again.parameters(), strict=True))
    assert (report["steps"], report["best_step"]) == (expected["steps"], expected["best_step"]) == (2, 1)


def test_patience_goes_on_counting_where_it_was_interrupted(tiny_model: Any, tmp_path: Path) -> None:
    settings = {"epochs": 6, "patience": 2}
    whole, expected = tune(
        copy.deepcopy(tiny_model), made_up_rows(4), tmp_path / "whole", **settings, validate=Judge(0.5, 0.4, 0.3, 0.9)
    )
    with pytest.raises(KeyboardInterrupt):
        tune(
            copy.deepcopy(tiny_model), made_up_rows(4), tmp_path / "work", **settings,
            validate=Judge(0.5, 0.4), callbacks=[Interrupt(3)],
        )  # fmt: skip
    again, report = tune(
        copy.deepcopy(tiny_model), made_up_rows(4), tmp_path / "work", **settings, validate=Judge(0.3, 0.9)
    )
    assert (report["steps"], report["best_step"]) == (expected["steps"], expected["best_step"]) == (3, 1)
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), again.parameters(), strict=True))


def test_checkpoint_that_was_not_written_to_its_end_is_not_used(tiny_model: Any, tmp_path: Path) -> None:
    whole, _ = tune(copy.deepcopy(tiny_model), made_up_rows(8), tmp_path / "whole", epochs=3)
    with pytest.raises(KeyboardInterrupt):
        tune(copy.deepcopy(tiny_model), made_up_rows(8), tmp_path / "work", epochs=3, callbacks=[Interrupt(5)])
    (tmp_path / "work" / "checkpoint-4" / "trainer_state.json").write_text('{"best_global_step": null, "epo')
    shutil.copytree(tmp_path / "work" / "checkpoint-4", tmp_path / "work" / "checkpoint-5")
    (tmp_path / "work" / "checkpoint-5" / "trainer_state.json").unlink()
    resumed, _ = tune(copy.deepcopy(tiny_model), made_up_rows(8), tmp_path / "work", epochs=3)
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))


# ---- what goes wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", ["full", "lora"])
def test_loss_that_is_not_finite_stops_the_training_with_a_remedy(tiny_model: Any, tmp_path: Path, train: str) -> None:
    before, names = weights_of(tiny_model), list(dict(tiny_model.named_modules()))
    calls = [0]

    def spoil(head: Any, _a: Any, out: Tensor) -> Tensor | None:
        calls[0] += head.training  # what looks for the layers, or tries what the model can do, does not train
        return out * math.nan if head.training and calls[0] == 3 else None

    handle = tiny_model.lm_head.register_forward_hook(spoil)
    with pytest.raises(
        TrainingDivergedError, match=r"became nan at step 3; try a lower learning rate \(now 0\.01\)"
    ) as e:
        tune(tiny_model, made_up_rows(8), tmp_path, train=train, epochs=3)
    handle.remove()
    assert "\n" not in str(e.value)
    assert list(dict(tiny_model.named_modules())) == names
    assert all(weight.requires_grad and weight.grad is None for weight in tiny_model.parameters())
    assert all(bool(torch.isfinite(weight).all()) for weight in tiny_model.parameters())
    same = [torch.equal(weight, before[name]) for name, weight in tiny_model.named_parameters()]
    assert all(same) if train == "lora" else not any(same)


@pytest.mark.parametrize("train", ["full", "lora"])
def test_wrong_value_of_a_trainer_option_is_refused_and_changes_nothing(
    tiny_model: Any, tmp_path: Path, train: str
) -> None:
    before, names = weights_of(tiny_model), list(dict(tiny_model.named_modules()))
    tiny_model.model.embed_tokens.requires_grad_(False)
    with pytest.raises(RequestError, match="trainer options: ") as caught:
        tune(tiny_model, made_up_rows(4), tmp_path, train=train, max_steps=1, trainer={"logging_strategy": "no-such"})
    assert "\n" not in str(caught.value)
    assert list(dict(tiny_model.named_modules())) == names
    assert [name for name, weight in tiny_model.named_parameters() if not weight.requires_grad] == [
        "model.embed_tokens.weight"
    ]
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_model.named_parameters())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"trainer": {"learning_speed": 1}},
            "trainer has no option 'learning_speed'; see transformers.TrainingArguments",
        ),
        ({"trainer": {"num_train_epochs": 2}}, "trainer cannot set num_train_epochs: that is epochs"),
        ({"trainer": {"output_dir": "elsewhere"}}, "trainer cannot set output_dir: checkpoints are beside the output"),
        ({"train": "half"}, "train is one of full, lora, not 'half'"),
        ({"micro_batch": 3, "batch_size": 4}, "micro_batch=3 does not divide batch_size=4"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, not 0"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0, not nan"),
        ({"epochs": -1.0}, "epochs must be above 0, not -1"),
        ({"epochs": math.inf}, "epochs must be above 0, not inf"),
        ({"max_steps": 0}, "max_steps must be above 0, not 0"),
        ({"batch_size": 0}, "batch_size must be above 0, not 0"),
        ({"max_length": 0}, "max_length must be above 0, not 0"),
        ({"lora_rank": 0}, "lora_rank must be above 0, not 0"),
        ({"lora_alpha": -8}, "lora_alpha must be above 0, not -8"),
        ({"patience": 0}, "patience must be above 0, not 0"),
        ({"lora_dropout": 1.5}, "lora_dropout is a share, not 1.5"),
        ({"warmup": math.nan}, "warmup is a share, not nan"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or more, not -0.1"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be 0 or more, not -1"),
    ],
)
def test_setting_that_makes_no_sense_is_refused_with_its_value(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        FineTuning(**wrong)


def test_learning_rate_is_that_of_the_way_of_training_unless_given() -> None:
    assert [FineTuning(train=train).rate for train in ("full", "lora")] == [2e-5, 2e-4]
    assert FineTuning(train="full", learning_rate=1e-3).rate == 1e-3


# ---- what is given back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", ["full", "lora"])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_configuration_modes_and_trainability_come_back(
    tiny_model: Any, tmp_path: Path, train: str, precision: torch.dtype | None
) -> None:
    tiny_model.model.embed_tokens.requires_grad_(False)
    tiny_model.config.architectures = ["LlamaForCausalLM"]  # as a checkpoint has it
    config, generation = tiny_model.config.to_dict(), tiny_model.generation_config.to_dict()
    tuned, _ = tune(
        tiny_model, made_up_rows(4), tmp_path, train=train, max_steps=2, validate=same_each_time, precision=precision
    )
    assert not any(module.training for module in tuned.modules())
    plain = tuned.unload() if train == "lora" else tuned
    assert plain is tiny_model
    assert tiny_model.config.to_dict() == config
    assert tiny_model.config.use_cache
    assert tiny_model.generation_config.to_dict() == generation
    assert [name for name, weight in tiny_model.named_parameters() if not weight.requires_grad] == [
        "model.embed_tokens.weight"
    ]
    assert all(weight.grad is None for weight in tiny_model.parameters())
    assert all("forward" not in vars(module) for module in tiny_model.modules())


def test_nothing_is_written_to_either_stream(
    tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune(tiny_model, made_up_rows(4), tmp_path, epochs=3, validate=same_each_time)
    assert capsys.readouterr() == ("", "")


def test_state_of_a_checkpoint_is_json_that_can_be_read(tiny_model: Any, tmp_path: Path) -> None:
    """What resuming rests on: whether the training was over when its state was written."""
    with pytest.raises(KeyboardInterrupt):
        tune(copy.deepcopy(tiny_model), made_up_rows(8), tmp_path, epochs=2, callbacks=[Interrupt(3)])
    assert not was_over(tmp_path / "checkpoint-2")
    tune(tiny_model, made_up_rows(8), tmp_path, epochs=2)
    assert was_over(tmp_path / "checkpoint-4")


def was_over(checkpoint: Path) -> bool:
    control = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]["TrainerControl"]
    return bool(control["args"]["should_training_stop"])
