"""Six-layer models of many families, small enough to build in a moment, with seeded weights far from the identity."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

_SPECIAL = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
_PLAIN = _SPECIAL | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_GPT = _SPECIAL | {"n_embd": 32, "n_layer": 6, "n_head": 4, "n_positions": 64}
_WINDOW = {"sliding_window": 4}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _PLAIN,
    "mistral": _PLAIN | _WINDOW,
    "qwen2": _PLAIN | _WINDOW | {"use_sliding_window": True, "max_window_layers": 3},
    "qwen3": _PLAIN | {"head_dim": 8},
    "gemma2": _PLAIN | _WINDOW | {"head_dim": 8},
    "gemma3_text": _PLAIN | _WINDOW | {"head_dim": 8, "sliding_window_pattern": 3},
    "phi3": _PLAIN,
    "olmo2": _PLAIN,
    "gpt2": _GPT,
    "gptj": _GPT | {"rotary_dim": 4},
    "gpt_neo": _SPECIAL
    | {"hidden_size": 32, "num_layers": 6, "num_heads": 4, "max_position_embeddings": 64, "window_size": 4}
    | {"attention_types": [[["global", "local"], 3]]},
    "gpt_neox": _PLAIN,
    "opt": _PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": _SPECIAL | {"hidden_size": 32, "n_layer": 6, "n_head": 4},
    "falcon": {key: value for key, value in _PLAIN.items() if "key_value" not in key},
    "cohere2": _PLAIN | _WINDOW | {"sliding_window_pattern": 3},
    "smollm3": _PLAIN | {"no_rope_layer_interval": 3},
    "llama4_text": _PLAIN
    | {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48, "head_dim": 8}
    | {"interleave_moe_layer_step": 2, "attention_chunk_size": 8},
    "qwen2_moe": _PLAIN | _EXPERTS | {"shared_expert_intermediate_size": 16, "mlp_only_layers": [1, 4]},
    "deepseek_v3": _PLAIN
    | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 2}
    | {"n_group": 2, "topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4}
    | {"qk_nope_head_dim": 4, "v_head_dim": 8, "n_shared_experts": 1, "num_key_value_heads": 4},
}

JAMBA = _PLAIN | {
    "num_experts": 2,
    "attn_layer_period": 3,
    "attn_layer_offset": 1,
    "expert_layer_period": 1,
    "expert_layer_offset": 0,
    "mamba_d_state": 4,
}


def build(model_type: str, **fields: Any) -> Any:
    """A causal LM of this family in evaluation mode; the same weights every time."""
    settings = JAMBA if model_type == "jamba" else FAMILIES[model_type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings | fields)).eval()


def token_ids(*, batch: int = 2, tokens: int = 12) -> torch.Tensor:
    """Seeded token ids (batch, tokens) of all families' vocabulary, none of them special."""
    return torch.randint(3, 60, (batch, tokens), generator=torch.Generator().manual_seed(1))


def logits(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """The model's logits (batch, tokens, vocabulary), without a cache and without our own code."""
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=input_ids, use_cache=False).logits
    return result
