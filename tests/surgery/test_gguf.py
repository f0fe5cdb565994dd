import errno
import json
import os
import struct
import sys
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from secateur.cli import main
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
from secateur.plan import PruningPlan
from secateur.progress import Silent
from secateur.surgery.checkpoint import bypassed_logits
from secateur.surgery.gguf_files import cut_gguf
from secateur.surgery.gguf_header import read_gguf
from tiny_gguf import HIDDEN, LAYERS, write_gguf

DROPPED = [1, 2, 4]
KEPT = [0, 3, 5]


def tree(directory):
    """Every file below, with its content."""
    return {path.name: path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


class Failing(Silent):
    """A progress that fails at the fifth step."""

    def __init__(self, error):
        self.error = error

    @contextmanager
    def track(self, description, total):
        done = []

        def advance(count):
            done.append(count)
            if len(done) == 5:
                raise self.error

        yield advance


@pytest.fixture
def dense(tmp_path):
    return write_gguf(tmp_path / "dense.gguf")


def loaded(path):
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


# ---- what the cut file is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_1], ids=lambda kind: kind.name
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_logits_of_the_cut_file_equal_those_of_the_dense_file_with_the_layers_bypassed(tmp_path, kind):
    dense = write_gguf(tmp_path / "dense.gguf", kind=kind)
    cut_gguf(dense, tmp_path / "cut.gguf", DROPPED)
    ids = torch.arange(40).reshape(2, 20)
    expected = bypassed_logits(Decoder(loaded(dense)), DROPPED, ids)
    cut = loaded(tmp_path / "cut.gguf")
    assert cut.config.num_hidden_layers == len(KEPT)
    assert torch.equal(bypassed_logits(Decoder(cut), (), ids), expected)
    assert not torch.allclose(bypassed_logits(Decoder(loaded(dense)), (), ids), expected, atol=0.1)


PER_LAYER = {
    "attention.sliding_window_pattern": ([True, False, True, True, False, False], GGUFValueType.BOOL),
    "attention.head_count_kv_of": ([2, 4, 2, 1, 8, 2], GGUFValueType.INT32),
    "feed_forward_length_of": ([10, 20, 30, 40, 50, 2**40], GGUFValueType.UINT64),
    "xielu.alpha": ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], GGUFValueType.FLOAT32),
    "layer_types": (["full", "sliding ✂", "", "full", "linear" * 9, "last"], GGUFValueType.STRING),
    **{
        f"of_{kind.name.lower()}": ([3, 1, 4, 1, 5, 9], kind)
        for kind in GGUFValueType
        if kind not in (GGUFValueType.STRING, GGUFValueType.ARRAY)
    },
}


@pytest.mark.parametrize("alignment", [32, 64, 8])
@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q4_0], ids=lambda kind: kind.name)
def test_the_cut_file_is_byte_for_byte_what_ggufs_own_writer_makes_of_the_kept_layers(tmp_path, kind, alignment):
    about = {"kind": kind, "arrays": PER_LAYER, "alignment": alignment, "more": ["odd.weight", "last.weight"]}
    dense = write_gguf(tmp_path / "dense.gguf", **about)
    cut_gguf(dense, tmp_path / "cut.gguf", DROPPED)
    expected = write_gguf(tmp_path / "expected.gguf", KEPT, **about)
    assert (tmp_path / "cut.gguf").read_bytes() == expected.read_bytes()


