import dataclasses
import errno
import json
import math
import os
import resource
import shutil
import struct
import subprocess
import tracemalloc
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Emu3ForCausalLM
from transformers.models.llama.modeling_llama import LlamaModel

from families.family_models import build as build_any
from families.family_models import skip_before
from secateur.decoder import Decoder
from secateur.errors import (
    ModelError,
    OutputError,
    PlanError,
    RequestError,
    SecateurError,
    UnsupportedModelError,
    WriteError,
)
from secateur.loading import load_model
from secateur.plan import PruningPlan
from secateur.surgery import copying
from secateur.surgery.check import check_pair
from secateur.surgery.files import cut_checkpoint
from secateur.surgery.legacy import make_readable_before_5_
from secateur.surgery.live import remove_layers_
from secateur.surgery.shards import StoredTensor, read_header, write_shard
from tiny_families import FAMILIES, build, logits, token_ids

IDS = token_ids()
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def stored(directory):
    """Every tensor of a checkpoint, read by the letter of the format: name → (dtype, shape, bytes)."""
    found = {}
    for file in directory.glob("*.safetensors"):
        raw = file.read_bytes()
        end = 8 + struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8:end])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, stop = entry["data_offsets"]
            assert name not in found
            found[name] = (entry["dtype"], entry["shape"], raw[end + begin : end + stop])
    return found


def write_raw(path, tensors, metadata=None):
    """Write a safetensors file from name → (dtype, shape, bytes), by the letter of the format."""
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    write_header(path, json.dumps(header).encode(), data)


def write_header(path, header, data=b"", *, length=None):
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


def config_of(directory):
    return json.loads((directory / "config.json").read_text())


def change_config(directory, **fields):
    (directory / "config.json").write_text(json.dumps(config_of(directory) | fields))


def rename(directory, change):
    """Rename, add or take away tensors of a checkpoint in one file."""
    save_file(change(load_file(directory / WEIGHTS)), directory / WEIGHTS, metadata={"format": "pt"})


def tree(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
        if not path.is_fifo()
    }


def save(model, directory, **options):
    model.save_pretrained(directory, **options)
    return directory


