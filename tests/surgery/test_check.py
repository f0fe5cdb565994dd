import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from families import family_models
from listening import Listener
from secateur import progress
from secateur.decoder import Decoder
from secateur.errors import ModelError, PlanError, UnsupportedModelError
from secateur.plan import PruningPlan
from secateur.surgery import running
from secateur.surgery.check import check_pair
from secateur.surgery.files import cut_checkpoint
from secateur.surgery.live import remove_layers_
from tiny_families import FAMILIES, build

WEIGHTS = "model.safetensors"
ALL = ["files", "layers", "tensors", "configuration", "reload", "logits", "generation"]


def save(model, directory, **options):
    model.save_pretrained(directory, **options)
    return directory


def rewrite(directory, change):
    """Change the tensors of a checkpoint in one file: `change` gives the new ones."""
    save_file(change(load_file(directory / WEIGHTS)), directory / WEIGHTS, metadata={"format": "pt"})


def change_config(directory, **fields):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | fields))


def holding(check):
    return {finding.what: finding.holds for finding in check.findings}


def expect_difference(dense, pruned, what, words, **options):
    """It is not proven, and the first difference is this, in one line."""
    check = check_pair(dense, pruned, **options)
    assert not check.proven
    assert check.difference.startswith(f"{what}: ")
    assert words in check.difference
    assert "\n" not in check.difference
    assert len(check.difference) < 600
    return check


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """Norms that differ, as in every trained model."""
    model = build("qwen2")
    for number, (name, weight) in enumerate(model.named_parameters()):
        if "norm" in name:
            weight.data += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
    return save(model, tmp_path_factory.mktemp("check") / "dense")


@pytest.fixture
def pruned(dense, tmp_path):
    """Layers 1 and 4 of six went: what is left are the dense model's 0, 2, 3 and 5."""
    cut_checkpoint(dense, tmp_path / "pruned", [1, 4])
    return tmp_path / "pruned"


# ---- how far it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_by_layer", [False, True], ids=["whole", "layer by layer"])
@pytest.mark.parametrize("prompt_tokens", [2, 64])
def test_all_that_is_compared_and_run_is_foretold_and_counted(
    dense, pruned, monkeypatch, prompt_tokens, layer_by_layer
):
    monkeypatch.setattr(progress, "_MEGABYTE", 1)
    listener = Listener()
    assert check_pair(
        dense, pruned, prompt_tokens=prompt_tokens, layer_by_layer=layer_by_layer, progress=listener
    ).proven
    kept = {name: tensor.nbytes for name, tensor in load_file(pruned / WEIGHTS).items()}
    of_layers = sum(size for name, size in kept.items() if ".layers." in name)
    compared, others, run = listener.steps
    assert compared == ["comparing the layers (MB)", of_layers, of_layers]
    assert others == ["comparing the other tensors (MB)", *[sum(kept.values()) - of_layers] * 2]
    assert run[0] == "running the models"
    assert run[1] == run[2]
    if layer_by_layer:  # of four layers: a look at each model, its logits, 3 new tokens, once without the cache
        assert run[1] == 4 * (2 + 2 + 3 + 1)
    assert (
        listener.notes[0] == f"{sum(kept.values()) / 1000:.1f} kB of weights to compare with those of the dense model"
    )
    new_tokens = 3 if layer_by_layer else 24
    assert listener.notes[1].startswith(
        f"{prompt_tokens} tokens to run through the models, and {new_tokens} to generate"
    )


def test_what_is_not_run_is_not_foretold(dense, pruned):
    listener = Listener()
    assert check_pair(dense, pruned, run=False, progress=listener).proven
    assert [step[0] for step in listener.steps] == ["comparing the layers (MB)", "comparing the other tensors (MB)"]
    assert len(listener.notes) == 1


