import copy

import pytest
from transformers import AutoConfig, LlamaConfig

from families.family_models import skip_without
from secateur.errors import UnsupportedModelError
from secateur.surgery.config import remove_layers_from_config_
from tiny_families import FAMILIES, JAMBA


def config_of(family, **fields):
    return AutoConfig.for_model(family, **(JAMBA if family == "jamba" else FAMILIES[family]) | fields)


def kept(values, dropped):
    return [value for layer, value in enumerate(values) if layer not in dropped]


@pytest.mark.parametrize("dropped", [[0], [5], [1, 4], [0, 2, 3]])
@pytest.mark.parametrize(
    ("family", "field"),
    [
        ("qwen2", "layer_types"),
        ("gemma2", "layer_types"),
        ("gemma3_text", "layer_types"),
        ("cohere2", "layer_types"),
        ("llama4_text", "layer_types"),
        ("llama4_text", "no_rope_layers"),
        ("smollm3", "no_rope_layers"),
        ("gpt_neo", "attention_layers"),
    ],
)
def test_a_per_layer_list_equals_the_old_one_without_the_dropped_layers(family, field, dropped):
    config = config_of(family)
    before = list(getattr(config, field))
    assert len(set(before)) > 1, "a list of equals would prove nothing"
    remove_layers_from_config_(config, dropped)
    assert list(getattr(config, field)) == kept(before, dropped)
    assert config.num_hidden_layers == 6 - len(dropped)
    again = type(config).from_dict(config.to_dict())
    assert list(getattr(again, field)) == kept(before, dropped)


@pytest.mark.parametrize(
    ("dropped", "expected"), [([0], [0, 3]), ([1], [3]), ([4], [1]), ([1, 4], []), ([2, 3], [1, 2])]
)
def test_layer_indices_equal_the_renumbering_by_hand(dropped, expected):
    config = config_of("qwen2_moe", mlp_only_layers=[1, 4])
    remove_layers_from_config_(config, dropped)
    assert config.mlp_only_layers == expected


def test_indices_as_many_as_layers_are_still_renumbered_and_not_filtered():
    config = config_of("qwen2_moe", mlp_only_layers=[0, 1, 2, 3, 4, 5])
    remove_layers_from_config_(config, [0, 1])
    assert config.mlp_only_layers == [0, 1, 2, 3]


def test_moe_layers_of_llama4_equal_the_renumbering_by_hand():
    config = config_of("llama4_text")
    assert config.moe_layers == [1, 3, 5]
    remove_layers_from_config_(config, [0, 3])
    assert config.moe_layers == [0, 3]


@pytest.mark.parametrize(("dropped", "expected"), [([0], 1), ([0, 1], 0), ([1, 4], 1), ([2], 2), ([4, 5], 2)])
@pytest.mark.parametrize("field", ["first_k_dense_replace"])
def test_the_first_k_layers_equal_the_count_of_those_kept(field, dropped, expected):
    config = config_of("deepseek_v3", first_k_dense_replace=2)
    remove_layers_from_config_(config, dropped)
    assert config.first_k_dense_replace == expected


@pytest.mark.parametrize(("dropped", "expected"), [([0], 2), ([4], 3), ([0, 1, 2], 0)])
def test_max_window_layers_equals_the_count_of_those_kept(dropped, expected):
    config = config_of("qwen2", max_window_layers=3)
    remove_layers_from_config_(config, dropped)
    assert config.max_window_layers == expected


def test_a_made_up_list_as_long_as_the_layers_is_cut_and_others_are_not():
    config = LlamaConfig(num_hidden_layers=4, made_up=["a", "b", "c", "d"], other=[1, 2, 3])
    config.architectures = ["A", "B", "C", "D"]
    config.eos_token_id = [7, 8, 9, 10]
    remove_layers_from_config_(config, [1])
    assert config.made_up == ["a", "c", "d"]
    assert config.other == [1, 2, 3]
    assert (config.architectures, config.eos_token_id) == (["A", "B", "C", "D"], [7, 8, 9, 10])


@pytest.mark.parametrize(
    ("dropped", "step", "listed"),
    [([0], 1, [1, 2, 3]), ([0, 2], 1, [1, 2]), ([2], 1, [0, 2, 3]), ([0, 1], 2, [1]), ([4, 5], 2, [3])],
)
@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe", "qwen3_next", "flint", "qwen3_vl_moe_text"])
def test_every_other_layer_with_experts_becomes_the_list_of_those_without_where_it_has_to(
    family, dropped, step, listed
):
    skip_without(family)
    config = AutoConfig.for_model(family, num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[3])
    remove_layers_from_config_(config, dropped)
    assert (config.decoder_sparse_step, config.mlp_only_layers) == (step, listed)