@pytest.fixture
def dense(tmp_path, tiny_checkpoint):
    """A copy of the tiny checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "dense"))


@pytest.fixture
def sharded(tmp_path, tiny_model):
    """The tiny model in several files."""
    directory = save(tiny_model, tmp_path / "dense", max_shard_size="100KB")
    assert len(list(directory.glob("*.safetensors"))) > 2
    return directory


def expect_refusal(kind, words, source, dropped=(1,), **options):
    """One line of this kind, and not a trace on the disk."""
    root = source.parent
    before = tree(root)
    with pytest.raises(kind, match=words) as caught:
        cut_checkpoint(source, root / "out", dropped, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert tree(root) == before


# ---- file to file equals live -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dropped", "in_files_of"), [([0, 5], "5GB"), ([1, 2, 4], "60KB")], ids=["one file", "many"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_file_equals_the_cut_live_model_when_saved_and_its_logits_equal_bypass(
    family, dropped, in_files_of, tmp_path
):
    model = build(family)
    source = save(model, tmp_path / "dense", max_shard_size=in_files_of)
    with Decoder(model).bypass(dropped):
        expected = logits(model, IDS)
    remove_layers_(model, dropped)
    live = save(model, tmp_path / "live")
    make_readable_before_5_(live, type(model.config))  # as every checkpoint that secateur saves
    report = cut_checkpoint(source, tmp_path / "out", dropped)
    assert stored(tmp_path / "out") == stored(live)
    assert config_of(tmp_path / "out") == config_of(live)
    again, found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(found.values())
    assert torch.equal(logits(again.eval(), IDS), expected)
    assert (report.num_layers, report.dropped, report.num_tensors) == (6, tuple(dropped), len(stored(live)))
    assert report.num_bytes == sum(len(raw) for _, _, raw in stored(live).values())
    assert report.num_bytes + report.removed_bytes == sum(len(raw) for _, _, raw in stored(source).values())


@pytest.mark.parametrize("family", ["gpt_oss", "gemma3_text"])
def test_sliding_and_full_layers_in_turn_equal_the_cut_live_model_and_are_listed_as_they_were(family, tmp_path):
    kinds = ["sliding_attention", "full_attention"] * 3
    model = build_any(family, layer_types=kinds)
    source = save(model, tmp_path / "dense", max_shard_size="30KB")
    cut_checkpoint(source, tmp_path / "out", [1, 2])
    assert config_of(tmp_path / "out")["layer_types"] == [kinds[0], *kinds[3:]]
    with Decoder(model).bypass([1, 2]):
        expected = logits(model, IDS)
    remove_layers_(model, [1, 2])
    assert stored(tmp_path / "out") == stored(save(model, tmp_path / "live"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    assert torch.equal(logits(again, IDS), expected)


@pytest.mark.parametrize("dropped", [[1], [1, 4]], ids=str)
@pytest.mark.parametrize(
    "family",
    ["gemma3n_text", "gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text", "qwen4_exp", "qwen4_exp_text"],
)
def test_tensors_over_all_layers_or_put_together_on_the_cpu_equal_bypass_and_the_cut_live_model_when_saved(
    family, dropped, tmp_path
):
    if family == "gemma3n_text":
        skip_before("5.23")
    model = build_any(family)
    source = save(model, tmp_path / "dense", max_shard_size="30KB")
    with Decoder(model).bypass(dropped):
        expected = logits(model, IDS)
    remove_layers_(model, dropped)
    live = save(model, tmp_path / "live")
    make_readable_before_5_(live, type(model.config))
    cut_checkpoint(source, tmp_path / "out", dropped)
    assert stored(tmp_path / "out") == stored(live)
    assert config_of(tmp_path / "out") == config_of(live)
    again, found = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager", output_loading_info=True
    )
    assert not any(found.values())
    assert torch.equal(logits(again.eval(), IDS), expected)
    check = check_pair(source, tmp_path / "out")
    assert (check.proven, check.dropped) == (True, tuple(dropped))


def test_a_model_that_the_auto_class_does_not_load_is_refused_with_the_class_that_does(tmp_path):
    source = save(build_any("emu3"), tmp_path / "dense")
    expect_refusal(UnsupportedModelError, "'emu3_text_model' model, which transformers' Emu3ForCausalLM loads", source)
    with pytest.raises(UnsupportedModelError, match=r"load it with the former, and cut it in Python"):
        load_model(source)
    model = Emu3ForCausalLM.from_pretrained(source, attn_implementation="eager").eval()
    with Decoder(model).bypass([1]):
        expected = logits(model, IDS)
    remove_layers_(model, [1])
    assert torch.equal(logits(model, IDS), expected)


def test_weights_of_layers_that_are_numbered_outside_them_are_named_as_the_reason(tmp_path):
    source = save(build_any("inkling2_text"), tmp_path / "dense")
    words = (
        r"to 3 layers: 'model\.llm\.attn_res\.attn_queries\.0' is numbered outside the layers, .*prune the loaded model"
    )
    expect_refusal(UnsupportedModelError, words, source, [3, 4, 5])


@pytest.mark.parametrize("dropped", [[0], [1, 4], [2]], ids=str)
@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe", "qwen3_next", "flint"])
def test_every_other_layer_with_experts_equals_bypass_and_the_cut_live_model_when_saved(family, dropped, tmp_path):
    model = build_any(family, decoder_sparse_step=2, mlp_only_layers=[3])
    source = save(model, tmp_path / "dense")
    with Decoder(model).bypass(dropped):
        expected = logits(model, IDS)
    remove_layers_(model, dropped)
    assert torch.equal(logits(model, IDS), expected)
    live = save(model, tmp_path / "live")
    make_readable_before_5_(live, type(model.config))
    cut_checkpoint(source, tmp_path / "out", dropped)
    assert stored(tmp_path / "out") == stored(live)
    assert config_of(tmp_path / "out") == config_of(live)
    again, found = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager", output_loading_info=True
    )
    assert not any(found.values())
    assert torch.equal(logits(again.eval(), IDS), expected)
    assert check_pair(source, tmp_path / "out").dropped == tuple(dropped)


@pytest.mark.parametrize("family", ["bart", "blenderbot", "marian", "trocr"])
def test_a_decoder_that_is_counted_apart_from_an_encoder_equals_the_cut_live_model_when_saved(family, tmp_path):
    """`num_hidden_layers` of these is the number of layers of an encoder that the checkpoint does not have."""
    model = build_any(family) if family == "trocr" else build_any(family, encoder_layers=4)
    source = save(model, tmp_path / "dense")
    report = cut_checkpoint(source, tmp_path / "out", [1, 4])
    assert (report.num_layers, report.dropped) == (6, (1, 4))
    remove_layers_(model, [1, 4])
    live = save(model, tmp_path / "live")
    make_readable_before_5_(live, type(model.config))
    assert stored(tmp_path / "out") == stored(live)
    assert config_of(tmp_path / "out") == config_of(live)
    assert config_of(live)["decoder_layers"] == 4
    check = check_pair(source, tmp_path / "out")
    assert (check.proven, check.dropped) == (True, (1, 4))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dropped=st.sets(st.integers(0, 5), min_size=1, max_size=5))
def test_any_proper_subset_equals_renumbering_by_hand(tiny_checkpoint, tmp_path_factory, dropped):
    out = tmp_path_factory.mktemp("cut") / "out"
    cut_checkpoint(tiny_checkpoint, out, dropped)
    expected = {name: value for name, value in stored(tiny_checkpoint).items() if ".layers." not in name}
    for new, layer in enumerate(sorted(set(range(6)) - dropped)):
        expected |= {
            name.replace(f".layers.{layer}.", f".layers.{new}."): value
            for name, value in stored(tiny_checkpoint).items()
            if f".layers.{layer}." in name
        }
    assert stored(out) == expected


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_are_stored_once_as_before(tied, tmp_path):
    source = save(build("llama", tie_word_embeddings=tied), tmp_path / "dense")
    cut_checkpoint(source, tmp_path / "out", [2])
    assert ("lm_head.weight" in stored(tmp_path / "out")) == (not tied) == ("lm_head.weight" in stored(source))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied


def test_names_without_their_prefix_and_with_old_buffers_equal_bypass(tmp_path):
    """As in the first GPT-2 checkpoint: `h.3.` and not `transformer.h.3.`, and causal masks nobody reads any more."""
    model = build("gpt2")
    source = save(model, tmp_path / "dense")
    mask = torch.ones(1, 1, 8, 8).tril()
    rename(source, lambda all_: {name.removeprefix("transformer."): value for name, value in all_.items()})
    rename(source, lambda all_: all_ | {f"h.{layer}.attn.bias": mask * layer for layer in range(6)})
    cut_checkpoint(source, tmp_path / "out", [0, 3])
    found = load_file(tmp_path / "out" / WEIGHTS)
    assert [int(found[f"h.{layer}.attn.bias"].max()) for layer in range(4)] == [1, 2, 4, 5]
    with Decoder(model).bypass([0, 3]):
        expected = logits(model, IDS)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(again, IDS), expected)


def gemma3_with_eyes():
    """Text and vision with equally many layers, so that counting cannot tell them apart."""
    text = FAMILIES["gemma3_text"]
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    return AutoModelForCausalLM.from_config(config).eval()


def test_a_composite_model_equals_the_cut_live_one_and_keeps_its_image_encoder(tmp_path):
    model = gemma3_with_eyes()
    source = save(model, tmp_path / "dense")
    before = stored(source)
    remove_layers_(model, [1, 4])
    live = save(model, tmp_path / "live")
    cut_checkpoint(source, tmp_path / "out", [1, 4])
    after = stored(tmp_path / "out")
    assert after == stored(live)
    assert config_of(tmp_path / "out") == config_of(live)
    assert {name: after[name] for name in before if "vision" in name} == {
        name: value for name, value in before.items() if "vision" in name
    }


def test_a_checkpoint_of_links_as_in_the_hub_cache_equals_one_of_files(tmp_path, tiny_checkpoint):
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(tiny_checkpoint.iterdir())):
        blob = Path(shutil.copy(file, tmp_path / f"blob{number}"))
        (snapshot / file.name).symlink_to(Path("../..") / blob.name)
    cut_checkpoint(snapshot, tmp_path / "links", [1])
    cut_checkpoint(tiny_checkpoint, tmp_path / "files", [1])
    assert tree(tmp_path / "links") == tree(tmp_path / "files")
    assert not any(path.is_symlink() for path in (tmp_path / "links").iterdir())


# ---- bytes, whatever they mean ------------------------------------------------------------------------------------------

BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


def test_tensors_of_every_dtype_shape_and_name_are_copied_bit_for_bit(dense, tmp_path):
    before = stored(dense)
    for layer in range(6):
        for dtype, bits in BITS.items():
            before[f"model.layers.{layer}.{dtype}"] = (dtype, [3, 8], os.urandom(3 * bits))
        before[f"model.layers.{layer}.empty"] = ("F32", [0, 7], b"")
        before[f"model.layers.{layer}.scalar"] = ("F64", [], os.urandom(8))
        before[f"model.layers.{layer}.größe 'x' \n\\"] = ("U8", [1], os.urandom(1))
    write_raw(dense / WEIGHTS, before, {"format": "pt", "by": "someone"})
    cut_checkpoint(dense, tmp_path / "out", [0])
    after = stored(tmp_path / "out")
    kept = {name.replace("layers.5", "layers.4"): value for name, value in before.items() if "layers.5" in name}
    assert {name: value for name, value in after.items() if "layers.4" in name} == kept
    assert read_header(tmp_path / "out" / WEIGHTS)[1] == {"format": "pt", "by": "someone"}
    for tensor in read_header(tmp_path / "out" / WEIGHTS)[0].values():
        assert tensor.start % max(BITS[tensor.dtype] // 8, 1) == 0, "readers map tensors, which must be aligned"


def quantize(directory, kind, **about):
    """Store the projections as quantizers do; the values do not matter."""

    def packed(weights):
        for name in [name for name in weights if name.endswith("_proj.weight")]:
            stem, value = name.removesuffix("weight"), weights[name]
            if kind == "fp8":
                weights |= {name: value.to(torch.float8_e4m3fn), f"{stem}weight_scale_inv": torch.ones(1, 1)}
            elif kind == "bitsandbytes":
                code = torch.arange(value.numel() // 2).to(torch.uint8)[:, None]
                weights |= {
                    name: code,
                    f"{name}.absmax": torch.ones(3),
                    f"{name}.quant_state.bitsandbytes__nf4": code + 1,
                }
            else:
                del weights[name]
                weights |= {
                    f"{stem}qweight": value.new_zeros(value.shape[1] // 8, value.shape[0], dtype=torch.int32),
                    f"{stem}scales": value.new_ones(1, value.shape[0], dtype=torch.float16),
                    f"{stem}g_idx": torch.arange(value.shape[1], dtype=torch.int32),
                }
        return weights

    rename(directory, packed)
    change_config(directory, quantization_config={"quant_method": kind} | about)


@pytest.mark.parametrize("kind", ["fp8", "bitsandbytes", "gptq"])
@pytest.mark.parametrize("family", ["llama", "qwen2_moe", "deepseek_v3"])
def test_a_quantized_checkpoint_equals_renumbering_by_hand(family, kind, tmp_path):
    source = save(build(family), tmp_path / "dense")
    quantize(source, kind)
    before = stored(source)
    cut_checkpoint(source, tmp_path / "out", [0, 1, 2])
    after = stored(tmp_path / "out")
    assert len({dtype for dtype, _, _ in after.values()}) > 1
    for layer in (3, 4, 5):
        for name in before:
            if f".layers.{layer}." in name:
                assert after.pop(name.replace(f".layers.{layer}.", f".layers.{layer - 3}.")) == before[name]
    assert after == {name: value for name, value in before.items() if ".layers." not in name}
    assert config_of(tmp_path / "out")["quantization_config"] == config_of(source)["quantization_config"]


def test_layers_named_in_the_quantization_settings_are_renumbered(dense, tmp_path):
    names = ["lm_head", "model.layers.0", "model.layers.2.mlp", "layers.5.self_attn.q_proj", "re:.*embed_[0-9]"]
    quantize(dense, "fp8", modules_to_not_convert=names, groups={"model.layers.3.mlp": 4, "model.layers.1.mlp": 8})
    cut_checkpoint(dense, tmp_path / "out", [1, 2])
    found = config_of(tmp_path / "out")["quantization_config"]
    assert found["modules_to_not_convert"] == [
        "lm_head", "model.layers.0", "layers.3.self_attn.q_proj", "re:.*embed_[0-9]"
    ]  # fmt: skip
    assert found["groups"] == {"model.layers.1.mlp": 4}


def test_patterns_for_single_layers_in_the_quantization_settings_are_refused(dense):
    quantize(dense, "gptq", dynamic={r"-:model\.layers\.(3|5)\..*": {}})
    expect_refusal(UnsupportedModelError, "single layers", dense)


@pytest.mark.parametrize("rule", [r"+:.*\.3\..*gate.*", r"-:.*\.5\..*", "5.mlp"])
def test_rules_for_a_layer_by_its_number_alone_are_refused(dense, rule):
    quantize(dense, "gptq", dynamic={rule: {"bits": 8}})
    expect_refusal(UnsupportedModelError, "single layers", dense)


def test_patterns_for_any_layer_in_the_quantization_settings_stay(dense, tmp_path):
    patterns = {r"-:model\.layers\.\d+\.mlp": {}, r"model\.layers\.[0-9]+\.self_attn": {}}
    quantize(dense, "gptq", dynamic=patterns)
    cut_checkpoint(dense, tmp_path / "out", [1])
    assert config_of(tmp_path / "out")["quantization_config"]["dynamic"] == patterns


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_layers_named_in_a_quantizers_own_file_are_renumbered_or_refused(name, dense, tmp_path):
    quantize(dense, "gptq")
    rules = {"bits": 4, "dynamic": {"model.layers.2.mlp": {}, "model.layers.5": {"bits": 8}}, "exclude": ["lm_head"]}
    (dense / name).write_text(json.dumps(rules))
    report = cut_checkpoint(dense, tmp_path / "out", [1, 2])
    assert json.loads((tmp_path / "out" / name).read_text()) == rules | {"dynamic": {"model.layers.3": {"bits": 8}}}
    assert name not in report.copied
    (dense / name).write_text(json.dumps({"bits": 4}))
    assert name in cut_checkpoint(dense, tmp_path / "plain", [1, 2]).copied
    assert (tmp_path / "plain" / name).read_bytes() == (dense / name).read_bytes()
    (dense / name).write_text(json.dumps({"dynamic": {r"-:model\.layers\.3\..*": {}}}))
    with pytest.raises(UnsupportedModelError, match=r"config.json's rules speak of single layers"):
        cut_checkpoint(dense, tmp_path / "other", [1, 2])


@pytest.mark.parametrize("version", ["gptqmodel:1.4.0", "0.9.1.dev3+g12ab", "auto-gptq 0.7.1 (x)", "0.29.0"])
def test_a_version_in_the_quantization_settings_is_no_pattern_of_layers(version, dense, tmp_path):
    about = {"meta": {"quantizer": [version]}}
    quantize(dense, "gptq", **about)
    (dense / "quantize_config.json").write_text(json.dumps(about))
    cut_checkpoint(dense, tmp_path / "out", [1])
    assert config_of(tmp_path / "out")["quantization_config"]["meta"] == about["meta"]
    assert json.loads((tmp_path / "out" / "quantize_config.json").read_text()) == about


def test_a_quantizers_file_that_is_nested_too_deep_or_holds_half_a_character_is_no_traceback(dense, tmp_path):
    (dense / "quantize_config.json").write_text("[" * 900 + "]" * 900)
    expect_refusal(UnsupportedModelError, "are nested more than 32 deep; mend them", dense)
    (dense / "quantize_config.json").write_text('{"a": "\\ud800", "model.layers.2": 1}')
    cut_checkpoint(dense, tmp_path / "out", [1])
    written = json.loads((tmp_path / "out" / "quantize_config.json").read_text())
    assert written == {"a": "\ud800", "model.layers.1": 1}


def test_a_quantized_checkpoint_whose_configuration_does_not_say_so_is_told_where_it_must(dense, tmp_path):
    quantize(dense, "gptq")
    settings = config_of(dense)["quantization_config"]
    change_config(dense, quantization_config=None)
    (dense / "quantize_config.json").write_text(json.dumps(settings))
    words = r"not read quantize_config\.json; put what that says into config\.json, as quantization_config"
    expect_refusal(ModelError, words, dense)
    change_config(dense, quantization_config=json.loads((dense / "quantize_config.json").read_text()))
    cut_checkpoint(dense, tmp_path / "out", [1])


def test_a_quantized_layer_without_one_of_its_tensors_is_refused(dense):
    quantize(dense, "gptq")
    lost = "model.layers.4.mlp.up_proj.scales"
    rename(dense, lambda weights: {name: value for name, value in weights.items() if name != lost})
    expect_refusal(ModelError, r"'mlp.up_proj.scales' in only one of the layers 0 and 4", dense)


def refuse_to_copy(*_):
    raise OSError(errno.EXDEV, "Invalid cross-device link")


@pytest.fixture(params=["past the cache", "the kernel", "some of it the kernel", "memory", "no such call"])
def copied_by(request, monkeypatch):
    """Each way in which bytes get from file to file."""
    monkeypatch.setattr(copying, "LARGE", 0 if request.param == "past the cache" else math.inf)
    real = getattr(os, "copy_file_range", None)
    if request.param.endswith("the kernel") and real is None:
        pytest.skip("only Linux copies in the kernel")
    if request.param == "memory":
        monkeypatch.setattr(os, "copy_file_range", refuse_to_copy, raising=False)
    elif request.param == "no such call":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    elif request.param.startswith("some"):
        calls = iter([1000] * 7)

        def some(source, target, count, offset):
            return real(source, target, min(count, next(calls, 0)), offset)

        monkeypatch.setattr(os, "copy_file_range", some)


def test_bytes_are_the_same_whoever_copies_them(copied_by, tiny_checkpoint, tmp_path):
    cut_checkpoint(tiny_checkpoint, tmp_path / "out", [0])
    before, after = stored(tiny_checkpoint), stored(tmp_path / "out")
    assert {name: after[name] for name in after if "layers" not in name} == {
        name: before[name] for name in before if "layers" not in name
    }
    assert all(
        after[name] == before[name.replace(f".{n}.", f".{n + 1}.")]
        for n in range(5)
        for name in after
        if f".{n}." in name
    )
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tiny_checkpoint / "tokenizer.json").read_bytes()


def test_memory_does_not_grow_with_the_tensors(copied_by, tmp_path):
    size = 96 * 2**20
    with (tmp_path / "source").open("wb") as file:
        file.truncate(size)
    tensor = StoredTensor(file=tmp_path / "source", dtype="U8", shape=(size,), start=0, num_bytes=size)
    tracemalloc.start()
    try:
        write_shard(tmp_path / "target", {"a": tensor}, {}, lambda _: None)
        assert tracemalloc.get_traced_memory()[1] < size / 4
    finally:
        tracemalloc.stop()
    assert (tmp_path / "target").stat().st_size > size


# ---- the new directory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", ["100KB", 40_000])
def test_small_files_hold_what_one_does_and_the_index_says_where(tiny_checkpoint, tmp_path, most):
    one = cut_checkpoint(tiny_checkpoint, tmp_path / "one", [1])
    many = cut_checkpoint(tiny_checkpoint, tmp_path / "many", [1], max_shard_size=most)
    assert (one.weights, (tmp_path / "one" / INDEX).exists()) == ((WEIGHTS,), False)
    assert {path.name for path in (tmp_path / "many").glob("*.safetensors")} == set(many.weights)
    assert len(many.weights) > 1
    assert stored(tmp_path / "many") == stored(tmp_path / "one")
    index = json.loads((tmp_path / "many" / INDEX).read_text())
    assert index["metadata"]["total_size"] == one.num_bytes == many.num_bytes
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "many" / file)
    assert index["weight_map"].keys() == stored(tmp_path / "one").keys()
    limit = 100_000 if most == "100KB" else most
    assert all(sum(t.num_bytes for t in read_header(tmp_path / "many" / f)[0].values()) <= limit for f in many.weights)
    a, b = (AutoModelForCausalLM.from_pretrained(tmp_path / name).eval() for name in ("one", "many"))
    assert torch.equal(logits(a, IDS), logits(b, IDS))


def test_the_tokenizer_and_other_companions_are_copied_and_the_rest_is_told(dense, tmp_path):
    kept = {"chat_template.jinja": "{{ x }}", "modeling_own.py": "x = 1", "LICENSE": "yes", "USE_POLICY.md": "be good"}
    gone = ["README.md", "pytorch_model.bin", "pytorch_model.bin.index.json", "model.fp16.safetensors", "x.gguf",
            "training_args.bin", "trainer_state.json", ".gitattributes", "model.onnx", "optimizer.pt"]  # fmt: skip
    for name in [*kept, *gone]:
        (dense / name).write_text(kept.get(name, "old"))
    (dense / "additional_chat_templates").mkdir()
    (dense / "additional_chat_templates" / "tool_use.jinja").write_text("{{ y }}")
    for name in ("secateur", "checkpoint-10"):
        (dense / name).mkdir()
        (dense / name / "plan.json").write_text("old")
    report = cut_checkpoint(dense, tmp_path / "out", [1])
    beside = {"config.json", WEIGHTS}
    written = (path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert set(map(str, written)) == {*report.copied, *beside}
    assert {
        *kept,
        "additional_chat_templates/tool_use.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    } <= set(report.copied)
    assert set(report.left) == {*gone, "secateur/", "checkpoint-10/"}
    for name in report.copied:
        assert (tmp_path / "out" / name).read_bytes() == (dense / name).read_bytes()
    text = "def f(x):\n\treturn x"
    tokens = [AutoTokenizer.from_pretrained(each)(text)["input_ids"] for each in (dense, tmp_path / "out")]
    assert tokens[0] == tokens[1]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()} == {0o644}


def test_code_in_folders_is_copied_and_what_else_they_hold_is_told(dense, tmp_path):
    code = ["code/__init__.py", "code/deep/er/own.py", "pure/own.py"]
    others = ["code/weights.bin", "checkpoint-1/own.py", ".git/own.py", "secateur/own.py", "pure/__pycache__/own.pyc"]
    for name in [*code, *others, "code/not-a-package/own.py"]:
        (dense / name).parent.mkdir(parents=True, exist_ok=True)
        (dense / name).write_text(f"# {name}")
    (dense / "elsewhere").symlink_to(tmp_path)
    PruningPlan.of_layers([1], 6).save(tmp_path / "plan.json")
    report = cut_checkpoint(dense, tmp_path / "out", PruningPlan.load(tmp_path / "plan.json"))
    assert {name for name in report.copied if name.endswith(".py")} == set(code)
    assert {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.py")} == set(code)
    assert all((tmp_path / "out" / name).read_text() == f"# {name}" for name in code)
    assert set(report.left) == {"code/", "checkpoint-1/", ".git/", "secateur/", "elsewhere/"}


def test_code_in_folders_deeper_than_python_calls_stays_behind(dense, tmp_path):
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(dense)
        for _ in range(1500):
            Path("a").mkdir()
            os.chdir("a")
        Path("own.py").write_text("1")
        os.fchdir(here)
        report = cut_checkpoint(dense, tmp_path / "out", [1])
        assert "a/" in report.left
        assert not [name for name in report.copied if name.endswith(".py")]
    finally:  # pytest removes folders by calls in each other
        os.fchdir(here)
        os.close(here)
        subprocess.run(["rm", "-r", str(dense / "a")], check=True)


def test_code_in_folders_of_the_hub_cache_is_copied_and_no_link_leads_elsewhere(tmp_path, tiny_checkpoint):
    cache, blobs = tmp_path / "snapshots" / "main", tmp_path / "blobs"
    shutil.copytree(tiny_checkpoint, cache)
    (cache / "code").mkdir()
    blobs.mkdir()
    (blobs / "1").write_text("x = 1")
    (cache / "code" / "own.py").symlink_to(Path("../../../blobs/1"))
    cut_checkpoint(cache, tmp_path / "out", [1])
    assert (tmp_path / "out" / "code" / "own.py").read_text() == "x = 1"
    assert not (tmp_path / "out" / "code" / "own.py").is_symlink()
    (tmp_path / "secret").write_text("secret")
    (cache / "code" / "other.py").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match=r"other.py' is a link that leads out of .*; put the file itself there"):
        cut_checkpoint(cache, tmp_path / "another", [1])
    assert not (tmp_path / "another").exists()


def test_generation_settings_inside_the_configuration_equal_those_of_the_dense_model(dense, tmp_path):
    """As in older checkpoints; transformers takes them out of the configuration when it reads it."""
    (dense / "generation_config.json").unlink()
    change_config(dense, temperature=0.7, do_sample=True, max_length=40, of_its_own=[1])
    cut_checkpoint(dense, tmp_path / "out", [1])
    expected, found = (
        AutoModelForCausalLM.from_pretrained(each).generation_config for each in (dense, tmp_path / "out")
    )
    assert (found.temperature, found.do_sample, found.max_length) == (0.7, True, 40)
    assert found.to_dict() == expected.to_dict() | {"_from_model_config": found._from_model_config}
    assert config_of(tmp_path / "out")["of_its_own"] == [1]


def test_a_dry_run_reports_the_same_and_writes_nothing(tiny_checkpoint, tmp_path):
    dry = cut_checkpoint(tiny_checkpoint, tmp_path / "out", [1, 3], dry_run=True, max_shard_size="50KB")
    assert tree(tmp_path) == {}
    assert dry == cut_checkpoint(tiny_checkpoint, tmp_path / "out", [1, 3], max_shard_size="50KB")
    assert json.loads(json.dumps(dataclasses.asdict(dry), default=str))["num_layers"] == 6


def test_a_cut_draws_no_random_numbers_and_gives_the_same_bytes_again(tiny_checkpoint, tmp_path):
    state = torch.random.get_rng_state()
    cut_checkpoint(tiny_checkpoint, tmp_path / "a", [1])
    assert torch.equal(torch.random.get_rng_state(), state)
    cut_checkpoint(tiny_checkpoint, tmp_path / "b", [1])
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


class Stopping:
    """Progress that stops the work as soon as it is told of any."""

    def __init__(self, error):
        self.error = error

    def track(self, description, total):
        return nullcontext(self.advance)

    def advance(self, done):
        raise self.error

    def note(self, message):
        pass


@pytest.mark.parametrize(
    ("error", "kind"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "No space left"), WriteError)]
)
def test_a_failure_half_way_leaves_nothing(tiny_checkpoint, tmp_path, error, kind):
    with pytest.raises(kind) as caught:
        cut_checkpoint(tiny_checkpoint, tmp_path / "a" / "out", [1], progress=Stopping(error))
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == {}


def test_a_source_that_shrinks_while_it_is_copied_is_a_damaged_source_and_not_a_full_disk(copied_by, tmp_path):
    (tmp_path / "source").write_bytes(b"short")
    tensor = StoredTensor(file=tmp_path / "source", dtype="U8", shape=(9,), start=0, num_bytes=9)
    with pytest.raises(ModelError, match="became shorter"):
        write_shard(tmp_path / "target", {"a": tensor}, {}, lambda _: None)


def test_an_old_checkpoint_is_replaced_only_when_told_to(dense, tmp_path):
    cut_checkpoint(dense, tmp_path / "out", [1])
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="not empty"):
        cut_checkpoint(dense, tmp_path / "out", [1, 2])
    assert tree(tmp_path) == before
    cut_checkpoint(dense, tmp_path / "out", [1, 2], overwrite=True)
    assert config_of(tmp_path / "out")["num_hidden_layers"] == 4


@pytest.mark.parametrize("target", ["dense", "dense/../dense", "link", "."])
def test_the_source_is_never_replaced(dense, tmp_path, target):
    (tmp_path / "link").symlink_to(dense)
    (tmp_path / "config.json").write_text("{}")  # so that the parent looks like a checkpoint
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="itself"):
        cut_checkpoint(dense, tmp_path / target, [1], overwrite=True)
    assert tree(tmp_path) == before


def test_a_target_inside_the_source_is_not_copied_into_itself(dense):
    report = cut_checkpoint(dense, dense / "cut", [1])
    assert (report.left, "cut" in report.copied) == ((), False)
    assert config_of(dense / "cut")["num_hidden_layers"] == 5


# ---- what to drop -------------------------------------------------------------------------------------------------------


def test_a_plan_equals_its_layers(tiny_checkpoint, tmp_path):
    plan = PruningPlan(num_layers=6, order=(4, 1))
    assert cut_checkpoint(tiny_checkpoint, tmp_path / "plan", plan).dropped == (1, 4)
    cut_checkpoint(tiny_checkpoint, tmp_path / "layers", [4, 1, 4])
    beside = tree(tmp_path / "plan")
    assert PruningPlan.load(tmp_path / "plan" / "secateur" / "plan.json") == plan
    assert {name: raw for name, raw in beside.items() if not name.startswith("secateur")} == tree(tmp_path / "layers")


@pytest.mark.parametrize("dropped", [[], [6], [-1], [0, 9], range(6), range(7)], ids=str)
def test_an_impossible_cut_is_refused(dense, dropped):
    expect_refusal(PlanError, "layer", dense, dropped)


def test_a_plan_for_another_depth_is_refused(dense):
    expect_refusal(PlanError, "plan is for a model of 8 layers.*has 6", dense, PruningPlan(num_layers=8, order=(1,)))


def test_a_plan_that_merges_by_more_than_weights_is_refused_with_what_can_be_done(dense):
    plan = PruningPlan(num_layers=6, order=(2, 3), merges={3: 1}, method="gradpruner")
    words = "merges layer 3 by gradpruner, and has no file with the entries.*prune, or .*--layers 2,3"
    expect_refusal(PlanError, words, dense, plan)


@pytest.mark.parametrize("size", ["5 apples", "", "nanGB", "-1GB", 0, -5, None, 2.5], ids=repr)
def test_a_size_that_is_none_is_refused(dense, size):
    expect_refusal(RequestError, "5GB", dense, max_shard_size=size)


def test_a_broken_period_is_refused(tmp_path):
    jamba = save(build("jamba"), tmp_path / "dense")
    expect_refusal(UnsupportedModelError, "attn_layer_period=3", jamba, dropped=(2, 3))


def test_layers_that_are_built_from_their_number_are_refused(tmp_path):
    source = save(build_any("diffllama"), tmp_path / "dense")
    expect_refusal(UnsupportedModelError, "layer 2 would not be read again as it is: its self_attn.lambda_init", source)


# ---- checkpoints that do not fit their configuration --------------------------------------------------------------------


def test_a_weight_that_is_missing_is_refused(dense):
    lost = "model.layers.3.mlp.up_proj.weight"
    rename(dense, lambda weights: {name: value for name, value in weights.items() if name != lost})
    expect_refusal(ModelError, rf"lacks 1 .*'{lost}'", dense)


def test_a_layer_that_is_missing_is_refused(dense):
    rename(dense, lambda weights: {name: value for name, value in weights.items() if ".layers.3." not in name})
    expect_refusal(UnsupportedModelError, "no tensors of layer 3 under 'model.layers'", dense)


def test_a_layer_more_than_the_configuration_says_is_refused(dense):
    """As in DeepSeek-V3, whose multi-token prediction is stored as a layer after the last."""
    rename(dense, lambda weights: weights | {"model.layers.6.eh_proj.weight": torch.ones(2, 2)})
    expect_refusal(UnsupportedModelError, "layer 6 under 'model.layers'.*6 layers", dense)


@pytest.mark.parametrize("name", ["model.layers.scale", "model.layers.03.scale", "model.layers.3", "model.layers.x.y"])
def test_a_tensor_among_the_layers_that_is_of_none_is_refused(dense, name):
    rename(dense, lambda weights: weights | {name: torch.ones(2)})
    expect_refusal(UnsupportedModelError, "is of none", dense)


def test_tensors_without_layers_are_refused(dense):
    rename(dense, lambda weights: {"model.norm.weight": weights["model.norm.weight"]})
    expect_refusal(UnsupportedModelError, "number layers", dense)


def test_weights_of_another_size_than_the_configuration_says_are_refused(dense):
    change_config(dense, intermediate_size=96)
    expect_refusal(ModelError, r"'model.layers.0.mlp.down_proj.weight' in the shape \[32, 64\].*\[32, 96\]", dense)


@pytest.mark.parametrize("added", ["weight_scale", "weight.absmax"])
def test_a_tensor_over_all_layers_in_another_form_is_refused(added, tmp_path):
    source = save(build_any("gemma4_text"), tmp_path / "dense")
    name = f"model.per_layer_model_projection.{added}"
    rename(source, lambda weights: weights | {name: torch.ones(48)})
    expect_refusal(UnsupportedModelError, "in another form; prune the loaded model instead", source, [0])


@pytest.mark.parametrize("family", ["gemma3n_text", "gemma4_text", "gemma4_unified_text"])
@pytest.mark.parametrize(
    ("dropped", "words"), [([2], "layer 0 .*hand its keys and values"), ([0, 2, 3], "drop other layers")], ids=str
)
def test_layers_whose_keys_and_values_others_read_are_refused(family, dropped, words, tmp_path):
    if family == "gemma3n_text":
        skip_before("5.23")
    expect_refusal(SecateurError, words, save(build_any(family), tmp_path / "dense"), dropped)


def test_a_configuration_that_was_cut_wrongly_is_seen_from_the_tensors(tmp_path, monkeypatch):
    """Found, then verified: without its first layer, DeepSeek has one dense layer fewer before the experts begin."""

    def forgetful(config, dropped):
        config.num_hidden_layers -= len(dropped)

    source = save(build("deepseek_v3"), tmp_path / "dense")
    monkeypatch.setattr("secateur.surgery.layout.remove_layers_from_config_", forgetful)
    expect_refusal(UnsupportedModelError, r"shorter model lacks 'model.layers.1.mlp", source, [0])


def test_a_second_list_with_a_part_for_each_layer_is_refused(dense, monkeypatch):
    plain = LlamaModel.__init__

    def with_parts(self, config):
        plain(self, config)
        self.parts = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(config.num_hidden_layers))

    parts = {f"model.parts.{layer}.weight": torch.ones(2, 2) for layer in range(6)}
    parts |= {f"model.parts.{layer}.bias": torch.ones(2) for layer in range(6)}
    rename(dense, lambda weights: weights | parts)
    monkeypatch.setattr(LlamaModel, "__init__", with_parts)
    expect_refusal(UnsupportedModelError, r"2 lists with one module a layer \(model.layers, model.parts\)", dense)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("bert", {"architectures": ["BertForMaskedLM"]}),
        ("t5", {"is_encoder_decoder": True}),
        ("vit", {}),
    ],
)
def test_models_that_generate_no_text_are_refused(dense, family, fields):
    change_config(dense, model_type=family, **fields)
    expect_refusal(ModelError, "generates text|cannot build", dense)


def test_code_of_a_stranger_is_not_run_unasked(dense):
    (dense / "modeling_evil.py").write_text("raise SystemExit('it was run')")
    (dense / "configuration_evil.py").write_text("raise SystemExit('it was run')")
    map_ = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    change_config(dense, model_type="evil", auto_map=map_)
    expect_refusal(ModelError, "trust_remote_code", dense)


def test_code_that_comes_with_the_model_is_run_when_trusted_and_copied(dense, tmp_path, monkeypatch):
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (dense / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    change_config(
        dense, model_type="own", auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    )
    report = cut_checkpoint(dense, tmp_path / "out", [1], trust_remote_code=True)
    assert "own.py" in report.copied
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert (type(again).__name__, len(again.model.layers)) == ("OwnModel", 5)


def test_code_in_a_folder_runs_from_the_cut_checkpoint(dense, tmp_path, monkeypatch):
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (dense / "code").mkdir()
    (dense / "code" / "own.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .settings import OwnConfig\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    (dense / "code" / "settings.py").write_text(
        "from transformers import LlamaConfig\nclass OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    map_ = {"AutoConfig": "code/settings.OwnConfig", "AutoModelForCausalLM": "code/own.OwnModel"}
    change_config(dense, model_type="own", auto_map=map_)
    cut_checkpoint(dense, tmp_path / "out", [1], trust_remote_code=True)
    shutil.rmtree(dense)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert (type(again).__name__, len(again.model.layers)) == ("OwnModel", 5)


# ---- hostile files ------------------------------------------------------------------------------------------------------


def header_of(directory):
    raw = (directory / WEIGHTS).read_bytes()
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8:end]), raw[end:]


def with_entry(**fields):
    """Damage that changes the entry of one tensor."""

    def damage(directory):
        header, data = header_of(directory)
        name = next(name for name in header if name.endswith("up_proj.weight"))
        header[name] |= {key: change(header[name][key]) for key, change in fields.items()}
        write_header(directory / WEIGHTS, json.dumps(header).encode(), data)

    return damage


def with_header(change):
    """Damage that changes the header's JSON text."""

    def damage(directory):
        header, data = header_of(directory)
        write_header(directory / WEIGHTS, change(json.dumps(header)).encode("utf-8", "surrogatepass"), data)

    return damage