# ---- what is right --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_by_layer", [False, True], ids=["whole", "layer by layer"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "qwen2_moe", "deepseek_v3", "bloom"])
def test_a_pair_made_by_transformers_alone_is_proven_without_any_difference(family, layer_by_layer, tmp_path):
    model = build(family)
    save(model, tmp_path / "dense", max_shard_size="60KB")
    remove_layers_(model, [0, 4])
    save(model, tmp_path / "pruned")
    check = check_pair(tmp_path / "dense", tmp_path / "pruned", layer_by_layer=layer_by_layer)
    assert holding(check) == dict.fromkeys(ALL, True)
    assert (check.proven, check.difference, check.dropped) == (True, None, (0, 4))
    assert check.layer_by_layer == layer_by_layer
    assert "differ by 0 from" in check.findings[5].words


@pytest.mark.parametrize("family", ["dbrx", "mamba", "recurrent_gemma"])
def test_layers_whose_modules_read_each_others_weights_are_read_whole_from_the_disk(family, tmp_path):
    save(family_models.build(family), tmp_path / "dense")
    cut_checkpoint(tmp_path / "dense", tmp_path / "pruned", [1, 4])
    check = check_pair(tmp_path / "dense", tmp_path / "pruned", layer_by_layer=True)
    assert holding(check) == dict.fromkeys(ALL, True)
    assert (check.layer_by_layer, check.dropped) == (True, (1, 4))


def test_a_layer_read_whole_is_in_memory_only_while_it_runs(dense):
    model = AutoModelForCausalLM.from_pretrained(dense)
    whole = running.load_model(dense, placement=running.on_disk(model, "model.layers", dense / "unused"))
    running.read_whole_(whole.model.layers)
    decoder = Decoder(whole)
    seen = []
    decoder.layers[2].mlp.up_proj.register_forward_hook(
        lambda *_: seen.append([{weight.device.type for weight in layer.parameters()} for layer in decoder.layers])
    )
    assert torch.equal(decoder.logits(decoder.probe_ids()), Decoder(model.eval()).logits(decoder.probe_ids()))
    assert seen[0] == [{"cpu"} if layer == 2 else {"meta"} for layer in range(6)]


def test_layers_on_the_disk_are_in_memory_only_while_they_run(dense):
    model = AutoModelForCausalLM.from_pretrained(dense)
    where = running.on_disk(model, "model.layers", dense / "unused")
    decoder = Decoder(running.load_model(dense, placement=where))
    weights = list(decoder.layers.parameters())
    seen = []
    decoder.layers[2].mlp.up_proj.register_forward_hook(lambda *_: seen.append([w.device.type for w in weights]))
    decoder.logits(decoder.probe_ids())
    assert {weight.device.type for weight in weights} == {"meta"}
    assert seen[0].count("cpu") <= 2, "the weight and the bias that run"
    assert {w.device.type for name, w in decoder.model.named_parameters() if ".layers." not in name} == {"cpu"}


@pytest.mark.parametrize(("free", "expected"), [(10, True), (10**9, False)])
def test_layers_are_left_on_the_disk_where_the_model_does_not_fit(free, expected, dense, pruned, monkeypatch):
    monkeypatch.setattr(running, "_free_memory", lambda: free)
    check = check_pair(dense, pruned)
    assert (check.layer_by_layer, check.proven) == (expected, True)


def test_files_alone_prove_it_without_loading_a_model(dense, pruned, monkeypatch):
    monkeypatch.setattr(running, "load_model", None)
    check = check_pair(dense, pruned, run=False)
    assert holding(check) == dict.fromkeys(ALL[:4], True) | dict.fromkeys(ALL[4:])
    assert check.proven


def test_a_pair_without_the_prefix_of_the_names_is_proven(tmp_path):
    """As in the first GPT-2 checkpoint, with masks that nobody reads and saving drops."""
    model = build("gpt2")
    save(model, tmp_path / "dense")
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 8, 8) for layer in range(6)}
    rewrite(tmp_path / "dense", lambda old: {n.removeprefix("transformer."): w for n, w in old.items()} | masks)
    remove_layers_(model, [2])
    save(model, tmp_path / "pruned")
    assert any(name.startswith("transformer.h.") for name in load_file(tmp_path / "pruned" / WEIGHTS))
    check = check_pair(tmp_path / "dense", tmp_path / "pruned")
    assert (check.difference, check.dropped) == (None, (2,))