def test_every_other_layer_with_experts_is_refused_where_no_list_can_say_it():
    config = LlamaConfig(num_hidden_layers=6, decoder_sparse_step=2)
    with pytest.raises(UnsupportedModelError, match=r"decoder_sparse_step=2.*drop whole periods of 2"):
        remove_layers_from_config_(config, [0])


@pytest.mark.parametrize("dropped", [[2, 3], [0, 2, 3], [2, 3, 5]])
def test_a_broken_period_is_refused_and_the_configuration_equals_the_old_one(dropped):
    config = config_of("jamba")
    before = copy.deepcopy(config.to_dict())
    with pytest.raises(UnsupportedModelError, match=r"attn_layer_period=3.*drop whole periods of 3"):
        remove_layers_from_config_(config, dropped)
    assert config.to_dict() == before


@pytest.mark.parametrize("dropped", [[0, 1, 2], [3, 4, 5], [4, 5], [1, 2, 3], [0], [2], [1, 2], [1, 4]])
def test_a_cut_that_leaves_a_period_equals_the_old_types_of_the_kept_layers(dropped):
    config = config_of("jamba")
    before = list(config.layers_block_type)
    remove_layers_from_config_(config, dropped)
    assert config.layers_block_type == kept(before, dropped)


def test_the_last_k_layers_equal_the_count_of_those_kept():
    config = AutoConfig.for_model(
        "gemma3n_text",
        num_hidden_layers=6,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 3,
    )
    remove_layers_from_config_(config, [1, 4])
    assert config.num_kv_shared_layers == 1


def test_a_range_of_layers_equals_the_range_that_is_left_of_it():
    config = AutoConfig.for_model("ernie4_5_moe", num_hidden_layers=6, moe_layer_start_index=2, moe_layer_end_index=4)
    remove_layers_from_config_(config, [0, 3])
    assert (config.moe_layer_start_index, config.moe_layer_end_index) == (1, 2)  # layers 2 and 4


def test_layer_numbers_from_one_equal_the_renumbering_by_hand():
    config = LlamaConfig(num_hidden_layers=6, ple_layer_ids=[1, 3, 6])
    remove_layers_from_config_(config, [1, 2])
    assert config.ple_layer_ids == [1, 4]


def test_a_pattern_that_repeats_becomes_the_kinds_of_the_kept_layers():
    config = AutoConfig.for_model("recurrent_gemma", num_hidden_layers=6)
    before = list(config.layers_block_type)
    remove_layers_from_config_(config, [1, 3])
    assert list(type(config).from_dict(config.to_dict()).layers_block_type) == kept(before, [1, 3])


def test_settings_of_single_layers_move_with_them():
    config = LlamaConfig(
        num_hidden_layers=4, per_layer_config={1: {"intermediate_size": 7}, 3: {"intermediate_size": 9}}
    )
    remove_layers_from_config_(config, [0, 1])
    again = LlamaConfig.from_dict(config.to_dict())
    assert [each.intermediate_size for each in again.per_layer_config] == [11008, 9]


def test_a_scale_over_the_root_of_the_depth_stays_for_each_layer():
    config = AutoConfig.for_model("minicpm3", num_hidden_layers=8, scale_depth=1.4)
    remove_layers_from_config_(config, [0, 1, 2, 3, 4, 5])
    assert config.scale_depth / 2**0.5 == pytest.approx(1.4 / 8**0.5, rel=1e-12)


def test_the_decoder_of_an_encoder_decoder_is_counted_by_its_own_field():
    config = AutoConfig.for_model("bart", encoder_layers=6, decoder_layers=6, is_encoder_decoder=False)
    remove_layers_from_config_(config, [1, 2])
    assert (config.decoder_layers, config.encoder_layers) == (4, 6)


def test_a_configuration_that_the_family_refuses_is_refused_with_its_reason():
    config = AutoConfig.for_model(
        "olmo_hybrid", num_hidden_layers=2, layer_types=["linear_attention", "full_attention"]
    )
    with pytest.raises(UnsupportedModelError, match="at least one attention layer"):
        remove_layers_from_config_(config, [1])


def test_a_configuration_that_forgets_the_change_on_reading_is_refused():
    class Forgetful(LlamaConfig):
        model_type = "forgetful"

        def __init__(self, made_up=None, **kwargs):
            super().__init__(**kwargs)
            self.made_up = ["x"] * 4

    with pytest.raises(UnsupportedModelError, match="made_up"):
        remove_layers_from_config_(Forgetful(num_hidden_layers=4), [1])
