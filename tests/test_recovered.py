"""`prune` with a recovery, end to end: what is proven, what is measured, what is left."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from secateur import stages, text_workbench
from secateur.data import evaluation_windows
from secateur.decoder import Decoder
from secateur.errors import ProofError, RequestError, TrainingDivergedError
from secateur.evaluation.perplexity import perplexity
from secateur.loading import load_model, load_tokenizer
from secateur.methods import method_named
from secateur.pipeline import prune
from secateur.request import Pruned, Target, TextSettings
from secateur.surgery.live import remove_layers_
from secateur.training.recovery import Recovery, recover_

BUDGET = 12 * 32  # tokens: eight windows of 32, and four of them again


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextSettings:
    folder = tmp_path_factory.mktemp("text")
    lines = [f"Sentence {n} says that {n} times {n} is {n * n}, and nothing else.\n\n" for n in range(300)]
    (folder / "train.txt").write_text("".join(lines[:240]))
    (folder / "test.txt").write_text("".join(lines[240:]))
    return TextSettings(
        data=str(folder / "train.txt"), eval_data=str(folder / "test.txt"),
        sequence_length=32, num_sequences=8, num_eval_sequences=6, batch_size=4,
    )  # fmt: skip


def pruned(source: Path, text: TextSettings, out: Path, method: Any = "shortgpt", **recovery: Any) -> Pruned:
    settings = Recovery(recover_tokens=BUDGET, **recovery) if recovery else None
    return prune(
        source, method=method, text=text, target=Target(layers=(1, 4)), out=out, recovery=settings, seed=3,
        speed=False, prompts=(), precision="fp32",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["lora", "partial", "full", "distill"])
def test_written_weights_are_those_of_a_model_that_was_cut_and_recovered_by_hand(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, kind: Any
) -> None:
    rate = 1e-2 if kind == "lora" else 3e-3
    record = pruned(tiny_checkpoint, text, tmp_path / "out", recover=kind, recover_rate=rate).record
    tokenizer = load_tokenizer(tiny_checkpoint)
    data, _ = text.load(tokenizer, 3)
    model, dense = (load_model(tiny_checkpoint) for _ in range(2))
    remove_layers_(model, (1, 4))
    windows = evaluation_windows(str(text.eval_data), tokenizer, sequence_length=32, num_sequences=6)
    before = perplexity(model, windows).perplexity
    settings = Recovery(recover=kind, recover_tokens=BUDGET, recover_rate=rate)
    report = recover_(Decoder(model), data, settings=settings, teacher=dense, seed=3)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, weight in model.state_dict().items():
        assert torch.equal(written.state_dict()[name], weight), name

    assert record["recovery"]["tokens"] == report["tokens"] == BUDGET
    assert record["recovery"]["losses"] == report["losses"]
    assert record["recovery"]["cut_difference"] < 1e-5
    assert record["proof"]["max_difference"] <= record["proof"]["tolerance"]
    assert record["metrics"]["cut"]["perplexity"] == pytest.approx(before, rel=1e-5)
    assert record["metrics"]["pruned"]["perplexity"] == pytest.approx(perplexity(written, windows).perplexity, rel=1e-5)
    assert record["metrics"]["pruned"]["perplexity"] < before
    card = (tmp_path / "out" / "README.md").read_text()
    assert re.search(r"- after the cut, .* trained.*: \d+ steps on 384 tokens of .*: perplexity", card)
    assert {"cut", "recover", "measure before recovery"} <= record["timings"].keys()


def test_no_recovery_writes_the_same_bytes_as_leaving_it_out(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path
) -> None:
    results = [
        pruned(tiny_checkpoint, text, tmp_path / "a"),
        pruned(tiny_checkpoint, text, tmp_path / "b", recover="none"),
    ]
    one, other = (hashlib.sha256((at.path / "model.safetensors").read_bytes()).digest() for at in results)
    assert one == other
    assert all(result.record["recovery"] is None and "cut" not in result.record["metrics"] for result in results)


def test_teacher_is_the_dense_model_and_not_the_prepared_one(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def watch(*args: Any, teacher: Any, **rest: Any) -> Any:
        seen.append({name: weight.clone() for name, weight in teacher.state_dict().items()})
        return recover_(*args, teacher=teacher, **rest)

    monkeypatch.setattr(text_workbench, "recover_", watch)
    method = method_named("elder")(joint_steps=2, steps=2, gate_sequences=2, learning_rate=1e-2, absorb=None)
    record = pruned(tiny_checkpoint, text, tmp_path / "out", method, recover="distill").record
    dense = load_model(tiny_checkpoint).state_dict()
    assert seen[0].keys() == dense.keys()
    assert all(torch.equal(seen[0][name], dense[name]) for name in dense)
    before, cut = record["preparation"]["perplexity_before_cut"], record["metrics"]["cut"]["perplexity"]
    assert before == pytest.approx(cut, rel=1e-5)  # elder's layers had faded: the cut changed nothing


def test_bfloat16_checkpoint_is_recovered_in_float32_and_written_as_it_was(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    load_model(tiny_checkpoint, dtype="bfloat16").save_pretrained(half)
    load_tokenizer(tiny_checkpoint).save_pretrained(half)
    result = pruned(half, text, tmp_path / "out", recover="full", recover_rate=1e-4)
    data, _ = text.load(load_tokenizer(half), 3)
    model = load_model(half)
    remove_layers_(model, (1, 4))
    settings = Recovery(recover="full", recover_tokens=BUDGET, recover_rate=1e-4)
    recover_(Decoder(model.float()), data, settings=settings, seed=3)
    written = load_model(result.path)
    assert written.dtype is torch.bfloat16
    for name, weight in written.named_parameters():
        assert torch.equal(weight, model.get_parameter(name).bfloat16()), name
    assert result.record["metrics"]["pruned"]["size_bytes"] < result.record["metrics"]["dense"]["size_bytes"]


def test_cut_that_is_not_the_bypassed_model_is_never_trained(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = text_workbench.cut_copy
    monkeypatch.setattr(text_workbench, "cut_copy", lambda decoder, dropped: original(decoder, (0, 1)))
    monkeypatch.setattr(text_workbench, "recover_", lambda *_, **__: pytest.fail("it was trained"))
    with pytest.raises(ProofError, match="the cut model's logits differ by"):
        pruned(tiny_checkpoint, text, tmp_path / "out", recover="full")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["cut_copy", "recover_", "write_and_prove"])
def test_interrupt_leaves_what_was_done_and_nothing_at_out(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    original = getattr(text_workbench, place)

    def stop(*args: Any, **rest: Any) -> None:
        original(*args, **rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(text_workbench, place, stop)
    with pytest.raises(KeyboardInterrupt):
        pruned(tiny_checkpoint, text, tmp_path / "out", recover="lora")
    assert [path.name for path in tmp_path.iterdir()] == ["out.work"]


def test_diverged_recovery_saves_the_cut_model_beside_out(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path
) -> None:
    with pytest.raises(TrainingDivergedError, match=r"saved, with the layers removed, to .*out\.last-good"):
        pruned(tiny_checkpoint, text, tmp_path / "out", recover="full", recover_rate=1e38)
    assert [path.name for path in tmp_path.iterdir()] == ["out.last-good"]
    kept, dense = load_model(tmp_path / "out.last-good"), load_model(tiny_checkpoint)
    for new, old in enumerate((0, 2, 3, 5)):
        weights = (model.model.layers[at].mlp.up_proj.weight for model, at in ((kept, new), (dense, old)))
        assert torch.allclose(*weights, atol=1e-6)


def test_budget_below_a_window_is_refused_before_anything_is_measured(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "perplexity", lambda *_, **__: pytest.fail("it was measured"))
    with pytest.raises(RequestError, match="recover_tokens=31 is less than one window of 32 tokens"):
        prune(
            tiny_checkpoint, method="random", text=text, target=Target(drop=2), out=tmp_path / "out",
            recovery=Recovery(recover="full", recover_tokens=31),
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_what_trainings_report_to_tensorboard_is_kept_step_by_step(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path
) -> None:
    """The losses that TensorBoard reads are those of the record."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    to_it = {"report_to": "tensorboard"}
    record = pruned(tiny_checkpoint, text, tmp_path / "out", recover="full", recover_trainer=to_it).record
    (file,) = (tmp_path / "out" / "secateur" / "runs").glob("recovered-training/*/events.*")
    events = accumulator.EventAccumulator(str(file)).Reload().Scalars("train/loss")
    assert [event.step for event in events] == [step["step"] + 1 for step in record["recovery"]["losses"]]
    losses = [step["loss"] for step in record["recovery"]["losses"]]
    assert [event.value for event in events] == pytest.approx(losses, rel=1e-6)