def cut_off(count):
    def damage(directory):
        raw = (directory / WEIGHTS).read_bytes()
        (directory / WEIGHTS).write_bytes(raw[:count])

    return damage


def longer(directory):
    with (directory / WEIGHTS).open("ab") as file:
        file.write(b"hidden")


def as_long_as(length):
    def damage(directory):
        header, data = header_of(directory)
        write_header(directory / WEIGHTS, json.dumps(header).encode(), data, length=length)

    return damage


def over_the_limit(directory):
    with (directory / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{")
        file.truncate(100_000_009)  # no bytes on the disk


def in_a_circle(name):
    def damage(directory):
        (directory / name).unlink()
        (directory / name).symlink_to(name)

    return damage


def a_pipe(directory):
    (directory / WEIGHTS).unlink()
    os.mkfifo(directory / WEIGHTS)


def without(name):
    return lambda directory: (directory / name).unlink()


def configured(**fields):
    return lambda directory: change_config(directory, **fields)


def text_in(name, text):
    return lambda directory: (directory / name).write_bytes(text.encode() if isinstance(text, str) else text)


HOSTILE = {
    "overlap": (with_entry(data_offsets=lambda at: [at[0] - 64, at[1] - 64]), "overlaps|does not follow"),
    "hole": (with_entry(data_offsets=lambda at: [at[0] + 4, at[1] + 4]), "does not follow|overlaps"),
    "beyond the end": (with_entry(data_offsets=lambda at: [at[0] + 2**40, at[1] + 2**40]), "does not follow|cut short"),
    "before the start": (with_entry(data_offsets=lambda at: [-8, at[1] - at[0] - 8]), "impossible"),
    "backwards": (with_entry(data_offsets=lambda at: at[::-1]), "bytes"),
    "three offsets": (with_entry(data_offsets=lambda at: [*at, 1]), "not one of a tensor"),
    "offsets not whole": (with_entry(data_offsets=lambda at: [float(each) for each in at]), "impossible"),
    "offset of a thousand digits": (with_entry(data_offsets=lambda at: [at[0], 10**1000]), "impossible"),
    "offset of ten thousand digits": (with_header(lambda t: t.replace("[0,", f"[{'9' * 10000},", 1)), "no JSON"),
    "shape too large": (with_entry(shape=lambda shape: [10**9, *shape]), "which is not F32"),
    "shape overflows": (with_entry(shape=lambda shape: [2**62] * 60), "which is not F32"),
    "shape of many dimensions": (with_entry(shape=lambda shape: [1] * 5000), "impossible"),
    "shape negative": (with_entry(shape=lambda shape: [-each for each in shape]), "impossible"),
    "shape of truths": (with_entry(shape=lambda shape: [True, *shape]), "impossible"),
    "shape a word": (with_entry(shape=lambda shape: ""), "impossible"),
    "shape none": (with_entry(shape=lambda shape: None), "impossible"),
    "dtype wrong": (with_entry(dtype=lambda _: "F64"), "which is not F64"),
    "dtype unknown": (with_entry(dtype=lambda _: "F3_E1\nM1"), "unknown dtype"),
    "dtype a list": (with_entry(dtype=lambda _: ["F32"]), "unknown dtype"),
    "entry without shape": (with_header(lambda text: text.replace('"shape"', '"shap"', 1)), "not one of a tensor"),
    "name twice": (
        with_header(lambda text: text.replace('"model.norm.weight"', '"model.embed_tokens.weight"')),
        "names 'model.embed_tokens.weight' twice",
    ),
    "name no text": (with_header(lambda text: text.replace("model.norm", "\\ud800", 1)), "not one of a tensor"),
    "metadata no words": (with_header(lambda text: text.replace('"pt"', "[1]", 1)), "metadata"),
    "header a list": (with_header(lambda text: f"[{text}]"), "not a JSON object"),
    "header a word": (with_header(lambda text: '"' + "x" * (len(text) - 2) + '"'), "not a JSON object"),
    "header not closed": (with_header(lambda text: text[:-1]), "no JSON"),
    "header too deep": (with_header(lambda text: "[" * 200_000), "no JSON"),
    "header not UTF-8": (with_header(lambda text: text.replace("norm", "\udcff", 1)), "no JSON"),
    "header longer than the file": (as_long_as(2**40), "header is 1099511627776 bytes long"),
    "header as long as can be": (as_long_as(2**64 - 1), "header is 18446744073709551615 bytes long"),
    "header empty": (as_long_as(0), "no JSON"),
    "header over 100 MB": (over_the_limit, "header is 100000001 bytes long"),
    "weights empty": (cut_off(0), "is damaged"),
    "weights of five bytes": (cut_off(5), "is damaged"),
    "weights without data": (cut_off(4000), "is damaged"),
    "weights cut short": (cut_off(-1), "cut short"),
    "weights longer": (longer, "longer"),
    "weights missing": (without(WEIGHTS), "neither model.safetensors nor"),
    "weights a link in a circle": (in_a_circle(WEIGHTS), "cannot read .*symbolic links"),
    "weights a pipe": (a_pipe, "not a file"),
    "tokenizer a link in a circle": (in_a_circle("tokenizer.json"), "cannot read .*symbolic links"),
    "configuration a link in a circle": (in_a_circle("config.json"), "cannot read .*symbolic links"),
    "configuration missing": (without("config.json"), "cannot read .*config.json"),
    "configuration empty": (text_in("config.json", ""), "no JSON"),
    "configuration a list": (text_in("config.json", "[]"), "not a configuration"),
    "configuration without a model": (text_in("config.json", "{}"), "cannot read .*config.json"),
    "configuration not UTF-8": (text_in("config.json", b'{"model_type": "\xff"}'), "no JSON"),
    "model unknown": (configured(model_type="no-such\nmodel"), "cannot read .*config.json"),
    "a thousand million layers": (configured(num_hidden_layers=10**9), "num_hidden_layers=1000000000"),
    "layers without end": (configured(num_hidden_layers=float("inf")), "num_hidden_layers=inf"),
    "lists for a thousand million layers": (
        configured(model_type="qwen2", num_hidden_layers=10**9, use_sliding_window=True),
        "num_hidden_layers=1000000000",
    ),
    "a thousand million layers inside": (
        configured(model_type="gemma3", text_config={"num_hidden_layers": 10**9}),
        "num_hidden_layers=1000000000",
    ),
    "a thousand million layers by another name": (configured(model_type="gpt2", n_layer=10**9), "n_layer=1000000000"),
    "a thousand million kinds of attention": (
        configured(model_type="gpt_neo", attention_types=[[["global"], 10**9]]),
        "attention_types=1000000000",
    ),
    "a thousand million experts": (configured(model_type="qwen2_moe", num_experts=10**9), "num_experts=1000000000"),
    "a thousand million positions": (
        configured(max_position_embeddings=10**9),
        "max_position_embeddings=1000000000, more than any model has",
    ),
    "primes up to there": (configured(ngram_vocab_size_base=10**18), "ngram_vocab_size_base=1000000000000000000"),
    "a thousand million labels": (configured(num_labels=10**9), "num_labels=1000000000"),
    "a thousand million channels": (configured(hidden_size=10**9), "the shape .* its configuration needs"),
    "a thousand million channels a head": (configured(head_dim=10**9), "the shape .* its configuration needs"),
    "a dtype that is none": (configured(dtype="float5"), "float5"),
    "layers a word": (configured(num_hidden_layers="six"), "config.json"),
    "layers a fraction": (configured(num_hidden_layers=6.5), "config.json"),
    "layers a truth": (configured(num_hidden_layers=True), "config.json"),
    "layers null": (configured(num_hidden_layers=None), "config.json"),
    "layers negative": (configured(num_hidden_layers=-6), "config.json"),
    "layers none": (configured(num_hidden_layers=0), "config.json"),
    "fewer layers than there are": (configured(num_hidden_layers=3), "layer 5 under 'model.layers'"),
    "more layers than there are": (configured(num_hidden_layers=700), "no tensors of layer 6"),
    "weights elsewhere": (configured(transformers_weights="../../etc/passwd"), "transformers_weights"),
    "an adapter beside": (text_in("adapter_config.json", "{}"), "adapter"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_checkpoint_is_one_line_without_allocating_and_nothing_is_written(case, dense):
    damage, words = HOSTILE[case]
    damage(dense)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    expect_refusal(ModelError, words, dense)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kilobytes"


def reindexed(change):
    """Damage that changes the index."""

    def damage(directory):
        index = json.loads((directory / INDEX).read_text())
        change(index)
        (directory / INDEX).write_text(json.dumps(index))

    return damage


def placed(file):
    return reindexed(lambda index: index["weight_map"].update({"model.norm.weight": file}))


def first_shard(directory):
    return min(directory.glob("*.safetensors"))


def same_tensor_in_two(directory):
    first, second = sorted(directory.glob("*.safetensors"))[:2]
    save_file(load_file(second) | {next(iter(load_file(first))): torch.ones(1)}, second, metadata={"format": "pt"})


HOSTILE_SHARDS = {
    "a file above": (placed("../../x.safetensors"), "'../../x.safetensors'"),
    "a file elsewhere": (placed("/etc/passwd.safetensors"), "'/etc/passwd.safetensors'"),
    "a file in a folder": (placed("a/b.safetensors"), "'a/b.safetensors'"),
    "a file of Windows": (placed("..\\x.safetensors"), "x.safetensors"),
    "a file with a zero": (placed("x\0.safetensors"), "x00.safetensors"),
    "a file with a line break": (placed("x\n.safetensors"), "safetensors"),
    "a pickle": (placed("pytorch_model.bin"), "'pytorch_model.bin'"),
    "a number for a file": (placed(7), "names the file 7"),
    "no file": (placed(""), "names the file ''"),
    "a file that is missing": (placed("model-00009-of-00009.safetensors"), "cannot read"),
    "a shard that is missing": (lambda directory: first_shard(directory).unlink(), "cannot read"),
    "a shard cut short": (lambda d: first_shard(d).write_bytes(first_shard(d).read_bytes()[:-9]), "cut short"),
    "a shard in a circle": (lambda directory: in_a_circle(first_shard(directory).name)(directory), "symbolic links"),
    "a tensor in another shard": (
        lambda directory: placed(first_shard(directory).name)(directory),
        "lacks the tensor 'model.norm.weight' in model-00001",
    ),
    "a tensor that is missing": (
        lambda d: reindexed(lambda index: index["weight_map"].update({"more": first_shard(d).name}))(d),
        "lacks the tensor 'more'",
    ),
    "a tensor in two shards": (same_tensor_in_two, "twice, in model-00001.* and model-00002"),
    "no map": (reindexed(lambda index: index.pop("weight_map")), "no weight_map"),
    "an empty map": (reindexed(lambda index: index["weight_map"].clear()), "no weight_map"),
    "an index that is a list": (text_in(INDEX, "[]"), "no weight_map"),
    "an index that is none": (text_in(INDEX, "no"), "no JSON"),
    "a name twice in the index": (text_in(INDEX, '{"weight_map": {"a": "x", "a": "y"}}'), "names 'a' twice"),
    "an index in a circle": (in_a_circle(INDEX), "symbolic links"),
}


@pytest.mark.parametrize("case", HOSTILE_SHARDS)
def test_hostile_shards_are_one_line_and_nothing_is_written(case, sharded):
    damage, words = HOSTILE_SHARDS[case]
    damage(sharded)
    expect_refusal(ModelError, words, sharded)


@pytest.mark.parametrize("source", ["nowhere", "file", "circle"])
def test_a_source_that_is_no_directory_is_refused(tmp_path, source):
    (tmp_path / "file").write_text("x")
    (tmp_path / "circle").symlink_to("circle")
    words = "it is a file" if source == "file" else "no such directory"
    expect_refusal(ModelError, words, tmp_path / source)


# ---- whatever bytes come ------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(st.integers(-2, 40), st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=3))
ENTRIES = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.one_of(st.sampled_from([*BITS, "F3"]), NUMBERS),
            "shape": st.one_of(st.lists(NUMBERS, max_size=4), NUMBERS),
            "data_offsets": st.one_of(st.lists(NUMBERS, max_size=3), NUMBERS),
        }
    ),
    st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), NUMBERS),
    NUMBERS,
)
HEADERS = st.one_of(
    st.dictionaries(st.one_of(st.text(), st.just("__metadata__")), ENTRIES).map(
        lambda value: json.dumps(value).encode()
    ),
    st.binary(),
)
PLAUSIBLE = st.dictionaries(
    st.text(max_size=5),
    st.tuples(st.sampled_from(["U8", "F32", "BF16", "F4"]), st.lists(st.integers(0, 6), max_size=3)),
)


