import copy
import json
import os
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from secateur.decoder import Decoder
from secateur.errors import ModelError, OutputError, PlanError, SecateurError
from secateur.plan import PruningPlan
from secateur.surgery.adapters import carry_adapter
from secateur.surgery.live import remove_layers_
from tiny_families import build, logits, token_ids

pytestmark = pytest.mark.filterwarnings(  # peft's own
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:Setting `save_embedding_layers` to `True`:UserWarning",
)

IDS = token_ids()
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PLAN = PruningPlan(num_layers=6, order=(4, 1))


def adapter_of(family, directory, **options):
    """Save a LoRA adapter with weights that matter; the dense model with it on."""
    torch.manual_seed(2)
    conv1d = {"fan_in_fan_out": True} if family == "gpt2" else {}
    config = LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, task_type="CAUSAL_LM", **conv1d, **options)
    tuned = get_peft_model(build(family), config).eval()
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if weight.requires_grad and "lora_" not in name:  # modules and biases that are saved beside
                weight.add_(torch.randn_like(weight) * 0.1)
    tuned.save_pretrained(directory)
    return tuned


def bypassed(tuned, dropped):
    with Decoder(tuned).bypass(dropped):
        return logits(tuned, IDS)


def on_pruned(family, directory, dropped):
    """The logits of the pruned model with the adapter of that directory."""
    model = build(family)
    remove_layers_(model, dropped)
    return logits(PeftModel.from_pretrained(model, directory).eval(), IDS)


def config_of(directory):
    return json.loads((directory / CONFIG).read_text())


def change_config(directory, **fields):
    (directory / CONFIG).write_text(json.dumps(config_of(directory) | fields))


def tree(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
        if not path.is_fifo()
    }


def expect_refusal(kind, words, directory, plan=PLAN, **options):
    root = directory.parent
    before = tree(root)
    with pytest.raises(kind, match=words) as caught:
        carry_adapter(directory, root / "out", plan, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert tree(root) == before


@pytest.fixture
def adapter(tmp_path):
    """An adapter of the tiny Llama on every attention, that a test may damage."""
    adapter_of("llama", tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    return tmp_path / "adapter"


# ---- the carried adapter equals the dense one with the layers bypassed ---------------------------------------------------

LLAMA = {
    "suffixes": {"target_modules": ["q_proj", "down_proj"]},
    "all linear": {"target_modules": "all-linear"},
    "some layers": {"target_modules": ["q_proj"], "layers_to_transform": [0, 1, 3, 5]},
    "one layer": {"target_modules": ["q_proj"], "layers_to_transform": 5},
    "some layers by pattern": {
        "target_modules": ["up_proj"],
        "layers_to_transform": [2, 3, 4],
        "layers_pattern": "layers",
    },
    "regex for any layer": {"target_modules": r".*\.self_attn\.(q|k)_proj"},
    "regex for some layers": {"target_modules": r"model\.layers\.(0|2|4|5)\.(mlp\.up_proj|self_attn\.q_proj)"},
    "regex for the first layers": {"target_modules": r".*\.layers\.[0-2]\..*(up|o)_proj"},
    "regex for many": {"target_modules": r".*\.layers\.[0-4]\..*_proj"},  # more than peft keeps in full when loading
    "names in full": {"target_modules": [f"model.layers.{layer}.mlp.up_proj" for layer in (1, 2, 5)]},
    "ends with numbers": {"target_modules": ["3.mlp.up_proj", "layers.5.self_attn.q_proj", "0.mlp.up_proj"]},
    "excluded suffix": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    "excluded layers": {"target_modules": ["q_proj"], "exclude_modules": r"model\.layers\.[02]\..*"},
    "ranks by kind": {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 4}},
    "ranks by layer": {
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"model.layers.3.mlp.up_proj": 4, "layers.1.self_attn.q_proj": 3, r"layers\.5\..*": 5},
        "alpha_pattern": {r"^model\.layers\.(2|3)\..*": 5, "layers.0.self_attn.q_proj": 3},
    },
    "head saved": {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
    "part of a layer saved": {"target_modules": ["v_proj"], "modules_to_save": ["layers.3.mlp.up_proj", "norm"]},
    "embeddings and head": {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "layers_to_transform": None},
    "DoRA": {"target_modules": ["q_proj", "up_proj"], "use_dora": True},
    "rsLoRA": {"target_modules": ["q_proj"], "use_rslora": True},
}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize("case", LLAMA)
def test_the_carried_adapter_on_the_pruned_llama_equals_the_dense_one_with_layers_bypassed(case, tmp_path):
    tuned = adapter_of("llama", tmp_path / "adapter", **LLAMA[case])
    expected = bypassed(tuned, PLAN.dropped)
    with tuned.disable_adapter():
        assert not torch.allclose(bypassed(tuned, PLAN.dropped), expected, atol=1e-2), (
            "it must matter to prove anything"
        )
    carried = carry_adapter(tmp_path / "adapter", tmp_path / "out", PLAN)
    assert torch.equal(on_pruned("llama", tmp_path / "out", PLAN.dropped), expected)
    before, after = load_file(tmp_path / "adapter" / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    gone = {name for name in before if ".layers.1." in name or ".layers.4." in name}
    assert set(carried.left_out) == gone
    assert carried.num_tensors == len(after) == len(before) - len(gone)
    assert not set(carried.layers) & {1, 4}


GPT2 = {
    "suffixes": {"target_modules": ["c_attn", "c_fc"]},
    "some layers": {"target_modules": ["c_attn"], "layers_to_transform": [0, 3, 4], "layers_pattern": "h"},
    "regex for some layers": {"target_modules": r"transformer\.h\.[3-5]\.attn\.c_(attn|proj)"},
    "ranks by layer": {"target_modules": ["c_attn"], "rank_pattern": {"h.5.attn.c_attn": 4}},
    "all biases": {"target_modules": ["c_attn"], "bias": "all"},
    "biases of some layers": {"target_modules": ["c_attn"], "bias": "lora_only", "layers_to_transform": [2, 4]},
}


@pytest.mark.parametrize("case", GPT2)
def test_the_carried_adapter_on_the_pruned_gpt2_equals_the_dense_one_with_layers_bypassed(case, tmp_path):
    tuned = adapter_of("gpt2", tmp_path / "adapter", **GPT2[case])
    expected = bypassed(tuned, PLAN.dropped)
    carry_adapter(tmp_path / "adapter", tmp_path / "out", PLAN)
    assert torch.equal(on_pruned("gpt2", tmp_path / "out", PLAN.dropped), expected)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "opt", "gpt_neox", "qwen2_moe", "deepseek_v3"])
