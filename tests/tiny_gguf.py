"""A GGUF file of a six-layer llama, written by the gguf package."""

from __future__ import annotations

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType, GGUFWriter

LAYERS, HIDDEN, VOCABULARY = 6, 32, 64


def block_tensors(rng):
    """The tensors of a llama block of 32 channels, float32."""
    shapes = {
        "attn_norm": (HIDDEN,),
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (HIDDEN // 2, HIDDEN),
        "attn_v": (HIDDEN // 2, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_norm": (HIDDEN,),
        "ffn_gate": (2 * HIDDEN, HIDDEN),
        "ffn_up": (2 * HIDDEN, HIDDEN),
        "ffn_down": (HIDDEN, 2 * HIDDEN),
    }
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(
    path,
    blocks=range(LAYERS),
    *,
    kind=Kind.F32,
    arch="llama",
    numbers=None,
    arrays=None,
    texts=None,
    alignment=32,
    more=(),
    split=None,
):
    """A llama of random weights by the gguf package's own writer, with only the given blocks of the dense one.

    `arrays` are per-layer metadata of the dense model, name → (values, type of an item); `numbers` are 32-bit numbers.
    """
    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, arch)
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_name("tiny ✂")
    for name, text in (texts or {}).items():
        writer.add_string(name, text)
    if split:
        writer.add_uint16("split.count", split[0])
        writer.add_int32("split.tensors.count", split[1])
    writer.add_block_count(len(blocks))
    for name, (values, item) in (arrays or {}).items():
        writer.add_key_value(f"{arch}.{name}", [values[block] for block in blocks], GGUFValueType.ARRAY, item)
    for name, number in ({"attention.head_count": 4, "attention.head_count_kv": 2} | (numbers or {})).items():
        writer.add_uint32(f"{arch}.{name}", number)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(2 * HIDDEN)
    writer.add_context_length(128)
    writer.add_vocab_size(VOCABULARY)
    writer.add_rope_dimension_count(HIDDEN // 4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}" for number in range(VOCABULARY)])
    writer.add_token_merges(["a b", "ç d"])
    writer.add_key_value("tokenizer.ggml.scores", [0.5] * LAYERS, GGUFValueType.ARRAY, GGUFValueType.FLOAT32)
    writer.add_tensor("token_embd.weight", rng.normal(0, 1, (VOCABULARY, HIDDEN)).astype(np.float32))
    for block in range(LAYERS):
        tensors = block_tensors(rng)
        if block not in blocks:
            continue
        for name, values in tensors.items():
            quantised = kind if values.ndim > 1 else Kind.F32
            writer.add_tensor(
                f"blk.{list(blocks).index(block)}.{name}.weight",
                gguf.quants.quantize(values, quantised),
                raw_dtype=quantised,
            )
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, dtype=np.float32))
    writer.add_tensor("output.weight", rng.normal(0, 1, (VOCABULARY, HIDDEN)).astype(np.float32))
    for name in more:
        writer.add_tensor(name, np.ones(5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