def test_a_pair_in_another_dtype_is_proven_and_the_rounding_named(dense, pruned):
    rewrite(pruned, lambda old: {name: weight.to(torch.bfloat16) for name, weight in old.items()})
    change_config(pruned, dtype="bfloat16")
    check = check_pair(dense, pruned)
    assert (check.difference, check.dropped) == (None, (1, 4))
    assert check.findings[2].words.endswith("rounded to BF16")


def test_a_head_stored_beside_the_embedding_it_shares_is_accounted_for(tmp_path):
    source = save(build("llama", tie_word_embeddings=True), tmp_path / "dense")
    rewrite(source, lambda old: old | {"lm_head.weight": old["model.embed_tokens.weight"].clone()})
    cut_checkpoint(source, tmp_path / "pruned", [3])
    rewrite(tmp_path / "pruned", lambda old: {name: w for name, w in old.items() if name != "lm_head.weight"})
    assert check_pair(source, tmp_path / "pruned").proven


def test_of_equal_layers_the_first_after_the_one_before_is_meant(tmp_path):
    """Layers 2 and 3 are the same, so that nobody can say which of them went; without a plan the later one did."""
    source = save(build("llama"), tmp_path / "dense")
    rewrite(source, lambda old: old | {n.replace("s.2.", "s.3."): w.clone() for n, w in old.items() if "s.2." in n})
    cut_checkpoint(source, tmp_path / "pruned", [2])
    assert check_pair(source, tmp_path / "pruned").dropped == (3,)
    assert check_pair(source, tmp_path / "pruned", dropped=[2]).dropped == (2,)


# ---- what is not ----------------------------------------------------------------------------------------------------------


def moved(**to):
    """Layers of the pruned model → the places that they are moved to."""
    new = {int(layer[1:]): place for layer, place in to.items()}

    def change(old):
        return {
            f"model.layers.{new.get(int(name.split('.')[2]), int(name.split('.')[2]))}.{name.split('.', 3)[3]}"
            if ".layers." in name
            else name: weight
            for name, weight in old.items()
        }

    return change


def one_bit(name):
    """The least that a weight can change."""

    def change(old):
        old[name].flatten()[7] = torch.nextafter(old[name].flatten()[7], torch.tensor(math.inf))
        return old

    return change


def twice(old):
    return old | {name.replace("s.1.", "s.2."): w.clone() for name, w in old.items() if "s.1." in name}


