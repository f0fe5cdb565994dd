import pytest
from transformers import LlamaConfig, LlamaForCausalLM, LongcatFlashForCausalLM

from families.family_models import build as build_any
from secateur.errors import UnsupportedModelError
from secateur.surgery.skeleton import changes_between, empty_model

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 64}


def llama(**fields):
    return empty_model(LlamaForCausalLM, LlamaConfig(**TINY | fields), "its configuration")


def test_the_numbers_that_change_equal_those_by_hand():
    changes = changes_between(llama(num_hidden_layers=6), llama(num_hidden_layers=3), "model.layers", [0, 3, 5])
    assert changes.in_layers == {(3, "self_attn", "layer_idx"): (3, 1), (5, "self_attn", "layer_idx"): (5, 2)}
    assert (changes.outside, changes.packed) == ({}, {})


def test_numbers_that_count_two_a_layer_equal_those_by_hand():
    dense = build_any("longcat_flash").config
    cut = build_any("longcat_flash", num_layers=4).config
    models = (empty_model(LongcatFlashForCausalLM, each, "its configuration") for each in (dense, cut))
    changes = changes_between(*models, "model.layers", [0, 1, 4, 5])
    assert changes.in_layers == {
        (4, "", "layer_idx"): (4, 2),
        (5, "", "layer_idx"): (5, 3),
        (4, "self_attn.0", "layer_idx"): (8, 4),
        (4, "self_attn.1", "layer_idx"): (9, 5),
        (5, "self_attn.0", "layer_idx"): (10, 6),
        (5, "self_attn.1", "layer_idx"): (11, 7),
    }


def test_a_part_for_each_layer_outside_them_is_found_with_its_dimension():
    dense = build_any("gemma3n_text")  # its last two layers share keys and values
    four = {"num_hidden_layers": 4, "num_kv_shared_layers": 0}
    cut = build_any("gemma3n_text", **four, layer_types=["sliding_attention", "full_attention"] * 2)
    packed = changes_between(dense, cut, "model.layers", [0, 1, 2, 3]).packed
    assert packed == {"model.embed_tokens_per_layer.weight": 1, "model.per_layer_model_projection.weight": 0}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"intermediate_size": 64}, r"layer 1 .* its mlp.gate_proj.weight would be \[64, 32\] and not \[48, 32\]"),
        ({"attention_bias": True}, "layer 1 .* its self_attn.q_proj.bias would be there and not none"),
        ({"head_dim": 16}, "layer 1 .* its self_attn.scaling|layer 1 .* its self_attn.q_proj.weight"),
        ({"num_hidden_layers": 2}, "has 2 layers when it is built from the configuration of 3"),
    ],
)
def test_a_layer_that_would_come_out_another_is_refused_with_what_differs(fields, reason):
    cut = llama(**{"num_hidden_layers": 3} | fields)
    with pytest.raises(UnsupportedModelError, match=reason):
        changes_between(llama(num_hidden_layers=4), cut, "model.layers", [1, 2, 3])


def test_a_model_that_cannot_be_built_is_refused_with_its_own_reason():
    with pytest.raises(UnsupportedModelError, match=r"cannot be built from its configuration .*KeyError: 'nonsense'"):
        llama(hidden_act="nonsense")


def test_the_empty_model_has_no_memory_for_weights_and_buffers_with_values():
    model = llama(num_hidden_layers=2)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.model.rotary_emb.inv_freq[0] == 1