def test_other_families_equal_the_dense_one_with_layers_bypassed(family, tmp_path):
    targets = ["q_proj", "q_b_proj", "o_proj", "query_key_value", "fc1"]
    tuned = adapter_of(family, tmp_path / "adapter", target_modules=targets)
    expected = bypassed(tuned, PLAN.dropped)
    carry_adapter(tmp_path / "adapter", tmp_path / "out", PLAN)
    assert torch.equal(on_pruned(family, tmp_path / "out", PLAN.dropped), expected)


def test_adapters_of_experts_equal_the_dense_one_with_layers_bypassed(tmp_path):
    """Parameters that are no modules of their own: `target_parameters`."""
    tuned = adapter_of(
        "qwen2_moe",
        tmp_path / "adapter",
        target_modules=["q_proj"],
        layers_to_transform=[0, 3, 4],
        target_parameters=["layers.3.mlp.experts.gate_up_proj", "layers.5.mlp.experts.gate_up_proj"],
    )
    plan = PruningPlan(num_layers=6, order=(0, 5))
    expected = bypassed(tuned, plan.dropped)
    carry_adapter(tmp_path / "adapter", tmp_path / "out", plan)
    assert config_of(tmp_path / "out")["target_parameters"] == ["layers.2.mlp.experts.gate_up_proj"]
    assert torch.equal(on_pruned("qwen2_moe", tmp_path / "out", plan.dropped), expected)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dropped=st.sets(st.integers(0, 5), min_size=1, max_size=5), covered=st.sets(st.integers(0, 5), min_size=1))
def test_any_layers_dropped_and_any_covered_equal_bypass(tmp_path_factory, dropped, covered):
    root = tmp_path_factory.mktemp("adapters")
    tuned = adapter_of("llama", root / "adapter", target_modules=["o_proj"], layers_to_transform=sorted(covered))
    plan = PruningPlan(num_layers=6, order=tuple(dropped))
    if covered <= dropped:
        expect_refusal(PlanError, "every layer", root / "adapter", plan)
        return
    expected = bypassed(tuned, dropped)
    carried = carry_adapter(root / "adapter", root / "out", plan)
    assert torch.equal(on_pruned("llama", root / "out", dropped), expected)
    assert carried.layers == tuple(sorted(covered - dropped))


# ---- settings ------------------------------------------------------------------------------------------------------------


def test_settings_that_name_no_layers_stay_as_they_are(adapter, tmp_path):
    carried = carry_adapter(adapter, tmp_path / "out", PLAN)
    assert config_of(tmp_path / "out") == config_of(adapter)
    assert carried.rewritten == ()


