"""A tiny random model of any family that transformers knows, from the names of its configuration's own fields."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

__all__ = ["EVERY_TYPE", "build", "settings_of", "skip_before", "skip_without", "token_ids"]

EVERY_TYPE = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
NUM_LAYERS = 6

_BY_VALUE: dict[Any, str] = {
    128: "vocab_size n_words max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length "
    "max_target_positions max_source_positions vocab_size_per_layer_input encoder_hash_byte_group_vocab "
    "original_max_position_embeddings unpadded_vocab_size pronunciation_vocab_size shape_vocab_size",
    NUM_LAYERS: "num_hidden_layers n_layer n_layers num_layers num_blocks depth encoder_layers decoder_layers "
    "num_encoder_layers num_decoder_layers",
    32: "hidden_size d_model n_embd emb_dim dim embed_dim embedding_size embedding_dim attention_hidden_size lru_width "
    "hidden_dim output_hidden_size router_hidden_size keep_window_size linear_attn_dim word_embed_proj_dim "
    "input_embedding_size output_embedding_size vision_output_dim text_hidden_size mamba_d_ssm",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads num_experts n_routed_experts num_local_experts "
    "moe_num_experts sliding_window window_size attention_window_size sliding_window_size local_attention "
    "qk_rope_head_dim qk_nope_head_dim rotary_dim mamba_d_state state_size ssm_state_size mamba_dt_rank "
    "swa_num_attention_heads index_n_heads linear_num_value_heads linear_num_heads time_step_rank num_layers_per_stack "
    "d_rel zero_expert_num compressor_ratio mamba_n_heads mamba_num_heads linear_num_key_heads n_mamba_heads",
    2: "num_key_value_heads num_kv_heads swa_num_key_value_heads num_experts_per_tok num_experts_per_token moe_topk moe_k "
    "first_k_dense_replace num_dense_layers n_group num_expert_group num_kv_shared_layers o_groups n_groups "
    "mamba_n_groups mamba_ngroups type_vocab_size num_local_heads",
    1: "topk_group n_shared_experts num_shared_experts pretraining_tp",
    8: "head_dim v_head_dim q_lora_rank kv_lora_rank index_head_dim attention_head_dim kv_channels d_kv d_head dim_head "
    "swa_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim adapter_rank laurel_rank rel_extent "
    "hidden_size_per_layer_input attention_chunk_size chunk_size mamba_chunk_size o_lora_rank gated_norm_rank block_size "
    "mamba_d_head mamba_head_dim mamba_headdim attention_head_size conv_kernel_dim hc_lowrank",
    64: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff dff dim_ff d_inner n_inner ffn_hidden_size "
    "intermediate_size_mlp dense_intermediate_size feed_forward_size shared_intermediate_size",
    16: "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size expert_ffn_hidden_size "
    "moe_shared_expert_intermediate_size image_size index_topk num_mel_bins prompt_mid_dim",
    3: "max_window_layers linear_conv_kernel_dim",
    0.2: "initializer_range init_std",
}
_GENERIC = {name: value for value, names in _BY_VALUE.items() for name in names.split()}
_GENERIC |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_sliding_window": True, "is_decoder": True}

_MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 3}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"] * 3}
_SHARED = {"layers_block_type": ["linear_attention", "hybrid"] * 3}
_GEMMA4 = _MIXED | {"global_head_dim": 16}
_ASSISTANT = _GEMMA4 | {
    "model_type": "gemma4_text",
    "num_kv_shared_layers": 6,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
}
_QWEN4 = {
    "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8, "indexer_compress_ratio": 4,
    "ple_layer_ids": [1, 3], "ngram_vocab_size_base": 64, "make_ngram_vocab_size_divisible_by": 8, "split_ngram_parts": 4,
    "layer_types": ["linear_attention", "indexed_attention"] * 3,
}  # fmt: skip
_SWA = {
    f"swa_{name}": value
    for name, value in {
        "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "head_dim": 8,
        "qk_nope_head_dim": 4, "v_head_dim": 8,
    }.items()
}  # fmt: skip

_SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_d_head": 16, "attn_layer_indices": [1, 3, 5]},
    "bailing_hybrid": _HYBRID,
    "blt": {"encoder_config": {"hidden_size_global": 32}, "decoder_config": {"hidden_size_global": 32}},
    "cohere_compass_text": _MIXED
    | {"=rope_parameters": {name: {"rope_type": "default", "rope_theta": 1e4} for name in _MIXED["layer_types"]}},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "dots3_note": {
        "text_config": _SWA,
        "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32, "=per_layer_config": {}},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "dots3_note_text": _SWA,
    "gemma3n_text": _MIXED,
    "gemma4": {"text_config": _GEMMA4},
    "gemma4_assistant": {"text_config": _ASSISTANT},
    "gemma4_text": _GEMMA4,
    "gemma4_unified": {"text_config": _GEMMA4},
    "gemma4_unified_assistant": {"text_config": _ASSISTANT | {"model_type": "gemma4_unified_text"}},
    "gemma4_unified_text": _GEMMA4,
    "gpt_neo": {"attention_types": [[["global", "local"], 3]]},
    "granitemoehybrid": {"mamba_d_head": 16} | _HYBRID,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _HYBRID,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 3},
    "longcat_flash": {"head_dim": 4},
    "mamba2": {"head_dim": 16},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention", "full_attention"]
    },
    "olmo_hybrid": _HYBRID,
    "qwen3_5": {"text_config": _HYBRID},
    "qwen3_5_moe": {"text_config": _HYBRID},
    "qwen3_5_moe_text": _HYBRID,
    "qwen3_5_text": _HYBRID,
    "qwen3_next": _HYBRID,
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 16)},
    "xmod": {"default_language": "en_XX"},
    "zamba": _SHARED | {"attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": _SHARED,
    "zaya": {"num_experts_per_tok": 1},
}
"""What a model type needs beyond that; `text.x` style nesting is a dictionary."""

_PARTS = {"gemma4_assistant": "gemma4_text", "gemma4_unified_assistant": "gemma4_unified_text"}


def _fields(config_class: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)


def _settings(config_class: Any, default: Any) -> dict[str, Any]:
    names = _fields(config_class)
    settings = {name: value for name, value in _GENERIC.items() if name in names}
    for general, own in config_class.attribute_map.items():  # one value, not two for one field
        if own in settings and general in settings and general != own:
            del settings[general]
    if "qk_rope_head_dim" in settings:  # latent attention: as many keys as queries, and a head is made of two parts
        settings.pop("head_dim", None)
        settings.pop("num_key_value_heads", None)
        settings["num_key_value_heads"] = 4
    for name in config_class.sub_configs:
        part = getattr(default, name, None)
        if part is not None and dataclasses.is_dataclass(part):
            settings[name] = _settings(type(part), part)
            if type(default).sub_configs[name] is AutoConfig:
                settings[name]["model_type"] = part.model_type
    return settings


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    both = dict(first)
    for name, value in second.items():
        nested = isinstance(value, dict) and isinstance(both.get(name), dict) and not name.startswith("=")
        if value is ...:
            both.pop(name, None)
        else:
            both[name.removeprefix("=")] = _merged(both[name], value) if nested else value
    return both


def settings_of(model_type: str) -> dict[str, Any]:
    """The fields of the tiny configuration."""
    config_class = CONFIG_MAPPING[model_type]
    special = _SPECIAL.get(model_type, {})
    if model_type in _PARTS:  # its own default is not valid
        return _merged({"text_config": settings_of(_PARTS[model_type])}, special)
    return _merged(_settings(config_class, config_class()), special)


def skip_without(model_type: str) -> None:
    """Skip a test of a family that is not in this transformers, as the newest are not where Python is 3.10."""
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")


def skip_before(version: str) -> None:
    """Skip a test of what transformers builds since that version."""
    if Version(transformers.__version__) < Version(version):
        pytest.skip(f"transformers {transformers.__version__} builds this family in another way than {version}")


def build(model_type: str, *, seed: int = 0, **fields: Any) -> Any:
    """The model in evaluation mode, every weight and buffer of its layers far from what initialisation would give."""
    skip_without(model_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = CONFIG_MAPPING[model_type](**settings_of(model_type) | fields)
        config._attn_implementation = "eager"
        model = AutoModelForCausalLM.from_config(config).float()
        perturb_(model)
        model.generation_config.forced_eos_token_id = None
    return model.eval()


def perturb_(model: nn.Module) -> None:
    """No layer may be the identity or like another: gates, norms and biases that start at 0 or 1 are drawn anew."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                spread = parameter.std() if parameter.numel() > 1 else torch.tensor(0.0)
                if not spread > 1e-3:
                    parameter.add_(torch.randn_like(parameter) * 0.2)


def token_ids(*, batch: int = 2, tokens: int = 12) -> torch.Tensor:
    """Seeded token ids (batch, tokens) of all families' vocabulary, none of them special."""
    return torch.randint(3, 60, (batch, tokens), generator=torch.Generator().manual_seed(1))
