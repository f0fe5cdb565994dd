"""Merges from a plan's file against the merge of the loaded model: merged by `merge_layers_`, cut and saved by transformers."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from secateur.cli import main
from secateur.decoder import Decoder
from secateur.errors import PlanError, UnsupportedModelError
from secateur.plan import PruningPlan
from secateur.surgery.check import check_pair
from secateur.surgery.files import cut_checkpoint
from secateur.surgery.live import remove_layers_
from secateur.surgery.masks import merged, write_masks
from secateur.surgery.merge import merge_layers_, top_entries
from secateur.surgery.names import layers_under
from secateur.surgery.shards import read_header
from surgery.test_files import expect_refusal, stored
from tiny_families import build

NAMES = ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"]
MERGES = {2: 1, 3: 1, 5: 4}


class Given:
    """Made-up IGIA-Matrices, with ties and zeros, of some weights."""

    def __init__(self, model: Any, names: list[str] = NAMES) -> None:
        generator = torch.Generator().manual_seed(1)
        self.matrices = {
            (layer, name): torch.randint(0, 50, module.get_parameter(name).shape, generator=generator).square() / 7
            for layer, module in enumerate(Decoder(model).layers)
            for name in names
        }

    def names(self, layer: int) -> list[str]:
        return [name for other, name in self.matrices if other == layer]

    def matrix(self, layer: int, name: str, device: Any = None) -> torch.Tensor:
        return self.matrices[layer, name].to(device)

    def write_masks(self, plan: PruningPlan, path: Path) -> None:
        write_masks(path, plan.merges, self, keep=plan.options["keep"], merge=plan.options["merge"])


def plan_of(evidence: Given, merge: str = "sign", keep: float = 0.2, merges: dict[int, int] = MERGES) -> PruningPlan:
    return PruningPlan(
        num_layers=6, order=tuple(merges), merges=merges, method="gradpruner", options={"merge": merge, "keep": keep},
        evidence=evidence,
    )  # fmt: skip


def saved(plan: PruningPlan, folder: Path) -> PruningPlan:
    plan.save(folder / "plan.json")
    return PruningPlan.load(folder / "plan.json")


def live(model: Any, plan: PruningPlan, directory: Path) -> Path:
    """In memory, as `secateur prune` does it."""
    merge_layers_(Decoder(model), plan.merges, plan.evidence, **plan.options)
    remove_layers_(model, plan.dropped)
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    build("llama").save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


# ---- file to file equals live -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["5GB", "20KB"], ids=["one file", "shards"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("merge", ["sign", "sign-igia"])
def test_merges_of_a_plan_file_equal_the_merged_and_cut_live_model_byte_for_byte(merge, dtype, tied, size, tmp_path):
    model = build("llama", tie_word_embeddings=tied).to(getattr(torch, dtype))
    with torch.no_grad():  # a zero of either sign is where adding nothing shows
        model.model.layers[1].mlp.up_proj.weight[:3] = torch.tensor([-0.0])
    model.save_pretrained(tmp_path / "dense", max_shard_size=size)
    plan = plan_of(Given(model), merge)
    report = cut_checkpoint(tmp_path / "dense", tmp_path / "out", saved(plan, tmp_path))
    plain = cut_checkpoint(tmp_path / "dense", tmp_path / "plain", plan.dropped)
    found, without = stored(tmp_path / "out"), stored(tmp_path / "plain")
    assert found == stored(live(model, plan, tmp_path / "live"))
    changed = {name for name in found if found[name] != without[name]}
    assert changed == {f"model.layers.{layer}.{name}" for layer in (1, 2) for name in NAMES}
    assert (report.num_folded, plain.num_folded) == (len(changed), 0)


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma3_text"])
def test_weights_as_other_families_store_them_equal_the_live_model_byte_for_byte(family, tmp_path):
    names = ["attn.c_attn.weight", "mlp.c_fc.weight"] if family == "gpt2" else NAMES
    model = build(family)
    model.save_pretrained(tmp_path / "dense")
    plan = plan_of(Given(model, names), "sign-igia")
    cut_checkpoint(tmp_path / "dense", tmp_path / "out", saved(plan, tmp_path))
    assert stored(tmp_path / "out") == stored(live(model, plan, tmp_path / "live"))


def test_weights_larger_than_a_chunk_equal_the_live_model_and_are_never_in_memory_whole(tmp_path):
    model = build("llama", intermediate_size=90_000)  # 11.5 MB a weight in float32
    model.save_pretrained(tmp_path / "dense")
    plan = plan_of(Given(model, ["mlp.up_proj.weight"]), "sign-igia", merges={2: 1})
    loaded = saved(plan, tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors, _ = read_header(tmp_path / "dense" / "model.safetensors")
    after = merged(layers_under(tensors, "model.layers"), loaded)[1]["mlp.up_proj.weight"]
    raw = stored(live(model, plan, tmp_path / "live"))[name][2]
    tracemalloc.start()
    try:
        place = 0
        for chunk in after.chunks():
            assert chunk == raw[place : place + len(chunk)]
            place += len(chunk)
        assert tracemalloc.get_traced_memory()[1] < len(raw)
    finally:
        tracemalloc.stop()
    assert place == len(raw) == 90_000 * 32 * 4


def test_file_holds_a_bit_an_entry_and_the_share_of_those_chosen(tmp_path):
    model = build("llama")
    evidence = Given(model)
    loaded = saved(plan_of(evidence, "sign-igia"), tmp_path)
    assert loaded.masks.path == tmp_path / "plan.masks.safetensors"
    key = f"3.{NAMES[2]}"
    with safe_open(loaded.masks.path, "pt") as file:
        assert json.loads(file.metadata()["merges"]) == {"2": 1, "3": 1, "5": 4}
        bits, share = file.get_tensor(f"{key}.top"), file.get_tensor(f"{key}.share")
    pruned, kept = evidence.matrix(3, NAMES[2]), evidence.matrix(1, NAMES[2])
    top = top_entries(pruned, 0.2)
    assert bits.tolist() == np.packbits(top.numpy().reshape(-1), bitorder="little").tolist()
    assert torch.equal(share, (pruned / (pruned + kept))[top])


# ---- the file beside the plan -------------------------------------------------------------------------------------------


def test_plan_saved_again_takes_its_masks_along(dense, tmp_path):
    plan = saved(plan_of(Given(build("llama"))), tmp_path)
    (tmp_path / "other").mkdir()
    plan.save(tmp_path / "other" / "mine.json")
    again = PruningPlan.load(tmp_path / "other" / "mine.json")
    assert again.masks.path == tmp_path / "other" / "mine.masks.safetensors"
    assert again.masks.path.read_bytes() == plan.masks.path.read_bytes()
    cut_checkpoint(dense, tmp_path / "out", again)
    assert (tmp_path / "out" / "secateur" / "plan.masks.safetensors").read_bytes() == plan.masks.path.read_bytes()


def test_check_proves_a_merged_checkpoint_by_its_plan_and_names_a_bit_that_differs(dense, tmp_path):
    out = tmp_path / "out"
    cut_checkpoint(dense, out, saved(plan_of(Given(build("llama"))), tmp_path))
    check = check_pair(dense, out)
    assert (check.proven, check.dropped) == (True, (2, 3, 5))
    weights = load_file(out / "model.safetensors")
    name = f"model.layers.1.{NAMES[0]}"
    weights[name][0, 0] += 1
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    assert f"'{name}' is not as in the dense model" in (check_pair(dense, out).difference or "")


def test_check_says_that_the_masks_are_lost(dense, tmp_path):
    out = tmp_path / "out"
    cut_checkpoint(dense, out, saved(plan_of(Given(build("llama"))), tmp_path))
    (out / "secateur" / "plan.masks.safetensors").unlink()
    assert "cannot read the plan's masks" in (check_pair(dense, out).difference or "")


def damage(kind: str, plan: PruningPlan) -> None:
    path = plan.masks.path
    if kind == "lost":
        path.unlink()
    elif kind == "a directory":
        path.unlink()
        path.mkdir()
    else:
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw if kind == "a bit altered" else raw[:-1])


@pytest.mark.parametrize("kind", ["lost", "a directory", "a bit altered", "cut short"])
def test_lost_or_altered_masks_are_one_line_with_the_remedy_and_nothing_is_written(kind, dense, tmp_path):
    (tmp_path / "plans").mkdir()
    plan = saved(plan_of(Given(build("llama"))), tmp_path / "plans")
    damage(kind, plan)
    with pytest.raises(PlanError, match=r"masks.*; put the one .* beside it, or cut without the merge: --layers 2,3,5"):
        cut_checkpoint(dense, tmp_path / "out", plan)
    assert not (tmp_path / "out").exists()
    with pytest.raises(PlanError, match="masks"):
        plan.save(tmp_path / "again.json")
    assert not [*tmp_path.glob("again*"), *tmp_path.glob(".again*")]


def consistent(plan: PruningPlan, change: Any) -> PruningPlan:
    """The plan with a file of masks that somebody changed, hash and all."""
    path = plan.masks.path
    with safe_open(path, "pt") as file:
        words = file.metadata()
    tensors = load_file(path)
    change(tensors, words)
    save_file(tensors, path, metadata=words)
    from secateur.disk import sha256

    return replace(plan, masks=replace(plan.masks, sha256=sha256(path)))


def drop_a_mask(tensors: Any, _: Any) -> None:
    del tensors[f"2.{NAMES[0]}.top"]


def shorten_a_mask(tensors: Any, _: Any) -> None:
    tensors[f"2.{NAMES[0]}.top"] = tensors[f"2.{NAMES[0]}.top"][:-1]


def shorten_a_share(tensors: Any, _: Any) -> None:
    tensors[f"2.{NAMES[0]}.share"] = tensors[f"2.{NAMES[0]}.share"][:-1]


def other_merges(_: Any, words: Any) -> None:
    words["merges"] = words["merges"].replace("4", "0")


def no_json(_: Any, words: Any) -> None:
    words["shapes"] = "["


def no_words(_: Any, words: Any) -> None:
    del words["merge"]


@pytest.mark.parametrize(
    "change",
    [drop_a_mask, shorten_a_mask, shorten_a_share, other_merges, no_json, no_words],
    ids=lambda each: each.__name__,
)
def test_files_that_are_no_masks_of_the_plan_are_one_line_and_nothing_is_written(change, dense, tmp_path):
    plan = consistent(saved(plan_of(Given(build("llama")), "sign-igia"), tmp_path), change)
    expect_refusal(PlanError, "make the plan again", dense, plan)


def test_plan_with_merges_and_no_masks_is_refused_with_the_layers_to_cut_without(dense):
    plan = replace(plan_of(Given(build("llama"))), evidence=None)
    expect_refusal(PlanError, r"no file with the entries.*--layers 2,3,5", dense, plan)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "x.bin", 3, None])
def test_masks_elsewhere_than_beside_the_plan_are_no_plan(name, tmp_path):
    saved(plan_of(Given(build("llama"))), tmp_path)
    body = json.loads((tmp_path / "plan.json").read_text())
    body["masks"]["file"] = name
    (tmp_path / "plan.json").write_text(json.dumps(body))
    with pytest.raises(PlanError, match="is not a pruning plan"):
        PruningPlan.load(tmp_path / "plan.json")


def test_quantised_weights_are_refused(dense, tmp_path):
    plan = saved(plan_of(Given(build("llama"))), tmp_path)
    packed = {
        name: value.to(torch.float8_e4m3fn) if "_proj" in name else value
        for name, value in load_file(dense / "model.safetensors").items()
    }
    save_file(packed, dense / "model.safetensors", metadata={"format": "pt"})
    expect_refusal(UnsupportedModelError, "cannot merge layer 2 into layer 1", dense, plan)


def test_weights_that_the_files_hold_otherwise_than_the_model_are_refused(tmp_path):
    """The model has all experts of a layer in one weight, the files have them one by one."""
    model = build("qwen2_moe", mlp_only_layers=[])
    model.save_pretrained(tmp_path / "dense")
    plan = saved(plan_of(Given(model, ["mlp.experts.down_proj"]), merges={2: 0}), tmp_path)
    expect_refusal(UnsupportedModelError, "do not hold 'mlp.experts.down_proj'", tmp_path / "dense", plan)


def test_masks_copied_to_another_place_with_the_plan_are_found(dense, tmp_path):
    saved(plan_of(Given(build("llama"))), tmp_path)
    (tmp_path / "moved").mkdir()
    for file in tmp_path.glob("plan.*"):
        shutil.move(file, tmp_path / "moved")
    report = cut_checkpoint(dense, tmp_path / "out", PruningPlan.load(tmp_path / "moved" / "plan.json"))
    assert report.num_folded == 2 * len(NAMES)


def test_the_card_of_a_cut_says_which_layers_were_merged(dense, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(plan_of(Given(build("llama"))), tmp_path)
    assert main(["cut", str(dense), "--plan", "plan.json", "--out", "out", "--quiet"]) == 0
    card = Path("out/README.md").read_text()
    for layer, into in MERGES.items():
        assert f"layer {layer} merged into layer {into}: the entries that the plan's masks mark were added" in card


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"method": "elder"}, "elder also changes weights before the cut"),
        ({"method": "given", "provenance": {"prepared_by": "elder"}}, "elder also changes weights before the cut"),
        ({"method": "gradpruner", "options": {"absorb": "map"}}, "gradpruner with absorb also changes weights"),
        ({"method": "shortgpt"}, None),
        ({"method": "given"}, None),
        ({}, None),
    ],
)
def test_command_says_what_a_plan_does_not_hold(plan, words, dense, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if plan.get("options"):  # its merges are done, and yet there is more
        saved(replace(plan_of(Given(build("llama"))), options=plan_of(None).options | plan["options"]), tmp_path)
    else:
        PruningPlan(num_layers=6, order=(2, 3), **plan).save("plan.json")
    assert main(["cut", str(dense), "--plan", "plan.json", "--out", "out"]) == 0
    error = capsys.readouterr().err
    assert words in error if words else "also changes" not in error