def test_layers_to_transform_equal_the_renumbering_by_hand(tmp_path):
    adapter_of("llama", tmp_path / "adapter", target_modules=["q_proj"], layers_to_transform=[0, 1, 2, 5])
    carried = carry_adapter(tmp_path / "adapter", tmp_path / "out", PLAN)
    expected = config_of(tmp_path / "adapter") | {"layers_to_transform": [0, 1, 3]}
    assert config_of(tmp_path / "out") == expected
    assert carried.rewritten == ("layers_to_transform",)
    assert carried.layers == (0, 2, 5)


def test_a_regex_with_numbers_becomes_the_modules_that_it_chose(tmp_path):
    adapter_of("llama", tmp_path / "adapter", target_modules=r"model\.layers\.[3-5]\.mlp\.up_proj")
    carried = carry_adapter(tmp_path / "adapter", tmp_path / "out", PLAN)
    names = ["model.layers.2.mlp.up_proj", "model.layers.3.mlp.up_proj"]
    assert config_of(tmp_path / "out")["target_modules"] == names
    assert carried.rewritten == ("target_modules",)


def test_the_base_is_named_when_given(adapter, tmp_path):
    change_config(adapter, base_model_name_or_path="me/dense", revision="abc")
    carry_adapter(adapter, tmp_path / "as it was", PLAN)
    assert config_of(tmp_path / "as it was")["base_model_name_or_path"] == "me/dense"
    carried = carry_adapter(adapter, tmp_path / "out", PLAN, base=tmp_path / "pruned")
    found = config_of(tmp_path / "out")
    assert (found["base_model_name_or_path"], found["revision"]) == (str(tmp_path / "pruned"), None)
    assert carried.rewritten == ("base_model_name_or_path", "revision")


def test_settings_of_a_peft_to_come_are_kept(adapter, tmp_path):
    change_config(adapter, use_something_new={"really": [1, 2]})
    carry_adapter(adapter, tmp_path / "out", PLAN)
    assert config_of(tmp_path / "out")["use_something_new"] == {"really": [1, 2]}


def test_companions_are_copied_and_the_rest_is_told(adapter, tmp_path):
    for name in ("tokenizer.json", "README.md", "training_args.bin", "optimizer.pt"):
        (adapter / name).write_text("x")
    (adapter / "checkpoint-5").mkdir()
    carried = carry_adapter(adapter, tmp_path / "out", PLAN)
    assert carried.copied == ("tokenizer.json",)
    assert carried.left == ("README.md", "checkpoint-5/", "optimizer.pt", "training_args.bin")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {CONFIG, WEIGHTS, "tokenizer.json"}


# ---- what is refused -----------------------------------------------------------------------------------------------------


def test_a_plan_that_drops_all_that_the_adapter_changes_is_refused(tmp_path):
    adapter_of("llama", tmp_path / "adapter", target_modules=["q_proj"], layers_to_transform=[1, 4])
    expect_refusal(PlanError, r"every layer that .* changes \(1, 4\)", tmp_path / "adapter")


def test_a_plan_of_a_shallower_model_is_refused(adapter):
    expect_refusal(PlanError, "layer 5.*model of 4 layers", adapter, PruningPlan(num_layers=4, order=(1,)))


