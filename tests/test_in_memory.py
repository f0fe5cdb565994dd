"""Pruning a model in memory: against the parts put together by hand, and what is left where a request is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.data import TokenBatches
from secateur.data.examples import load_examples
from secateur.data.task import windows_of
from secateur.decoder import Decoder
from secateur.errors import DataError, PlanError, RequestError
from secateur.in_memory import elder, gradpruner
from secateur.methods import Run
from secateur.methods.gradpruner import GradPruner
from secateur.request import TextSettings
from secateur.surgery.live import remove_layers_
from secateur.training.rows import rows_of, rows_of_windows
from secateur.training.supervised import FineTuning, fine_tune_

FEW_ELDER = {"first_steps": 2, "round_steps": 1, "joint_steps": 3, "steps": 2, "gate_sequences": 3}
QUICK: dict[str, Any] = {"scoring_steps": 0.4, "scoring_rank": 2, "scoring_rate": 1e-2}
METHOD = GradPruner(**QUICK)
SEED = 5


def quick_tuning(train: Any, **more: Any) -> FineTuning:
    few = {"epochs": 2, "batch_size": 8, "micro_batch": 4, "learning_rate": 3e-3, "lora_rank": 2}
    return FineTuning(train=train, **few | more)


@pytest.fixture
def windows() -> TokenBatches:
    return TokenBatches(torch.randint(3, 120, (8, 24), generator=torch.Generator().manual_seed(1)), 4, "made up")


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Thirty sums, classified by whether they are even."""
    path = tmp_path / "sums.jsonl"
    rows = [{"text": f"{a} and {b}", "label_text": ("even", "odd")[(a + b) % 2]} for a in range(10) for b in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def text(tmp_path: Path) -> TextSettings:
    lines = [f"Sentence {n} says that {n} times {n} is {n * n}, and nothing else.\n\n" for n in range(200)]
    (tmp_path / "text.txt").write_text("".join(lines))
    return TextSettings(
        data=str(tmp_path / "text.txt"), sequence_length=32, num_sequences=8, num_eval_sequences=6, batch_size=4
    )


# ---- elder -----------------------------------------------------------------------------------------------------------------


def test_elder_in_memory_leaves_a_working_smaller_model(
    tiny_model: Any, tiny_tokenizer: Any, windows: TokenBatches
) -> None:
    plan = elder(tiny_model, tiny_tokenizer, windows, drop=0.33, **FEW_ELDER)
    assert len(plan.dropped) == 2
    assert len(tiny_model.model.layers) == tiny_model.config.num_hidden_layers == 4
    assert bool(torch.isfinite(tiny_model(input_ids=windows.input_ids).logits).all())
    assert tiny_model.generate(windows.input_ids[:1], max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (
        1,
        27,
    )


def test_elder_with_text_equals_elder_with_its_tokens(tiny_model: Any, tiny_tokenizer: Any, text: TextSettings) -> None:
    twin = copy.deepcopy(tiny_model)
    first = elder(tiny_model, tiny_tokenizer, text.data, drop=2, text=text, seed=2, **FEW_ELDER)
    second = elder(twin, tiny_tokenizer, text.load(tiny_tokenizer, 2)[0], drop=2, seed=2, **FEW_ELDER)
    assert first.order == second.order
    for one, other in zip(tiny_model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_elder_refuses_an_unknown_setting_and_changes_nothing(
    tiny_model: Any, tiny_tokenizer: Any, windows: TokenBatches
) -> None:
    with pytest.raises(RequestError, match="elder has no setting 'lamda'"):
        elder(tiny_model, tiny_tokenizer, windows, drop=2, lamda=1)
    with pytest.raises(PlanError, match="cannot drop 6 of 6 layers"):
        elder(tiny_model, tiny_tokenizer, windows, drop=6)
    assert len(tiny_model.model.layers) == 6


# ---- gradpruner ------------------------------------------------------------------------------------------------------------


def test_model_in_memory_is_scored_merged_and_cut(tiny_model: Any, tiny_tokenizer: Any, windows: TokenBatches) -> None:
    twin = copy.deepcopy(tiny_model)
    plan = gradpruner(tiny_model, tiny_tokenizer, windows, drop=0.33, seed=3, precision="fp32", **QUICK)
    decoder, about = Decoder(twin), Run(seed=3)
    expected = METHOD.plan(decoder, windows, drop=2, run=about)
    METHOD.prepare_(decoder, windows, expected, run=about)
    remove_layers_(twin, expected.dropped)
    assert plan == expected
    assert len(tiny_model.model.layers) == tiny_model.config.num_hidden_layers == 4
    for (name, one), other in zip(tiny_model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert tiny_model.generate(windows.input_ids[:2], max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (
        2,
        27,
    )


@pytest.mark.parametrize("train", ["full", "lora"])
def test_model_in_memory_is_fine_tuned_after_the_cut_if_asked_to(
    tiny_model: Any, tiny_tokenizer: Any, data: str, tmp_path: Path, train: str
) -> None:
    twin, tuned, examples = copy.deepcopy(tiny_model), quick_tuning(train, max_steps=2), load_examples(data)
    given: Any = data if train == "full" else examples
    plan = gradpruner(tiny_model, tiny_tokenizer, given, drop=2, tuning=tuned, seed=SEED, precision="fp32", **QUICK)
    rows = rows_of(examples, twin, tiny_tokenizer, max_length=tuned.max_length)
    texts = windows_of(examples, tiny_tokenizer, sequence_length=256, num_sequences=128)
    decoder, about = Decoder(twin), Run(seed=SEED)
    expected = METHOD.plan_on_task(decoder, rows, texts, drop=2, run=about, total_steps=tuned.num_steps(len(rows)))
    METHOD.prepare_(decoder, texts, expected, run=about)
    remove_layers_(twin, expected.dropped)
    result, _ = fine_tune_(Decoder(twin), rows, settings=tuned, work=tmp_path, seed=SEED, save=False)
    if train == "lora":
        result.merge_and_unload()
    assert plan == expected
    assert [name for name, _ in tiny_model.named_parameters()] == [name for name, _ in twin.named_parameters()]
    assert all(weight.requires_grad and weight.grad is None for weight in tiny_model.parameters())
    for (name, one), other in zip(tiny_model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_model_in_memory_is_fine_tuned_on_windows_of_text_too(
    tiny_model: Any, tiny_tokenizer: Any, windows: TokenBatches, tmp_path: Path
) -> None:
    before = copy.deepcopy(tiny_model)
    gradpruner(
        tiny_model,
        tiny_tokenizer,
        windows,
        drop=2,
        tuning=quick_tuning("full", epochs=20),
        work=tmp_path,
        precision="fp32",
        **QUICK,
    )
    rows = [torch.tensor(row["input_ids"]) for row in rows_of_windows(windows)]
    losses = [
        sum(model(input_ids=row[None], labels=row[None]).loss.item() for row in rows) for model in (before, tiny_model)
    ]
    assert losses[1] < 0.8 * losses[0]  # of text it has seen, with two layers fewer
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()]  # its checkpoints


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"keeep": 0.1}, RequestError, "gradpruner has no setting 'keeep'; choose among absorb, absorb_alpha"),
        ({"keep": 7}, RequestError, "keep is the share"),
        ({"drop": 6}, PlanError, r"cannot drop 6 of 6 layers; choose 1\.\.5"),
        ({"drop": 1.0}, PlanError, "cannot drop a share of 1"),
        ({"data": "nowhere.jsonl"}, DataError, "nowhere.jsonl"),
        ({"tuning": quick_tuning("lora", trainer={"logging_strategy": "no-such"})}, RequestError, "trainer options"),
    ],
)
def test_wrong_request_in_memory_is_refused(
    tiny_model: Any, tiny_tokenizer: Any, windows: TokenBatches, wrong: dict[str, Any], error: Any, message: str
) -> None:
    before = copy.deepcopy(tiny_model)
    request: dict[str, Any] = {"data": windows, "drop": 2, **QUICK, **wrong}
    with pytest.raises(error, match=message):
        gradpruner(tiny_model, tiny_tokenizer, **request)
    assert all(torch.equal(one, other) for one, other in zip(before.parameters(), tiny_model.parameters(), strict=True))
    assert len(tiny_model.model.layers) == 6
