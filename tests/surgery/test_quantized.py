"""Checkpoints as quantizers store them, cut without dequantising: names, dtypes and settings are theirs, the values are not."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.errors import UnsupportedModelError
from secateur.surgery.check import check_pair
from secateur.surgery.files import cut_checkpoint
from tiny_families import build

WEIGHTS = "model.safetensors"
DROPPED, NEW = [1, 2], {0: 0, 3: 1, 4: 2, 5: 3}


def noise(*shape, dtype, seed):
    """Bits of any meaning, but of this seed alone."""
    values = torch.randint(
        0, 127, (*shape, dtype.itemsize), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return values.view(dtype).reshape(shape)


def fp8(stem, n, m, seed):
    """DeepSeek-V3's and Qwen3's: blocks of 128 × 128, a scale each."""
    return {
        f"{stem}.weight": noise(n, m, dtype=torch.float8_e4m3fn, seed=seed),
        f"{stem}.weight_scale_inv": noise(1, 1, dtype=torch.float32, seed=seed + 1),
    }


def compressed_packed(stem, n, m, seed):
    """compressed-tensors, 4-bit weights packed into int32."""
    return {
        f"{stem}.weight_packed": noise(n, m // 8, dtype=torch.int32, seed=seed),
        f"{stem}.weight_scale": noise(n, 2, dtype=torch.bfloat16, seed=seed + 1),
        f"{stem}.weight_zero_point": noise(n // 8, 2, dtype=torch.int32, seed=seed + 2),
        f"{stem}.weight_g_idx": noise(m, dtype=torch.int32, seed=seed + 3),
        f"{stem}.weight_shape": torch.tensor([n, m + seed - seed]),
    }


def compressed_float(stem, n, m, seed):
    """compressed-tensors, fp8 weights with static activation scales."""
    return {
        f"{stem}.weight": noise(n, m, dtype=torch.float8_e4m3fn, seed=seed),
        f"{stem}.weight_scale": noise(n, 1, dtype=torch.bfloat16, seed=seed + 1),
        f"{stem}.input_scale": noise(1, dtype=torch.bfloat16, seed=seed + 2),
    }


def compressed_int(stem, n, m, seed):
    """compressed-tensors, 8-bit weights as they are."""
    return {
        f"{stem}.weight": noise(n, m, dtype=torch.int8, seed=seed),
        f"{stem}.weight_scale": noise(n, 1, dtype=torch.bfloat16, seed=seed + 1),
    }


def gptq(stem, n, m, seed):
    return {
        f"{stem}.qweight": noise(m // 8, n, dtype=torch.int32, seed=seed),
        f"{stem}.qzeros": noise(2, n // 8, dtype=torch.int32, seed=seed + 1),
        f"{stem}.scales": noise(2, n, dtype=torch.float16, seed=seed + 2),
        f"{stem}.g_idx": noise(m, dtype=torch.int32, seed=seed + 3),
    }


def awq(stem, n, m, seed):
    return {
        f"{stem}.qweight": noise(m, n // 8, dtype=torch.int32, seed=seed),
        f"{stem}.qzeros": noise(2, n // 8, dtype=torch.int32, seed=seed + 1),
        f"{stem}.scales": noise(2, n, dtype=torch.float16, seed=seed + 2),
    }


def bitsandbytes_4(stem, n, m, seed):
    return {
        f"{stem}.weight": noise(n * m // 2, 1, dtype=torch.uint8, seed=seed),
        f"{stem}.weight.absmax": noise(n, dtype=torch.uint8, seed=seed + 1),
        f"{stem}.weight.nested_absmax": noise(3, dtype=torch.float32, seed=seed + 2),
        f"{stem}.weight.nested_quant_map": noise(256, dtype=torch.float32, seed=seed + 3),
        f"{stem}.weight.quant_map": noise(16, dtype=torch.float32, seed=seed + 4),
        f"{stem}.weight.quant_state.bitsandbytes__nf4": noise(80, dtype=torch.uint8, seed=seed + 5),
    }


def bitsandbytes_8(stem, n, m, seed):
    return {
        f"{stem}.weight": noise(n, m, dtype=torch.int8, seed=seed),
        f"{stem}.SCB": noise(n, dtype=torch.float32, seed=seed + 1),
        f"{stem}.weight_format": torch.tensor(0, dtype=torch.uint8),
    }


_GROUPS = {
    "group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16}}
}
_IGNORED = [
    "lm_head",
    "model.layers.0.mlp.up_proj",
    "model.layers.2.mlp.up_proj",
    "model.layers.4.mlp.up_proj",
    "re:.*norm",
]
_IGNORED_AFTER = ["lm_head", "model.layers.0.mlp.up_proj", "model.layers.2.mlp.up_proj", "re:.*norm"]


def compressed(format_):
    return {"quant_method": "compressed-tensors", "format": format_, "config_groups": _GROUPS}


_4_BITS = {"bits": 4, "group_size": 16}

# kind → how a projection is stored, the settings, and the field that names layers which are not quantised
KINDS = {
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [128, 128]}, "modules_to_not_convert"),
    "compressed-tensors packed": (compressed_packed, compressed("pack-quantized"), "ignore"),
    "compressed-tensors float": (compressed_float, compressed("float-quantized"), "ignore"),
    "compressed-tensors int": (compressed_int, compressed("int-quantized"), "ignore"),
    "gptq": (gptq, {"quant_method": "gptq", "desc_act": True} | _4_BITS, "modules_to_not_convert"),
    "awq": (awq, {"quant_method": "awq", "version": "gemm"} | _4_BITS, "modules_to_not_convert"),
    "bitsandbytes 4": (bitsandbytes_4, {"quant_method": "bitsandbytes", "load_in_4bit": True}, "llm_int8_skip_modules"),
    "bitsandbytes 8": (bitsandbytes_8, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "llm_int8_skip_modules"),
}


def quantized(kind, family, directory, **settings):
    """A tiny checkpoint whose projections are stored this way, but for those that its settings leave out."""
    build(family).save_pretrained(directory)
    store, about, field = KINDS[kind]
    weights = load_file(directory / WEIGHTS)
    for seed, name in enumerate([name for name in weights if name.endswith("_proj.weight")]):
        stem = name.removesuffix(".weight")
        if stem not in _IGNORED:
            weights |= store(stem, *weights.pop(name).shape, 10 * seed)
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
    path = directory / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"quantization_config": about | {field: _IGNORED} | settings})
    )
    return directory


def bits_of(directory):
    return {
        name: (weight.dtype, weight.shape, weight.reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, weight in load_file(directory / WEIGHTS).items()
    }


@pytest.mark.parametrize("family", ["llama", "qwen2_moe"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_tensors_of_every_kept_layer_are_the_same_bytes_under_the_new_number(kind, family, tmp_path):
    source = quantized(kind, family, tmp_path / "dense")
    before = bits_of(source)
    cut_checkpoint(source, tmp_path / "out", DROPPED)
    expected = {name: bits for name, bits in before.items() if ".layers." not in name}
    for layer, new in NEW.items():
        expected |= {
            name.replace(f".layers.{layer}.", f".layers.{new}."): bits
            for name, bits in before.items()
            if f".layers.{layer}." in name
        }
    assert bits_of(tmp_path / "out") == expected
    assert any(dtype not in (torch.float32, torch.bfloat16) for dtype, _, _ in expected.values())


@pytest.mark.parametrize("kind", KINDS)
def test_layers_left_unquantized_are_renumbered_in_the_settings_and_nothing_else_changes(kind, tmp_path):
    source = quantized(kind, "llama", tmp_path / "dense")
    cut_checkpoint(source, tmp_path / "out", DROPPED)
    before, after = (
        json.loads((path / "config.json").read_text())["quantization_config"] for path in (source, tmp_path / "out")
    )
    field = KINDS[kind][2]
    assert before.pop(field) == _IGNORED
    assert after.pop(field) == _IGNORED_AFTER
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("kind", KINDS)
def test_check_proves_a_quantized_pair_by_its_files_and_names_a_scale_that_differs(kind, tmp_path):
    source = quantized(kind, "llama", tmp_path / "dense")
    out = cut_checkpoint(source, tmp_path / "out", DROPPED).target
    check = check_pair(source, out, run=False)
    assert (check.difference, check.dropped) == (None, (1, 2))
    weights = load_file(out / WEIGHTS)
    name = max(name for name in weights if ".layers.2.self_attn.q_proj" in name and weights[name].numel() > 1)
    weights[name].reshape(-1).view(torch.uint8)[0] ^= 1
    save_file(weights, out / WEIGHTS, metadata={"format": "pt"})
    assert f"tensors: {name!r} is not as in the dense model" in str(check_pair(source, out, run=False).difference)


def test_settings_that_give_single_layers_other_bits_by_a_pattern_are_refused(tmp_path):
    """GPTQModel's `dynamic`, which may count layers in an expression."""
    source = quantized("gptq", "llama", tmp_path / "dense", dynamic={r"+:.*\.layers\.(1|2)\..*": {"bits": 8}})
    with pytest.raises(UnsupportedModelError, match="single layers"):
        cut_checkpoint(source, tmp_path / "out", DROPPED)
    assert not (tmp_path / "out").exists()