def test_blocks_of_types_that_nobody_here_can_decode_are_copied(tmp_path):
    rng = np.random.default_rng(0)
    blocks = {}
    writer = GGUFWriter(tmp_path / "dense.gguf", "qwen2")
    writer.add_block_count(LAYERS)
    for block in range(LAYERS):
        for kind in (Kind.Q4_K, Kind.Q6_K, Kind.IQ2_XXS, Kind.TQ1_0):
            width = gguf.GGML_QUANT_SIZES[kind][1]
            raw = rng.integers(0, 256, (3, 2 * width), dtype=np.uint8)
            blocks[f"blk.{block}.{kind.name}.weight"] = raw.tobytes()
            writer.add_tensor(f"blk.{block}.{kind.name}.weight", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    cut_gguf(tmp_path / "dense.gguf", tmp_path / "cut.gguf", [0, 5])
    found = {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(tmp_path / "cut.gguf").tensors}
    expected = {}
    for name, raw in blocks.items():
        _, number, rest = name.split(".", 2)
        if number not in "05":
            expected[f"blk.{int(number) - 1}.{rest}"] = raw
    assert found == expected


def test_a_file_of_version_2_stays_one(tmp_path, dense):
    raw = bytearray(dense.read_bytes())
    raw[4] = 2
    dense.write_bytes(raw)
    cut_gguf(dense, tmp_path / "cut.gguf", DROPPED)
    expected = bytearray(write_gguf(tmp_path / "expected.gguf", KEPT).read_bytes())
    expected[4] = 2
    assert (tmp_path / "cut.gguf").read_bytes() == expected


def test_a_file_joined_from_parts_goes_on_counting_its_tensors(tmp_path):
    dense = write_gguf(tmp_path / "dense.gguf", arch="llama", split=(0, 3 + 9 * LAYERS))
    cut_gguf(dense, tmp_path / "cut.gguf", DROPPED)
    found = fields(tmp_path / "cut.gguf")
    assert (found["split.count"], found["split.tensors.count"]) == (0, 3 + 9 * 3)


def test_the_last_tensor_need_not_be_padded(tmp_path):
    dense = write_gguf(tmp_path / "dense.gguf", more=["odd.weight"])
    expected = write_gguf(tmp_path / "expected.gguf", KEPT, more=["odd.weight"])
    os.truncate(dense, dense.stat().st_size - 12)
    cut_gguf(dense, tmp_path / "cut.gguf", DROPPED)
    assert (tmp_path / "cut.gguf").read_bytes() == expected.read_bytes()


def test_the_report_says_what_went_and_a_dry_run_writes_nothing(tmp_path, dense):
    before = tree(tmp_path)
    report = cut_gguf(dense, tmp_path / "cut.gguf", DROPPED, dry_run=True)
    assert tree(tmp_path) == before
    assert report == cut_gguf(dense, tmp_path / "cut.gguf", DROPPED)
    assert (report.dropped, report.num_layers, report.num_tensors) == ((1, 2, 4), LAYERS, 3 + 9 * 3)
    sizes = [sum(tensor.n_bytes for tensor in GGUFReader(path).tensors) for path in (dense, tmp_path / "cut.gguf")]
    assert (report.num_bytes, report.removed_bytes) == (sizes[1], sizes[0] - sizes[1])


def test_the_memory_does_not_grow_with_the_tensors(tmp_path):
    writer = GGUFWriter(tmp_path / "dense.gguf", "llama")
    writer.add_block_count(2)
    for block in range(2):
        writer.add_tensor_info(f"blk.{block}.w", (2**24,), np.dtype(np.float32), 2**26)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    size = -(-(tmp_path / "dense.gguf").stat().st_size // 32) * 32 + 2 * 2**26
    os.truncate(tmp_path / "dense.gguf", size)
    tracemalloc.start()
    try:
        cut_gguf(tmp_path / "dense.gguf", tmp_path / "cut.gguf", [0])
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert (tmp_path / "cut.gguf").stat().st_size > 2**26


# ---- what the metadata says of layers -----------------------------------------------------------------------------------


def fields(path):
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def cut(tmp_path, dropped, **about):
    dense = write_gguf(tmp_path / "dense.gguf", **about)
    cut_gguf(dense, tmp_path / "cut.gguf", dropped)
    return fields(tmp_path / "cut.gguf")


@pytest.mark.parametrize(("dropped", "expected"), [([0], 1), ([0, 1], 0), ([4, 5], 2), ([1, 3], 1)])
def test_the_number_of_leading_dense_blocks_counts_those_that_stay(tmp_path, dropped, expected):
    about = {"arch": "deepseek", "numbers": {"leading_dense_block_count": 2}}
    assert cut(tmp_path, dropped, **about)["deepseek.leading_dense_block_count"] == expected


def test_blocks_that_predict_further_tokens_stay_behind_the_layers_with_their_items_of_each_array(tmp_path):
    dense = write_gguf(
        tmp_path / "dense.gguf",
        arch="glm4moe",
        numbers={"nextn_predict_layers": 1},
        arrays={"feed_forward_length_of": ([10, 20, 30, 40, 50, 60], GGUFValueType.INT32)},
    )
    report = cut_gguf(dense, tmp_path / "cut.gguf", [1, 4])
    found = fields(tmp_path / "cut.gguf")
    assert report.num_layers == 5
    assert (found["glm4moe.block_count"], found["glm4moe.nextn_predict_layers"]) == (4, 1)
    assert found["glm4moe.feed_forward_length_of"] == [10, 30, 40, 60]
    by_name = [{each.name: each.data.tobytes() for each in GGUFReader(path).tensors} for path in (dense, report.target)]
    assert by_name[1]["blk.3.attn_q.weight"] == by_name[0]["blk.5.attn_q.weight"]
    with pytest.raises(PlanError, match=r"no layer 5; its layers are 0\.\.4"):
        cut_gguf(dense, tmp_path / "other.gguf", [5])


@pytest.mark.parametrize(
    ("arch", "numbers", "dropped"),
    [
        ("llama", {"full_attention_interval": 3}, [0, 1, 2]),
        ("llama", {"interleave_moe_layer_step": 2}, [2, 3]),
        ("llama", {"interleave_moe_layer_step": 1}, [2]),
        ("llama", {"attention.sliding_window_pattern": 2}, [4, 5]),
        ("qwen3vl", {"n_deepstack_layers": 3}, [3, 4]),
        ("llama", {"attention.shared_kv_layers": 0}, [2]),
        ("smollm3", {}, [1, 2, 3, 4]),
        ("gemma2", {}, [0, 1]),
        ("gemma3", {"attention.sliding_window": 512}, [4, 5]),
        ("olmo2", {}, [1]),
    ],
)
def test_numbers_that_remain_true_of_the_kept_layers_stay(tmp_path, arch, numbers, dropped):
    found = cut(tmp_path, dropped, arch=arch, numbers=numbers)
    assert {name: found[f"{arch}.{name}"] for name in numbers} == numbers


@pytest.mark.parametrize(
    ("arch", "numbers", "reason"),
    [
        ("llama", {"full_attention_interval": 3}, "llama.full_attention_interval' = 3.*whole periods of 3"),
        ("llama", {"interleave_moe_layer_step": 2}, "interleave_moe_layer_step' = 2"),
        ("llama", {"attention.sliding_window_pattern": 2}, "sliding_window_pattern' = 2"),
        ("qwen3vl", {"n_deepstack_layers": 3}, "the first 3 layers must stay"),
        ("llama", {"attention.shared_kv_layers": 2}, "shared_kv_layers' = 2 speaks of layers"),
        ("llama", {"embedding_length_per_layer_input": 256}, "per_layer_input' = 256 speaks of layers"),
        ("llama", {"rescale_every_n_layers": 6}, "rescale_every_n_layers' = 6 speaks of layers"),
        ("llama", {"two\nlayers": 2}, "layers' = 2 speaks of layers"),
        ("smollm3", {}, "treats one layer in 4 of smollm3 in another way"),
        ("gpt-oss", {"attention.sliding_window": 128}, "treats one layer in 2 of gpt-oss in another way"),
        ("olmo2", {"attention.sliding_window": 4096}, "treats one layer in 4 of olmo2 in another way"),
        ("baichuan", {}, "one of 5 for another than one of 6"),
        ("minicpm", {}, "by the number of layers"),
        ("gemma3n", {}, "'gemma3n', whose layers"),
        ("from-the-future", {}, "'from-the-future', whose layers"),
    ],
)
def test_what_cannot_be_said_of_the_kept_layers_is_refused(tmp_path, arch, numbers, reason):
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        cut(tmp_path, [2], arch=arch, numbers=numbers)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cut.gguf").exists()


def test_a_listed_sliding_window_overrules_the_period_that_llama_cpp_assumes(tmp_path):
    pattern = {"attention.sliding_window_pattern": ([True, True, True, True, True, False], GGUFValueType.BOOL)}
    found = cut(tmp_path, [2], arch="gemma3", numbers={"attention.sliding_window": 512}, arrays=pattern)
    assert found["gemma3.attention.sliding_window_pattern"] == [True] * 4 + [False]


@pytest.mark.parametrize(
    ("arch", "count", "left", "fits"),
    [
        ("command-r", 64, 63, False),
        ("command-r", 63, 62, True),
        ("deepseek2", 27, 20, False),
        ("deepseek2", 61, 60, True),
    ],
)
def test_a_count_of_layers_by_which_llama_cpp_tells_models_apart_is_not_crossed(tmp_path, arch, count, left, fits):
    writer = GGUFWriter(tmp_path / "dense.gguf", arch)
    writer.add_block_count(count)
    for block in range(count):
        writer.add_tensor(f"blk.{block}.w", np.ones(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if fits:
        assert cut_gguf(tmp_path / "dense.gguf", tmp_path / "cut.gguf", range(left, count)).num_tensors == left
        return
    with pytest.raises(UnsupportedModelError, match="by the number of layers"):
        cut_gguf(tmp_path / "dense.gguf", tmp_path / "cut.gguf", range(left, count))


def test_an_array_of_another_length_is_refused_and_the_sections_of_rotary_positions_are_no_layers(tmp_path):
    def with_array(name):
        path = tmp_path / f"{name}.gguf"
        writer = GGUFWriter(path, "qwen2vl")
        writer.add_block_count(4)
        writer.add_key_value(f"qwen2vl.{name}", [1, 2, 3, 4][: 3 if name == "odd" else 4], GGUFValueType.ARRAY)
        for block in range(4):
            writer.add_tensor(f"blk.{block}.w", np.ones(8, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    cut_gguf(with_array("rope.dimension_sections"), tmp_path / "cut.gguf", [0])
    assert fields(tmp_path / "cut.gguf")["qwen2vl.rope.dimension_sections"] == [1, 2, 3, 4]
    with pytest.raises(UnsupportedModelError, match=r"qwen2vl.odd' has 3 items"):
        cut_gguf(with_array("odd"), tmp_path / "other.gguf", [0])


def test_arrays_under_another_name_than_the_architectures_are_cut_and_those_of_no_layers_stay(tmp_path):
    """xIELU's parameters, one for each layer, stand under `xielu.`; labels and tags may happen to be as many."""
    per_layer = {"xielu.alpha_p": [0.5, 1.5, 2.5, 3.5], "more.kinds": ["a", "b", "c", "d"]}
    others = {
        "general.tags": ["e", "f", "g", "h"], "xielu.odd": [1.0, 2.0, 3.0], "tokenizer.ggml.scores": [1.0, 2.0, 3.0, 4.0],
        "apertus.classifier.output_labels": ["yes", "no", "maybe", "later"],
    }  # fmt: skip
    writer = GGUFWriter(tmp_path / "dense.gguf", "apertus")
    writer.add_block_count(4)
    for name, values in (per_layer | others).items():
        writer.add_array(name, values)
    for block in range(4):
        writer.add_tensor(f"blk.{block}.w", np.ones(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    cut_gguf(tmp_path / "dense.gguf", tmp_path / "cut.gguf", [0, 2])
    found = fields(tmp_path / "cut.gguf")
    assert {name: found[name] for name in per_layer} == {name: values[1::2] for name, values in per_layer.items()}
    assert {name: found[name] for name in others} == others


# ---- what is asked for --------------------------------------------------------------------------------------------------


def test_a_plan_is_carried_out_and_one_that_cannot_be_is_refused(tmp_path, dense):
    plan = PruningPlan(num_layers=LAYERS, order=(4, 1, 2))
    assert cut_gguf(dense, tmp_path / "cut.gguf", plan).dropped == (1, 2, 4)
    assert (tmp_path / "cut.gguf").read_bytes() == write_gguf(tmp_path / "expected.gguf", KEPT).read_bytes()
    for wrong, reason in (
        (PruningPlan(num_layers=7, order=(1,)), "for a model of 7 layers"),
        (PruningPlan(num_layers=LAYERS, order=(1,), merges={1: 0}), "merges layer 1"),
        ([6], "no layer 6"),
        ([], "cannot drop 0 of 6"),
        (range(LAYERS), "cannot drop 6 of 6"),
    ):
        with pytest.raises(PlanError, match=reason):
            cut_gguf(dense, tmp_path / "other.gguf", wrong)


def test_the_command_cuts_a_file_as_the_function_does(tmp_path, dense, capsys):
    PruningPlan(num_layers=LAYERS, order=(4, 1, 2)).save(tmp_path / "plan.json")
    assert main(["cut", str(dense), "--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "a.gguf")]) == 0
    assert "dropped layers 1, 2, 4 of 6" in capsys.readouterr().out
    words = ["cut", str(dense), "--layers", "1-2,4", "--out", str(tmp_path / "b.gguf"), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["num_tensors"] == 30
    expected = write_gguf(tmp_path / "expected.gguf", KEPT).read_bytes()
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes() == expected
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--max-shard-size", "1MB"]) == 2
    assert "no effect on a GGUF file" in capsys.readouterr().err


def test_only_a_gguf_file_is_replaced_and_never_the_source(tmp_path, dense):
    (tmp_path / "letter.gguf").write_text("dear reader")
    (tmp_path / "old.gguf").write_bytes(write_gguf(tmp_path / "x.gguf").read_bytes())
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "link.gguf").symlink_to(dense)
    before = tree(tmp_path)
    for name, reason in {
        "letter.gguf": "not a GGUF file, so it is not replaced",
        "folder.gguf": "no name for a GGUF file",
        "cut.bin": "no name for a GGUF file",
        "missing/cut.gguf": "a directory of yours that exists",
        "dense.gguf": "would replace",
        "link.gguf": "would replace",
    }.items():
        with pytest.raises(OutputError, match=reason):
            cut_gguf(dense, tmp_path / name, DROPPED, overwrite=True)
    assert tree(tmp_path) == before
    with pytest.raises(OutputError, match="--overwrite"):
        cut_gguf(dense, tmp_path / "old.gguf", DROPPED)
    cut_gguf(dense, tmp_path / "old.gguf", DROPPED, overwrite=True)
    assert (tmp_path / "old.gguf").read_bytes() == write_gguf(tmp_path / "expected.gguf", KEPT).read_bytes()


@pytest.mark.parametrize(
    ("error", "kind"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "No space left"), WriteError)]
)
def test_a_failure_half_way_leaves_what_was_there(tmp_path, dense, error, kind):
    before = tree(tmp_path)
    with pytest.raises(kind):
        cut_gguf(dense, tmp_path / "cut.gguf", DROPPED, progress=Failing(error))
    assert tree(tmp_path) == before


def test_without_the_package_gguf_the_remedy_is_named(tmp_path, dense, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(RequestError, match=r"pip install 'secateur\[gguf\]'"):
        cut_gguf(dense, tmp_path / "cut.gguf", DROPPED)


# ---- damaged and hostile files ------------------------------------------------------------------------------------------


def refused(dense, reason, kind=ModelError):
    """Cutting gives one line, and leaves nothing."""
    before = tree(dense.parent)
    with pytest.raises(kind, match=reason) as caught:
        cut_gguf(dense, dense.with_name("cut.gguf"), DROPPED)
    assert "\n" not in str(caught.value)
    assert tree(dense.parent) == before


def changed(dense, old, new):
    """Replace bytes of the file that occur once."""
    raw = dense.read_bytes()
    assert raw.count(old) == 1
    dense.write_bytes(raw.replace(old, new))


def word(text):
    return struct.pack("<Q", len(text)) + text.encode()


@pytest.mark.parametrize("size", [0, 3, 4, 20, 24, 100, 3000, -33, -4000])
def test_a_file_cut_short_anywhere_is_refused(dense, size):
    os.truncate(dense, size if size >= 0 else dense.stat().st_size + size)
    refused(dense, "is damaged|is not a GGUF file")


def test_a_longer_file_is_refused(dense):
    with dense.open("ab") as file:
        file.write(b"\0" * 32)
    refused(dense, "longer than that")


@pytest.mark.parametrize(
    ("place", "raw", "reason"),
    [
        (0, b"GGML", "is not a GGUF file"),
        (4, struct.pack("<I", 1), "version 1"),
        (4, struct.pack("<I", 99), "version 99"),
        (4, struct.pack(">I", 3), "big-endian"),
        (8, struct.pack("<Q", 2**62), "is damaged"),
        (8, struct.pack("<Q", 10), "is damaged"),
        (16, struct.pack("<Q", 2**62), "is damaged"),
        (24, struct.pack("<Q", 2**62), "a name in its header"),
        (32, b"\xff\xff", "is no text"),
    ],
)
def test_a_wrong_number_in_the_header_is_refused(dense, place, raw, reason):
    content = bytearray(dense.read_bytes())
    content[place : place + len(raw)] = raw
    dense.write_bytes(content)
    refused(dense, reason)


def test_an_array_larger_than_the_file_is_refused(dense):
    scores = word("tokenizer.ggml.scores") + struct.pack("<II", 9, 6)
    changed(dense, scores + struct.pack("<Q", LAYERS), scores + struct.pack("<Q", 2**61))
    refused(dense, "goes beyond its end")


@pytest.mark.parametrize("kind", [9, 77])
def test_an_array_of_unknown_items_is_refused(dense, kind):
    scores = word("tokenizer.ggml.scores")
    changed(dense, scores + struct.pack("<II", 9, 6), scores + struct.pack("<II", 9, kind))
    refused(dense, f"unknown type {kind}")


def test_a_name_given_twice_is_refused(dense):
    changed(dense, word("blk.3.attn_q.weight"), word("blk.2.attn_q.weight"))
    refused(dense, r"names 'blk\.2\.attn_q\.weight' twice")


def info(name, *shape, kind=0):
    return word(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<I", kind)


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (info("blk.3.attn_q.weight", HIDDEN, 2 * HIDDEN), "overlaps the one before it"),
        (info("blk.3.attn_q.weight", HIDDEN, HIDDEN // 2), "does not follow the one before it"),
        (info("blk.3.attn_q.weight", 2**62, 2**62), "is damaged"),
        (info("blk.3.attn_q.weight", HIDDEN, 0), "impossible shape"),
        (info("blk.3.attn_q.weight", HIDDEN // 2, 2 * HIDDEN, kind=2), "impossible shape"),
        (info("blk.3.attn_q.weight", HIDDEN, HIDDEN, kind=200), "type 200.*update gguf"),
        (info("enc.3.attn_q.weight", HIDDEN, HIDDEN), "of a stack other than"),
        (info("blk.9.attn_q.weight", HIDDEN, HIDDEN), "has 6 blocks, and holds tensors of block 9"),
        (info("blk.03.ttn_q.weight", HIDDEN, HIDDEN), "of a stack other than"),
    ],
)
def test_an_impossible_tensor_is_refused(dense, new, reason):
    changed(dense, info("blk.3.attn_q.weight", HIDDEN, HIDDEN), new)
    refused(dense, reason)


@pytest.mark.parametrize(
    ("count", "reason"),
    [(7, "no tensor of block 6"), (5, "tensors of block 5"), (0, "has 0 blocks"), (2**31, "no tensor of block 6")],
)
def test_a_number_of_blocks_that_the_tensors_do_not_have_is_refused(dense, count, reason):
    key = word("llama.block_count") + struct.pack("<I", 4)
    changed(dense, key + struct.pack("<I", LAYERS), key + struct.pack("<I", count))
    refused(dense, reason)


@pytest.mark.parametrize("alignment", [0, 48, 2**31])
def test_an_impossible_alignment_is_refused(tmp_path, alignment):
    dense = write_gguf(tmp_path / "dense.gguf", alignment=64)
    key = word("general.alignment") + struct.pack("<I", 4)
    changed(dense, key + struct.pack("<I", 64), key + struct.pack("<I", alignment))
    refused(dense, "is damaged")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("general.type", "adapter", "no language model"), ("general.type", "mmproj", "no language model")],
)
def test_a_file_of_something_else_than_a_model_is_refused(tmp_path, name, value, reason):
    refused(write_gguf(tmp_path / "dense.gguf", texts={name: value}), reason)


def test_a_part_of_a_model_is_refused_with_the_way_to_join_them(tmp_path):
    writer = GGUFWriter(tmp_path / "model-00001-of-00002.gguf", "llama")
    writer.add_uint16("split.count", 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(tmp_path / "model-00001-of-00002.gguf", "one of 2 parts.*llama-gguf-split --merge")


@pytest.mark.parametrize("name", ["missing.gguf", "folder.gguf", "pipe.gguf", "circle.gguf"])
def test_what_is_no_file_is_refused(tmp_path, name):
    (tmp_path / "folder.gguf").mkdir()
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "circle.gguf").symlink_to("circle.gguf")
    with pytest.raises(ModelError, match=r"cannot read|is not a file"):
        cut_gguf(tmp_path / name, tmp_path / "out.gguf", DROPPED)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_the_bytes_of_a_header_the_cut_is_made_or_refused_in_one_line(tmp_path, data):
    dense = tmp_path / "dense.gguf"
    if not (tmp_path / "good").exists():
        (tmp_path / "good").write_bytes(write_gguf(dense).read_bytes())
    raw = bytearray((tmp_path / "good").read_bytes())
    end = read_gguf(tmp_path / "good").tensors[0].start
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, end - 1))
        new = data.draw(st.one_of(st.binary(min_size=1, max_size=9), st.sampled_from([b"\xff" * 8, b"\0" * 8])))
        raw[place : place + len(new)] = new
    dense.write_bytes(raw[: data.draw(st.sampled_from([len(raw), end, place]))])
    target = tmp_path / "cut.gguf"
    target.unlink(missing_ok=True)
    try:
        cut_gguf(dense, target, DROPPED)
    except SecateurError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 (most bytes are refused, some not)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["dense.gguf", "good"]
    else:
        assert len(read_gguf(target).tensors) <= len(read_gguf(dense).tensors)


# ---- a real model -------------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.skipif("SECATEUR_SAMPLE_GGUF" not in os.environ, reason="SECATEUR_SAMPLE_GGUF names no GGUF file")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_sample_models_file_cut_equals_it_with_the_layers_bypassed(tmp_path):
    dense, dropped = Path(os.environ["SECATEUR_SAMPLE_GGUF"]), [3, 10, 11, 12, 27]
    cut_gguf(dense, tmp_path / "cut.gguf", dropped)
    ids = torch.randint(0, 49152, (2, 64), generator=torch.Generator().manual_seed(0))
    expected = bypassed_logits(Decoder(loaded(dense)), dropped, ids)
    assert torch.equal(bypassed_logits(Decoder(loaded(tmp_path / "cut.gguf")), (), ids), expected)
