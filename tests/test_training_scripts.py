"""The page for people with a training script of their own, run as it stands on the tiny model."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur import Decoder, PruningPlan, merge_layers_
from secateur.cli import main
from secateur.loading import load_model
from secateur.training.lora import gradient_checkpointing_quietly

PAGE = Path(__file__).parents[1] / "docs" / "training-scripts.md"
BLOCKS = dict(
    re.findall(r"^## ([^\n]+)\n.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
)


@pytest.fixture
def run(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a block in an empty folder that holds a task, with the tiny model in place of the hub's."""
    rows = [{"prompt": f"say {number}:", "completion": f" {number}{number}"} for number in range(40)]
    (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def run(title: str, **names: Any) -> dict[str, Any]:
        code = BLOCKS[title].replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tiny_checkpoint))
        code = code.replace("TrainingArguments(", "TrainingArguments(use_cpu=True, report_to='none', ")
        code = code.replace("SFTConfig(", "SFTConfig(use_cpu=True, bf16=False, report_to='none', ")
        with gradient_checkpointing_quietly(), contextlib.redirect_stdout(None):
            exec(compile(code, title, "exec"), names)  # noqa: S102  our own page
        return names

    return run


@pytest.fixture(autouse=True)
def _a_pad_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny tokenizer has none, as SmolLM2's has."""
    from transformers import AutoTokenizer

    original = AutoTokenizer.from_pretrained

    def with_pad(*args: Any, **kwargs: Any) -> Any:
        tokenizer = original(*args, **kwargs)
        tokenizer.pad_token = tokenizer.eos_token = tokenizer.unk_token
        return tokenizer

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", with_pad)


@pytest.mark.parametrize("title", ["transformers.Trainer", "trl.SFTTrainer", "Your own loop"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_page_gives_a_plan(run, title):
    names = run(title)
    plan = PruningPlan.load("plan.json")
    igia = names["igia"] if "igia" in names else names["callback"].igia
    assert igia.num_steps == 10
    assert plan.order == igia.scores().lowest(2)  # 25 % of 6 layers
    assert all(score > 0 for score in plan.scores)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_page_merges_and_cuts_the_model_in_memory(run):
    names = run("transformers.Trainer")
    code = BLOCKS["On the model in memory"]
    assert "drop=8" in code  # of 30 layers; the tiny model has 6
    exec(code.replace("drop=8", "drop=2"), names)  # noqa: S102  our own page
    assert names["model"].config.num_hidden_layers == 4
    assert names["plan"].order == names["callback"].layer_scores().lowest(2)
    assert "lora" not in " ".join(name for name, _ in names["model"].named_parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_plan_of_an_sft_run_applied_by_cut_leaves_the_layers_it_keeps(run, tiny_checkpoint):
    run("trl.SFTTrainer")
    plan = PruningPlan.load("plan.json")
    assert main(["cut", str(tiny_checkpoint), "--plan", "plan.json", "--out", "smaller", "--quiet"]) == 0
    dense, cut = load_model(tiny_checkpoint), load_model("smaller", strict=True)
    assert cut.config.num_hidden_layers == len(plan.kept) == 4
    for new, old in enumerate(plan.kept):
        pairs = zip(cut.model.layers[new].parameters(), dense.model.layers[old].parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_plan_with_merges_of_an_sft_run_applied_by_cut_gives_the_layers_merged_in_memory(run, tiny_checkpoint):
    callback = run("trl.SFTTrainer")["callback"]
    run("From the plan to a smaller model", callback=callback)
    plan = PruningPlan.load("plan.json")
    assert main(["cut", str(tiny_checkpoint), "--plan", "plan.json", "--out", "smaller", "--quiet"]) == 0
    expected, cut = load_model(tiny_checkpoint), load_model("smaller", strict=True)
    plain = [layer.mlp.up_proj.weight.detach().clone() for layer in expected.model.layers]
    report = merge_layers_(Decoder(expected), plan.merges, callback.igia, keep=0.2, merge="sign")
    assert [row["layer"] for row in report] == list(plan.dropped)
    for new, old in enumerate(plan.kept):
        pairs = zip(cut.model.layers[new].parameters(), expected.model.layers[old].parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
        merged = old in plan.merges.values()
        assert torch.equal(cut.model.layers[new].mlp.up_proj.weight, plain[old]) != merged


def test_page_names_only_blocks_that_are_tested():
    assert set(BLOCKS) == {
        "transformers.Trainer",
        "trl.SFTTrainer",
        "Your own loop",
        "From the plan to a smaller model",
        "On the model in memory",
    }