CHANGED = {
    "two layers in each other's place": (moved(_1=2, _2=1), "layers", "layer 2 is the dense model's 2, and comes after its 3"),
    "a layer twice": (twice, "layers", "layer 2 is the dense model's 2, and comes after its 2"),
    "one bit of a layer": (one_bit("model.layers.1.mlp.up_proj.weight"), "tensors", "'model.layers.1.mlp.up_proj.weight'"),
    "one bit beside the layers": (one_bit("model.norm.weight"), "tensors", "'model.norm.weight' is not as in"),
    "a tensor too many": (lambda old: old | {"model.extra": torch.ones(2)}, "tensors", "'model.extra' is none of the dense"),
    "a tensor too few": (
        lambda old: {name: w for name, w in old.items() if name != "model.norm.weight"},
        "tensors", "'model.norm.weight' is missing",
    ),
    "a tensor of a layer too few": (
        lambda old: {name: w for name, w in old.items() if name != "model.layers.2.self_attn.k_proj.bias"},
        "tensors", "'model.layers.2.self_attn.k_proj.bias' is missing",
    ),
    "a layer too few": (lambda old: {n: w for n, w in old.items() if ".3." not in n}, "layers", "no tensors of layer 3"),
    "a layer too many": (
        lambda old: old | {n.replace("s.3.", "s.4."): w.clone() for n, w in old.items() if "s.3." in n},
        "layers", "tensors of layer 4",
    ),
    "a layer of another model": (
        lambda old: old | {n: torch.randn(w.shape) for n, w in old.items() if ".2." in n},
        "layers", "layer 2 is like none of the dense model",
    ),
    "a weight of another shape": (
        lambda old: old | {"model.norm.weight": torch.ones(31)}, "tensors", "'model.norm.weight' is not as in",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED)
def test_tensors_that_are_others_are_named(case, dense, pruned):
    change, what, words = CHANGED[case]
    rewrite(pruned, change)
    expect_difference(dense, pruned, what, words, run=False)


def test_a_changed_weight_is_found_in_the_files_and_in_the_logits(dense, pruned):
    rewrite(
        pruned, lambda old: old | {"model.layers.1.mlp.up_proj.weight": 1.5 * old["model.layers.1.mlp.up_proj.weight"]}
    )
    found = holding(expect_difference(dense, pruned, "tensors", "1 of"))
    assert found == dict.fromkeys(ALL, True) | {"tensors": False, "logits": False}


def test_layers_that_were_trained_are_told_and_what_still_holds_is(dense, pruned):
    def train(old):
        return {
            n: w + 0.05 * w.std() * torch.randn(w.shape) if ".mlp." in n and ".3." not in n else w
            for n, w in old.items()
        }

    rewrite(pruned, train)
    check = expect_difference(dense, pruned, "tensors", "9 of")
    assert check.dropped == (1, 4)
    assert "layers 0, 1, 2 changed since, by a training or a merge" in check.findings[1].words
    assert holding(check) == dict.fromkeys(ALL, True) | {"tensors": False, "logits": False}


CONFIGURED = {
    "max_window_layers": (3, "max_window_layers is 3, and must be 2"),
    "rms_norm_eps": (0.5, "rms_norm_eps is 0.5, and must be 1e-06"),
    "num_attention_heads": (2, "num_attention_heads is 2, and must be 4"),
}


@pytest.mark.parametrize("name", CONFIGURED)
def test_a_field_of_the_configuration_that_does_not_fit_is_named(name, dense, pruned):
    value, words = CONFIGURED[name]
    change_config(pruned, **{name: value})
    expect_difference(dense, pruned, "configuration", words, run=False)


def test_kinds_of_layers_that_are_those_of_others_are_named_and_change_the_logits(dense, pruned):
    """As tools leave them that cut a list at its end: it is as long as it must be."""
    kinds = json.loads((dense / "config.json").read_text())["layer_types"]
    assert len(set(kinds)) == 2
    change_config(pruned, layer_types=kinds[:1] * 4)
    check = expect_difference(
        dense, pruned, "configuration", "layer_types is ['full_attention', 'full_attention', 'full"
    )
    assert not holding(check)["logits"]


@pytest.mark.parametrize("field", ["layer_types", "num_hidden_layers"])
def test_a_field_that_still_speaks_of_all_layers_is_named(field, dense, pruned):
    change_config(pruned, **{field: json.loads((dense / "config.json").read_text())[field]})
    expect_difference(dense, pruned, "configuration", field)


def test_a_number_of_layers_that_is_the_old_one_is_named_where_nothing_else_speaks_of_layers(tmp_path):
    source = save(build("llama"), tmp_path / "dense")
    cut_checkpoint(source, tmp_path / "pruned", [2])
    change_config(tmp_path / "pruned", num_hidden_layers=6)
    expect_difference(
        source, tmp_path / "pruned", "layers", "no tensors of layer 5 under 'model.layers', and its configuration has 6"
    )


def test_another_family_is_named(dense, tmp_path):
    expect_difference(
        dense, save(build("llama"), tmp_path / "llama"), "family", "it is a llama model, and the dense one qwen2"
    )


def test_a_model_of_as_many_layers_is_named(dense):
    expect_difference(dense, dense, "layers", "it has 6 layers, and the dense model 6: none went")


def forgetting(monkeypatch, *forgetful):
    """Two layers that share one slot of the cache: right without the cache, wrong with it."""
    real = running.load_model

    def load_with_one_number(folder, *args, **kwargs):
        model = real(folder, *args, **kwargs)
        if folder in forgetful:
            model.model.layers[1].self_attn.layer_idx = 0
        return model

    monkeypatch.setattr(running, "load_model", load_with_one_number)


def test_a_cache_that_forgets_is_named(dense, pruned, monkeypatch):
    forgetting(monkeypatch, pruned)
    check = expect_difference(dense, pruned, "generation", "cached and uncached differ by")
    assert holding(check) == dict.fromkeys(ALL, True) | {"generation": False}


def test_a_cache_that_forgets_in_the_dense_model_too_is_not_held_against_the_pruned(dense, pruned, monkeypatch):
    forgetting(monkeypatch, dense, pruned)
    check = check_pair(dense, pruned)
    assert check.proven
    assert holding(check) == dict.fromkeys(ALL, True) | {"generation": None}
    assert re.search(r"; in the dense model by \d.*, so that it is not the cut", check.findings[-1].words)


def test_a_cache_that_forgets_more_than_the_dense_models_is_named(dense, pruned, monkeypatch):
    forgetting(monkeypatch, dense, pruned)
    monkeypatch.setattr(running, "cache_gap", lambda *_: 10.0)
    monkeypatch.setattr(running, "dense_cache_gap", lambda *_: 0.01)
    check = expect_difference(
        dense, pruned, "generation", "differ by 10 in a logit, in 24 tokens; in the dense model by 0.01"
    )
    assert holding(check) == dict.fromkeys(ALL, True) | {"generation": False}


def test_a_pruned_model_that_does_not_load_is_named(dense, pruned, monkeypatch):
    real = running.load_model

    def load(folder, **options):
        if Path(folder) == pruned:
            raise ModelError("it is broken")
        return real(folder, **options)

    monkeypatch.setattr(running, "load_model", load)
    expect_difference(dense, pruned, "reload", "it is broken")


# ---- what is said of it -----------------------------------------------------------------------------------------------------


def write_plan(pruned, plan):
    (pruned / "secateur").mkdir()
    plan.save(pruned / "secateur" / "plan.json")


def test_a_plan_that_is_right_is_believed_where_training_left_nothing_to_see(dense, pruned):
    write_plan(pruned, PruningPlan(num_layers=6, order=(4, 1)))
    rewrite(pruned, lambda old: {name: torch.randn(weight.shape) for name, weight in old.items()})
    check = expect_difference(dense, pruned, "tensors", "is not as in the dense model", run=False)
    assert check.dropped == (1, 4)
    assert "layers 0, 1, 2, 3 changed since" in check.findings[1].words


@pytest.mark.parametrize("how", ["plan", "layers"])
def test_layers_that_are_said_to_have_gone_and_did_not_are_named(how, dense, pruned):
    if how == "plan":
        write_plan(pruned, PruningPlan(num_layers=6, order=(1, 3)))
    claim = {} if how == "plan" else {"dropped": [3, 1]}
    expect_difference(
        dense, pruned, "layers", "layer 2 is the dense model's 3, and is said to be its 4", run=False, **claim
    )


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (PruningPlan(num_layers=8, order=(1, 4)), "plan is for a model of 8 layers, and the dense one has 6"),
        (PruningPlan(num_layers=6, order=(1,)), "it has 4, and 5 are said to be left"),
    ],
)
def test_a_plan_of_another_model_is_named(plan, words, dense, pruned):
    write_plan(pruned, plan)
    expect_difference(dense, pruned, "layers", words, run=False)


