"""What `secateur cut` leaves beside the weights, held to what `prune` leaves, to the cut itself and to the files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from secateur.cli import main
from secateur.plan import PruningPlan
from secateur.report import cut
from secateur.report.record import describe_model
from secateur.surgery.files import cut_checkpoint
from surgery.test_files import tree

CARD = """---
license: other
license_name: ours
language: [en, de]
base_model: org/base
datasets: [org/text]
tags: [made-for-this]
---

The dense model has a perplexity of 12.3.
"""


@pytest.fixture
def dense(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A model with a card, in a folder whose name nobody else is to know."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "private" / "dense"))
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_text("yes")
    return folder


def cut_by(dense: Path, *words: str) -> Path:
    out = dense.parent / "out"
    assert main(["cut", str(dense), "--out", str(out), "--quiet", *words]) == 0
    return out


def read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text()))


# ---- the card ------------------------------------------------------------------------------------------------------------


def test_metadata_is_that_of_the_card_that_prune_writes(dense: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Sentence {n} says that {n} times {n} is {n * n}.\n\n" for n in range(200)))
    small = ["--sequence-length=32", "--num-sequences=4", "--num-eval-sequences=2", "--quiet"]
    pruned = ["prune", str(dense), "--method=random", "--data", str(text), "--layers=1", *small]
    assert main([*pruned, "--out", str(tmp_path / "pruned")]) == 0
    by_prune, by_cut = (
        ModelCard.load(folder / "README.md").data.to_dict()
        for folder in (tmp_path / "pruned", cut_by(dense, "--layers", "1"))
    )
    for measured in ("model-index", "model_name"):
        by_prune.pop(measured, None)
    assert by_cut == by_prune
    assert by_cut["base_model"] == "org/base"
    assert (by_cut["license"], by_cut["license_name"], by_cut["language"]) == ("other", "ours", ["en", "de"])


def test_it_says_what_was_removed_that_nothing_was_measured_and_what_measures_it(dense: Path) -> None:
    text = (cut_by(dense, "--layers", "4,1-2") / "README.md").read_text()
    assert "3 of its 6 decoder layers removed. Removed (counted from 0): 1–2, 4." in text
    assert "chosen by" not in text
    assert "| layers | 6 | 3 | −50.0 % |" in text
    assert "Nothing was measured of this model" in text
    assert "figures above" not in text
    for command in ("check", "eval", "bench"):
        assert f"secateur {command} path/to/the/dense/model path/to/this/folder" in text
    assert "nothing was calibrated" in text
    assert "The layers that stay have the weights that they had in the dense model." in text
    assert "secateur cut dense --out out --quiet --layers 4,1-2" in text
    assert "AutoModelForCausalLM.from_pretrained" in text
    assert "## Limits" in text


def test_nothing_of_the_dense_models_card_and_no_path_of_this_machine_is_in_it(dense: Path) -> None:
    text = (cut_by(dense, "--layers", "1") / "README.md").read_text()
    assert "12.3" not in text
    assert "made-for-this" not in text
    assert "private" not in text


def test_a_model_without_a_card_has_no_base_and_no_licence(dense: Path) -> None:
    (dense / "README.md").unlink()
    text = (cut_by(dense, "--layers", "1") / "README.md").read_text()
    assert ModelCard(text).data.base_model is None
    assert "Licence unknown" in text
    assert "local directory: where it comes from is not known" in text


def test_a_hub_id_is_the_base_and_the_folder_of_its_cache_the_revision(
    dense: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit = tmp_path / "models--org--tiny" / "snapshots" / "c0ffee"
    shutil.copytree(dense, commit)
    monkeypatch.setattr("secateur.loading.local_checkpoint", lambda source, revision: commit)
    monkeypatch.chdir(tmp_path)
    assert main(["cut", "org/tiny", "--revision=main", "--layers=1", "--out=out", "--quiet"]) == 0
    text = Path("out/README.md").read_text()
    assert ModelCard(text).data.base_model == "org/tiny"
    assert "secateur check org/tiny path/to/this/folder" in text
    assert "revision `c0ffee`" in text
    assert read(Path("out/secateur/record.json"))["model"]["id"] == "org/tiny"


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"method": "shortgpt"}, ["chosen by the method `shortgpt`", "have the weights that they had"]),
        ({"method": "elder"}, ["chosen by the method `elder`", "What elder also does to weights", "was not done"]),
        (
            {"method": "laco", "provenance": {"folds": [{"into": 1, "layers": [2, 3]}]}},
            ["layers 2–3 folded into layer 1: their differences to it were added"],
        ),
        (
            {"method": "shortgpt", "provenance": {"data": {"spec": "wikitext2", "tokens": 2048}}},
            ["Calibration text: `wikitext2`, 2,048 tokens."],
        ),
        ({"method": "shortgpt", "provenance": {"data": {"spec": 5}}}, ["chosen by the method `shortgpt`"]),
        ({"method": "shortgpt", "provenance": {"data": "wikitext2"}}, ["chosen by the method `shortgpt`"]),
        ({}, ["nothing was calibrated"]),
    ],
)
def test_what_a_plan_says_and_what_it_did_to_weights_is_told(
    dense: Path, plan: dict[str, Any], says: list[str]
) -> None:
    file = dense.parent / "plan.json"
    PruningPlan(num_layers=6, order=(2, 3), **plan).save(file)
    out = cut_by(dense, "--plan", str(file))
    text = (out / "README.md").read_text()
    assert [words for words in says if words not in text] == []
    assert ("nothing was calibrated" in text) == (plan == {})
    assert PruningPlan.load(out / "secateur" / "plan.json") == PruningPlan.load(file)


# ---- the record, and the commands that read it ----------------------------------------------------------------------------


def test_weights_and_what_lies_beside_them_are_those_of_the_cut_alone(dense: Path, tmp_path: Path) -> None:
    alone = cut_checkpoint(dense, tmp_path / "alone", [1, 4]).target
    added = {"README.md", "secateur", "secateur/plan.json", "secateur/record.json"}
    found = tree(cut_by(dense, "--layers", "1,4"))
    assert added < found.keys()
    assert {name: raw for name, raw in found.items() if name not in added} == tree(alone)


def test_the_record_names_the_model_as_prune_does_and_the_sizes_are_those_of_the_weights(dense: Path) -> None:
    out = cut_by(dense, "--layers", "1,4")
    record = read(out / "secateur" / "record.json")
    about = describe_model(AutoModelForCausalLM.from_pretrained(dense), id=str(dense))
    assert record["model"] == {**about, "num_parameters": None}
    assert record["method"] == {"name": "cut", "options": {}}
    assert record["dropped"] == [1, 4]
    header = 10_000
    for name, folder in (("dense", dense), ("pruned", out)):
        size = (folder / "model.safetensors").stat().st_size
        assert size - header < record["metrics"][name]["size_bytes"] < size
    assert (record["proof"], record["data"], record["seed"]) == (None, None, None)
    plan = PruningPlan.load(out / "secateur" / "plan.json")
    assert (plan.num_layers, plan.dropped) == (6, (1, 4))


def test_check_proves_it_report_makes_a_page_of_it_and_eval_knows_that_it_was_pruned(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, text = cut_by(dense, "--layers", "1,4"), tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    assert main(["check", str(dense), str(out), "--quiet"]) == 0
    page = tmp_path / "page.html"
    assert main(["report", str(out), "--out", str(page)]) == 0
    assert "2 of 6 layers were removed by cut: what it cost was not measured." in page.read_text()
    other = Path(shutil.copytree(out, tmp_path / "other"))
    assert main(["report", str(out), str(other), "--out", str(page)]) == 0
    assert "Their quality was not measured." in page.read_text()
    capsys.readouterr()
    assert main(["eval", str(out), "--data", str(text), "--sequence-length=32", "--num-sequences=2"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == f"next: secateur bench DENSE {out}"


# ---- whole or not at all -------------------------------------------------------------------------------------------------


def test_a_card_that_cannot_be_written_leaves_nothing(
    dense: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cut, "model_card", full)
    assert main(["cut", str(dense), "--layers=1", f"--out={dense.parent / 'out'}", "--quiet"]) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert [path.name for path in dense.parent.iterdir()] == ["dense"]


def test_a_dry_run_writes_none_of_it(dense: Path) -> None:
    cut_by(dense, "--layers", "1", "--dry-run")
    assert [path.name for path in dense.parent.iterdir()] == ["dense"]


@pytest.mark.parametrize("card", ["---\nlicense: [\n---\n", "\0", "no metadata"])
def test_a_strangers_card_in_whatever_state_is_no_hindrance(dense: Path, card: str) -> None:
    (dense / "README.md").write_text(card)
    assert ModelCard.load(cut_by(dense, "--layers", "1") / "README.md").data.license is None