def one_line_or(action):
    """What the action gives; None if it raises one of our errors, which then is one line."""
    try:
        return action()
    except SecateurError as error:
        message = str(error)
    assert "\n" not in message
    return None


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(header=HEADERS, data=st.binary(max_size=40), wrong=st.integers(-3, 3))
def test_no_header_gives_anything_but_tensors_inside_the_file_or_one_line(tmp_path_factory, header, data, wrong):
    path = tmp_path_factory.mktemp("fuzz") / WEIGHTS
    write_header(path, header, data, length=max(0, len(header) + wrong))
    tensors = one_line_or(lambda: read_header(path)[0]) or {}
    assert sum(tensor.num_bytes for tensor in tensors.values()) <= path.stat().st_size
    assert all(0 <= t.start <= t.start + t.num_bytes <= path.stat().st_size for t in tensors.values())


@FUZZ
@given(wanted=PLAUSIBLE, seed=st.randoms(use_true_random=False))
def test_what_is_written_is_what_was_read(tmp_path_factory, wanted, seed):
    """And the library of the format agrees."""
    from safetensors import safe_open

    tensors = {}
    for name, (dtype, shape) in wanted.items():
        bits = BITS[dtype]
        for size in shape:
            bits *= size
        if bits % 8 == 0 and name.isprintable():
            tensors[name] = (dtype, shape, seed.randbytes(bits // 8))
    folder = tmp_path_factory.mktemp("fuzz")
    write_raw(folder / "source.safetensors", tensors)
    write_shard(folder / WEIGHTS, read_header(folder / "source.safetensors")[0], {}, lambda _: None)
    (folder / "source.safetensors").unlink()
    assert stored(folder) == {name: (dtype, list(shape), raw) for name, (dtype, shape, raw) in tensors.items()}
    with safe_open(folder / WEIGHTS, "pt") as file:
        assert set(file.keys()) == set(tensors)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 6000), value=st.binary(min_size=1, max_size=6))