def test_a_plan_that_is_none_is_named(dense, pruned):
    (pruned / "secateur").mkdir()
    (pruned / "secateur" / "plan.json").write_text("[]")
    expect_difference(dense, pruned, "layers", "is not a pruning plan", run=False)


def test_layers_that_do_not_exist_are_a_wrong_request(dense, pruned):
    with pytest.raises(PlanError, match="no layer 9"):
        check_pair(dense, pruned, dropped=[1, 9])


# ---- hostile checkpoints ----------------------------------------------------------------------------------------------------


def circle(folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(name)


def index(folder, file):
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": file}}))


def header(folder, change):
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(change(raw))


HOSTILE = {
    "a truncated file": (lambda d: header(d, lambda raw: raw[:-9]), "cut short"),
    "a header of 10 GB": (lambda d: header(d, lambda raw: (10**10).to_bytes(8, "little") + raw[8:]), "10000000000 bytes"),
    "a tensor out of range": (lambda d: header(d, lambda raw: raw.replace(b"offsets\":[0,", b"offsets\":[9,", 1)), "damaged"),
    "a file above": (lambda d: index(d, "../../x.safetensors"), "'../../x.safetensors'"),
    "a shard that is missing": (lambda d: index(d, "model-00001-of-00002.safetensors"), "cannot read"),
    "weights in a circle": (lambda d: circle(d, WEIGHTS), "symbolic links"),
    "a configuration in a circle": (lambda d: circle(d, "config.json"), "symbolic links"),
    "a key twice": (lambda d: (d / "config.json").write_text('{"model_type": "qwen2", "model_type": "llama"}'), "twice"),
    "a thousand million layers": (lambda d: change_config(d, num_hidden_layers=10**9), "num_hidden_layers=1000000000"),
}  # fmt: skip


OF_CONFIGURATION = ("a configuration in a circle", "a key twice", "a thousand million layers")


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_pruned_checkpoint_is_a_finding_in_one_line(case, dense, pruned):
    damage, words = HOSTILE[case]
    damage(pruned)
    what = "configuration" if case in OF_CONFIGURATION else "files"
    expect_difference(dense, pruned, what, words)


def replace_by_file(folder):
    shutil.rmtree(folder)
    folder.write_text("mine")


NO_CHECKPOINT = {
    "nothing": (shutil.rmtree, "no such directory; give a local checkpoint directory"),
    "a file": (replace_by_file, "it is a file; give a local checkpoint directory"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "holds neither model.safetensors nor .*; give a checkpoint with"),
}


@pytest.mark.parametrize("side", ["dense", "pruned"])
@pytest.mark.parametrize("case", NO_CHECKPOINT)
def test_where_no_checkpoint_is_the_request_is_wrong_on_either_side(case, side, dense, pruned, tmp_path):
    remove, words = NO_CHECKPOINT[case]
    places = {"dense": Path(shutil.copytree(dense, tmp_path / "copy")), "pruned": pruned}
    remove(places[side])
    with pytest.raises(ModelError, match=words) as caught:
        check_pair(*places.values())
    assert str(places[side]) in str(caught.value)


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_dense_checkpoint_is_a_wrong_request_in_one_line(case, dense, pruned, tmp_path):
    damage, words = HOSTILE[case]
    copy = Path(shutil.copytree(dense, tmp_path / "copy"))
    damage(copy)
    with pytest.raises(ModelError, match=words) as caught:
        check_pair(copy, pruned)
    assert "\n" not in str(caught.value)


def test_a_dense_model_that_does_not_run_here_names_what_can_be_done(dense, pruned, monkeypatch):
    def load(*_, **__):
        raise ModelError("no GPU")

    monkeypatch.setattr(running, "load_model", load)
    with pytest.raises(ModelError, match="no GPU; --files-only"):
        check_pair(dense, pruned)


def test_every_family_is_among_those_that_the_files_are_compared_for(tmp_path):
    for family in FAMILIES:
        source = save(build(family), tmp_path / family)
        cut_checkpoint(source, tmp_path / f"{family}-cut", [0, 5])
        check = check_pair(source, tmp_path / f"{family}-cut", run=False)
        assert (family, check.difference, check.dropped) == (family, None, (0, 5))


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_model_whose_own_code_fails_is_no_fault_of_ours(fails_at, dense, pruned, monkeypatch):
    """The dense one: nothing can be said. The pruned one: that is what differs."""
    calls = []

    def run(*given, original=running.bypassed_logits):
        calls.append(given)
        if len(calls) == fails_at:
            raise RuntimeError("sizes\nof tensors")
        return original(*given)

    monkeypatch.setattr(running, "bypassed_logits", run)
    if fails_at == 1:
        with pytest.raises(
            ModelError, match=r"does not run here \(RuntimeError: sizes of tensors\); --files-only compares"
        ):
            check_pair(dense, pruned)
    else:
        found = check_pair(dense, pruned)
        assert not found.proven
        assert "it is read, and does not run (RuntimeError: sizes of tensors)" in found.difference


def test_files_alone_prove_no_model_whose_layers_need_more_of_each_other_than_the_hidden_states(tmp_path):
    torch.manual_seed(0)
    family_models.build("beam").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="whether a cut is right shows only when the model runs"):
        check_pair(tmp_path, tmp_path, run=False)