def test_an_adapter_of_another_type_is_refused(tmp_path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(build("llama"), config).save_pretrained(tmp_path / "adapter")
    expect_refusal(ModelError, "'PROMPT_TUNING'; only LORA", tmp_path / "adapter")


def test_an_adapter_without_tensors_of_layers_is_refused(tmp_path):
    adapter_of("llama", tmp_path / "adapter", target_modules=["embed_tokens"])
    expect_refusal(ModelError, "no tensors of decoder layers", tmp_path / "adapter")


def test_an_adapter_of_two_stacks_of_layers_is_refused(adapter):
    weights = load_file(adapter / WEIGHTS)
    save_file(weights | {"base_model.model.vision.layers.0.q_proj.lora_A.weight": torch.ones(2, 2)}, adapter / WEIGHTS)
    expect_refusal(ModelError, "which are the decoder's", adapter)


def test_a_second_stack_that_is_deeper_than_the_model_is_not_taken_for_the_decoder(adapter, tmp_path):
    weights = load_file(adapter / WEIGHTS)
    other = {"base_model.model.vision.layers.9.q_proj.lora_A.weight": torch.ones(2, 2)}
    save_file(weights | other, adapter / WEIGHTS)
    carry_adapter(adapter, tmp_path / "out", PLAN)
    assert set(other) < set(load_file(tmp_path / "out" / WEIGHTS))


def test_a_number_that_may_be_a_layers_or_not_is_refused(adapter):
    change_config(adapter, modules_to_save=["3.mlp"])
    expect_refusal(ModelError, "'3.mlp'.*in full", adapter)


def damage_weights(change):
    def damage(adapter):
        (adapter / WEIGHTS).write_bytes(change((adapter / WEIGHTS).read_bytes()))

    return damage


def in_a_circle(adapter):
    (adapter / WEIGHTS).unlink()
    (adapter / WEIGHTS).symlink_to(WEIGHTS)


def a_pipe(adapter):
    (adapter / WEIGHTS).unlink()
    os.mkfifo(adapter / WEIGHTS)


def as_pickle(adapter):
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")


def text(value):
    return lambda adapter: (adapter / CONFIG).write_text(value)


DAMAGED = {
    "no settings": (lambda adapter: (adapter / CONFIG).unlink(), "cannot read .*adapter_config.json"),
    "no weights": (lambda adapter: (adapter / WEIGHTS).unlink(), "has no adapter_model.safetensors"),
    "a pickle": (as_pickle, "has no adapter_model.safetensors"),
    "weights cut short": (damage_weights(lambda raw: raw[:-5]), "cut short"),
    "weights of other bytes": (damage_weights(lambda raw: b"PK" + raw), "is damaged"),
    "header without end": (damage_weights(lambda raw: struct.pack("<Q", 2**63) + raw[8:]), "is damaged"),
    "weights in a circle": (in_a_circle, "symbolic links"),
    "weights a pipe": (a_pipe, "not a file"),
    "settings empty": (text(""), "no JSON"),
    "settings a list": (text("[]"), "type None"),
    "settings with a name twice": (text('{"r": 1, "r": 2}'), "names 'r' twice"),
    "no type": (lambda adapter: change_config(adapter, peft_type=None), "type None"),
    "repeated layers": (lambda adapter: change_config(adapter, layer_replication=[[0, 4], [2, 5]]), "repeats layers"),
    "a regex that is none": (lambda adapter: change_config(adapter, target_modules="(["), "cannot understand"),
    "targets a number": (lambda adapter: change_config(adapter, target_modules=7), "cannot understand"),
    "no targets": (lambda adapter: change_config(adapter, target_modules=None), "cannot understand"),
    "ranks a list": (lambda adapter: change_config(adapter, rank_pattern=[1]), "cannot understand"),
    "layers a word": (lambda adapter: change_config(adapter, layers_to_transform=1.5), "cannot understand"),
    "saved modules numbers": (lambda adapter: change_config(adapter, modules_to_save=[7]), "cannot understand"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_adapter_is_one_line_and_nothing_is_written(case, adapter):
    damage, words = DAMAGED[case]
    damage(adapter)
    expect_refusal(ModelError, words, adapter)


def test_a_missing_adapter_is_one_line(tmp_path):
    expect_refusal(ModelError, "no such directory", tmp_path / "nowhere")


def test_an_output_that_is_not_empty_or_the_adapter_itself_is_refused(adapter, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    before = tree(tmp_path)
    for target, overwrite in ((tmp_path / "out", False), (tmp_path / "out", True), (adapter, True)):
        with pytest.raises(OutputError):
            carry_adapter(adapter, target, PLAN, overwrite=overwrite)
    assert tree(tmp_path) == before


def test_an_earlier_adapter_is_replaced_if_asked_to(adapter, tmp_path):
    carry_adapter(adapter, tmp_path / "out", PLAN)
    first = tree(tmp_path / "out")
    (tmp_path / "out" / "stale.txt").write_text("of another run")
    carry_adapter(adapter, tmp_path / "out", PLAN, overwrite=True)
    assert tree(tmp_path / "out") == first


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=4,
)
FIELDS = st.sampled_from([
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "modules_to_save", "target_parameters", "layer_replication", "peft_type",
])  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(FIELDS, VALUES, max_size=3))
def test_no_settings_end_in_anything_but_an_adapter_or_one_line(adapter, tmp_path_factory, fields):
    out = tmp_path_factory.mktemp("fuzz") / "out"
    before = config_of(adapter)
    change_config(adapter, **copy.deepcopy(fields))
    try:
        carry_adapter(adapter, out, PLAN)
    except SecateurError as error:
        message = str(error)
    else:
        message = ""
    (adapter / CONFIG).write_text(json.dumps(before))
    assert "\n" not in message
    assert out.exists() == (message == "")