def test_changed_bytes_in_a_header_never_end_in_anything_but_a_cut_or_one_line(
    tiny_checkpoint, tmp_path_factory, place, value
):
    root = tmp_path_factory.mktemp("fuzz")
    dense = Path(shutil.copytree(tiny_checkpoint, root / "dense"))
    raw = bytearray((dense / WEIGHTS).read_bytes())
    raw[place : place + len(value)] = value
    (dense / WEIGHTS).write_bytes(raw)
    if one_line_or(lambda: cut_checkpoint(dense, root / "out", [1])) is None:
        assert [path.name for path in root.iterdir()] == ["dense"]


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 9), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=7), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=8,
)
FIELDS = [
    "model_type", "architectures", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rope_parameters", "rope_theta", "layer_types",
    "max_window_layers", "sliding_window", "use_sliding_window", "dtype", "pad_token_id", "tie_word_embeddings", "hidden_act",
    "quantization_config", "auto_map", "text_config", "transformers_weights", "is_encoder_decoder", "num_labels",
    "rms_norm_eps", "attention_bias", "id2label", "per_layer_config",
]  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=3))
@example(fields={"model_type": [], "auto_map": True})
def test_no_configuration_ends_in_anything_but_a_cut_or_one_line(tmp_path_factory, tiny_checkpoint, fields):
    root = tmp_path_factory.mktemp("fuzz")
    dense = Path(shutil.copytree(tiny_checkpoint, root / "dense"))
    change_config(dense, **fields)
    if one_line_or(lambda: cut_checkpoint(dense, root / "out", [1])) is None:
        assert [path.name for path in root.iterdir()] == ["dense"]
