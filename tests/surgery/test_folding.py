"""Folds file to file against the loaded model: folded by the method, cut and saved by transformers."""

import json
import tracemalloc

import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.errors import PlanError, UnsupportedModelError
from secateur.methods.laco import Laco
from secateur.plan import PruningPlan
from secateur.surgery.check import check_pair
from secateur.surgery.files import cut_checkpoint
from secateur.surgery.folding import FoldedTensor, fold
from secateur.surgery.live import remove_layers_
from secateur.surgery.shards import StoredTensor
from tiny_families import FAMILIES, build, token_ids

WEIGHTS = "model.safetensors"
WINDOWS = TokenBatches(token_ids(batch=2, tokens=12), spec="ids", batch_size=2)
ONE, NESTED = [(1, (2, 3))], [(3, (4, 5)), (0, (1, 3))]


def plan_of(folds):
    return PruningPlan(
        num_layers=6,
        order=tuple(layer for _, layers in folds for layer in layers),
        method="laco",
        provenance={
            "folds": [{"into": into, "layers": list(gone), "similarity": 0.9, "threshold": 0.5} for into, gone in folds]
        },
    )


def save(model, directory, **options):
    model.save_pretrained(directory, **options)
    return directory


def live(model, plan, directory):
    """As `secateur prune` does it."""
    Laco().prepare_(Decoder(model), WINDOWS, plan)
    remove_layers_(model, plan.dropped)
    return save(model, directory)


def expect_the_same(one, other):
    a, b = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name]) or a[name].dtype != b[name].dtype] == []
    assert json.loads((one / "config.json").read_text()) == json.loads((other / "config.json").read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_folded_file_to_file_equal_those_folded_in_the_loaded_model_bit_for_bit(family, tmp_path):
    first = 2 if family == "deepseek_v3" else 0  # its first two layers have no experts
    folds = [(3, (4, 5))] if first else ONE
    if family in ("qwen2_moe", "llama4_text"):
        folds = [(0, (2,))]  # layers of one kind
    model = build(family)
    source = save(model, tmp_path / "dense")
    report = cut_checkpoint(source, tmp_path / "out", plan_of(folds))
    expect_the_same(tmp_path / "out", live(model, plan_of(folds), tmp_path / "live"))
    plain = cut_checkpoint(source, tmp_path / "plain", plan_of(folds).dropped)
    changed = load_file(tmp_path / "out" / WEIGHTS)
    kept = load_file(tmp_path / "plain" / WEIGHTS)
    differ = [name for name in kept if not torch.equal(kept[name], changed[name])]
    assert 0 < len(differ) <= report.num_folded
    assert (plain.num_folded, plain.num_tensors) == (0, report.num_tensors)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_folds_into_layers_that_are_folded_again_equal_the_loaded_model_in_every_dtype(dtype, tmp_path):
    model = build("llama").to(getattr(torch, dtype))
    source = save(model, tmp_path / "dense", max_shard_size="20KB")
    cut_checkpoint(source, tmp_path / "out", plan_of(NESTED))
    expect_the_same(tmp_path / "out", live(model, plan_of(NESTED), tmp_path / "live"))


def test_a_plan_that_the_method_made_equals_the_loaded_model_and_is_proven(tmp_path):
    model = build("llama")
    source = save(model, tmp_path / "dense")
    Laco(layers_per_merge=3).plan(Decoder(model), WINDOWS, drop=3).save(tmp_path / "plan.json")
    plan = PruningPlan.load(tmp_path / "plan.json")
    cut_checkpoint(source, tmp_path / "out", plan)
    expect_the_same(tmp_path / "out", live(model, plan, tmp_path / "live"))


def test_weights_larger_than_a_chunk_equal_the_formula_and_are_never_in_memory_whole(tmp_path):
    weights = [torch.randn(3000, 1000, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    stored = []
    for number, weight in enumerate(weights):
        path = tmp_path / f"{number}"
        path.write_bytes(weight.numpy().tobytes())
        stored.append(StoredTensor(file=path, dtype="F32", shape=(3000, 1000), start=0, num_bytes=12_000_000))
    expected = fold(weights[0], weights[1:]).numpy().tobytes()
    tracemalloc.start()
    try:
        place = 0
        for chunk in FoldedTensor(kept=stored[0], others=tuple(stored[1:])).chunks():
            assert chunk == expected[place : place + len(chunk)]
            place += len(chunk)
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()
    assert place == len(expected)


def test_check_proves_a_folded_checkpoint_by_its_plan_and_names_a_bit_that_differs(tmp_path):
    source = save(build("llama"), tmp_path / "dense")
    plan, out = plan_of(NESTED), tmp_path / "out"
    cut_checkpoint(source, out, plan)
    check = check_pair(source, out)
    assert (check.proven, check.dropped) == (True, plan.dropped)
    holds = {finding.what: finding.holds for finding in check.findings}
    assert holds.pop("logits") is None
    assert set(holds.values()) == {True}
    name = "model.layers.0.mlp.up_proj.weight"
    weights = load_file(out / WEIGHTS)
    weights[name][0, 0] += 1
    save_file(weights, out / WEIGHTS, metadata={"format": "pt"})
    assert f"'{name}' is not as in the dense model" in (check_pair(source, out).difference or "")


# ---- what is refused ----------------------------------------------------------------------------------------------------


def refused(kind, words, source, plan):
    with pytest.raises(kind, match=words) as caught:
        cut_checkpoint(source, source.parent / "out", plan)
    assert "\n" not in str(caught.value)
    assert not (source.parent / "out").exists()


WRONG = {
    "a layer that stays": [(1, (2,)), (3, (4,))],
    "into a layer that has gone": [(1, (2, 3)), (2, (4,))],
    "a layer into itself": [(2, (2, 3, 4))],
    "a layer that does not exist": [(9, (2, 3, 4))],
}


@pytest.mark.parametrize("case", WRONG)
def test_folds_that_make_no_sense_are_refused(case, tmp_path):
    plan = PruningPlan(num_layers=6, order=(2, 3, 4), provenance=plan_of(WRONG[case]).provenance)
    refused(PlanError, "the plan.*folds.*make it again", save(build("llama"), tmp_path / "dense"), plan)


@pytest.mark.parametrize("folds", [None, 3, [3], [{"into": 1}], [{"into": "x", "layers": [2]}]], ids=str)
def test_folds_that_are_none_are_refused(folds, tmp_path):
    plan = PruningPlan(num_layers=6, order=(2,), provenance={"folds": folds})
    refused(PlanError, "folds are not layers", save(build("llama"), tmp_path / "dense"), plan)


def test_layers_of_two_kinds_are_refused(tmp_path):
    refused(
        UnsupportedModelError,
        "cannot fold layers 2 into layer 1",
        save(build("deepseek_v3"), tmp_path / "dense"),
        plan_of([(1, (2,))]),
    )


def test_quantised_layers_are_refused(tmp_path):
    source = save(build("llama"), tmp_path / "dense")
    packed = {
        name: value.to(torch.float8_e4m3fn) if "_proj" in name else value
        for name, value in load_file(source / WEIGHTS).items()
    }
    save_file(packed, source / WEIGHTS, metadata={"format": "pt"})
    refused(UnsupportedModelError, "cannot fold .*not quantised", source, plan_of(ONE))
