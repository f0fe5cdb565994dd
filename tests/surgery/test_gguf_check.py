import json
import re
import shutil
import struct
import tracemalloc

import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType

from secateur.cli import main
from secateur.errors import ModelError, PlanError, UnsupportedModelError
from secateur.surgery.gguf_check import check_gguf_pair
from secateur.surgery.gguf_files import cut_gguf
from secateur.surgery.gguf_header import read_gguf
from tiny_gguf import write_gguf

DROPPED, KEPT = (1, 2, 4), [0, 3, 5]
COMPARED = dict.fromkeys(["files", "layers", "tensors", "configuration"], True)
NOT_RUN = dict.fromkeys(["reload", "logits", "generation"])
ABOUT = {
    "kind": Kind.Q8_0,
    "arrays": {"layer_types": (["a", "b", "c", "d", "e", "f"], GGUFValueType.STRING)},
    "more": ["odd.weight"],
}


@pytest.fixture
def dense(tmp_path):
    return write_gguf(tmp_path / "dense.gguf", **ABOUT)


@pytest.fixture
def pruned(tmp_path):
    """Written by the gguf package alone."""
    return write_gguf(tmp_path / "pruned.gguf", KEPT, **ABOUT)


def holding(check):
    return {finding.what: finding.holds for finding in check.findings}


def change(path, name, byte=0x55):
    """Change the first byte of a tensor, or else the last one of a metadata entry."""
    raw = bytearray(path.read_bytes())
    header = read_gguf(path)
    starts = {tensor.name: tensor.start for tensor in header.tensors}
    starts |= {
        entry.name: raw.index(entry.name.encode() + entry.kind.to_bytes(4, "little"))
        + len(entry.name)
        + 3
        + len(entry.raw)
        for entry in header.entries
    }
    raw[starts[name]] ^= byte
    path.write_bytes(raw)


def test_a_file_that_ggufs_own_writer_made_of_the_kept_layers_is_proven(dense, pruned):
    check = check_gguf_pair(dense, pruned)
    assert holding(check) == COMPARED | NOT_RUN
    assert (check.proven, check.difference, check.dropped) == (True, None, DROPPED)
    assert "compared, and not run" in check.findings[-1].words


@pytest.mark.parametrize("arch", ["llama", "glm4moe"])
def test_what_cut_writes_is_proven(arch, tmp_path):
    numbers = {"leading_dense_block_count": 2} | ({"nextn_predict_layers": 1} if arch == "glm4moe" else {})
    dense = write_gguf(tmp_path / "dense.gguf", arch=arch, numbers=numbers, split=(0, 57))
    cut_gguf(dense, tmp_path / "cut.gguf", [1, 2])
    check = check_gguf_pair(dense, tmp_path / "cut.gguf", dropped=[1, 2])
    assert (check.proven, check.dropped) == (True, (1, 2))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("token_embd.weight", "tensors: 'token_embd.weight' is not as in the dense model, 1 of 31 are not"),
        ("blk.1.attn_norm.weight", "tensors: 'blk.1.attn_norm.weight' is not as in the dense model"),
        ("llama.context_length", "configuration: 'llama.context_length' is .*, and must be 128"),
        ("llama.layer_types", "configuration: 'llama.layer_types' is another array of 3 items"),
        ("general.name", "configuration: 'general.name'"),
        ("tokenizer.ggml.scores", "configuration: 'tokenizer.ggml.scores'"),
    ],
)
def test_a_byte_that_changed_is_named(name, reason, dense, pruned):
    change(pruned, name)
    check = check_gguf_pair(dense, pruned, dropped=DROPPED)
    assert not check.proven
    assert re.match(reason, check.difference)


def test_a_long_array_that_changed_takes_little_memory_and_is_not_quoted(tmp_path):
    count = 3_000_000
    paths = []
    for number, blocks in ((1, range(6)), (2, KEPT)):
        entry = struct.pack("<Q", 5) + b"x.big" + struct.pack("<IIQ", 9, 0, count) + bytes([number]) * count
        name = struct.pack("<Q", 5) + b"x.pad"
        pad = -(len(entry) + len(name) + 12) % 32
        raw = write_gguf(tmp_path / f"{number}.gguf", blocks, **ABOUT).read_bytes()
        tensors, entries = struct.unpack_from("<QQ", raw, 8)
        more = entry + name + struct.pack("<IQ", 8, pad) + b"p" * pad
        paths.append(tmp_path / f"{number}.gguf")
        paths[-1].write_bytes(raw[:8] + struct.pack("<QQ", tensors, entries + 2) + more + raw[24:])
    tracemalloc.start()
    check = check_gguf_pair(*paths)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    what = f"another array of {count} items"
    assert check.difference == f"configuration: 'x.big' is {what}, and must be {what} for the layers that are left"
    assert most < 6 * count


def test_layers_in_another_order_are_named(dense, tmp_path):
    check = check_gguf_pair(dense, write_gguf(tmp_path / "pruned.gguf", KEPT, **ABOUT), dropped=[0, 1, 2])
    assert check.difference == "layers: layer 0 is the dense model's 0, and is said to be its 3"
    swapped = write_gguf(tmp_path / "swapped.gguf", [0, 5, 3], **ABOUT)
    check = check_gguf_pair(dense, swapped)
    assert check.difference == "layers: layer 2 is the dense model's 3, and comes after its 5"


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"kind": Kind.Q4_0}, "layers: layer 0 is like none of the dense model"),
        ({"more": []}, "tensors: 'odd.weight' is missing"),
        ({"more": ["odd.weight", "odder.weight"]}, "tensors: 'odder.weight' is none of the dense model"),
        ({"arrays": {}}, "configuration: 'llama.layer_types' is not there"),
        ({"arch": "qwen2"}, "family: it is a 'qwen2' model, and the dense one 'llama'"),
        ({"numbers": {"nextn_predict_layers": 1}}, "layers: it has 1 blocks that predict further tokens"),
    ],
)
def test_another_file_is_told_from_one_without_layers(about, reason, dense, tmp_path):
    check = check_gguf_pair(dense, write_gguf(tmp_path / "other.gguf", KEPT, **ABOUT | about))
    assert check.difference.startswith(reason)


def test_a_file_with_all_layers_or_a_damaged_one_is_none_without_layers(dense, pruned):
    assert check_gguf_pair(dense, dense).difference == "layers: it has 6 layers, and the dense model 6: none went"
    pruned.write_bytes(pruned.read_bytes()[:-3000])
    check = check_gguf_pair(dense, pruned)
    assert check.difference.startswith("files: ")
    assert "cut short" in check.difference


def test_what_cannot_be_said_is_an_error(dense, pruned, tmp_path):
    with pytest.raises(ModelError, match=r"cannot read .*missing\.gguf"):
        check_gguf_pair(dense, tmp_path / "missing.gguf")
    with pytest.raises(PlanError, match="no layer 6"):
        check_gguf_pair(dense, pruned, dropped=[6])
    future = write_gguf(tmp_path / "future.gguf", arch="from-the-future")
    with pytest.raises(UnsupportedModelError, match="from-the-future"):
        check_gguf_pair(future, pruned)


def test_equal_layers_are_taken_in_their_order(dense, tmp_path):
    raw = bytearray(dense.read_bytes())
    places = {tensor.name: tensor for tensor in read_gguf(dense).tensors}
    for name, tensor in places.items():
        if name.startswith("blk.2."):
            other = places[name.replace("blk.2.", "blk.3.")]
            raw[other.start : other.start + other.num_bytes] = raw[tensor.start : tensor.start + tensor.num_bytes]
    dense.write_bytes(raw)
    cut_gguf(dense, tmp_path / "cut.gguf", [0, 5])
    assert check_gguf_pair(dense, tmp_path / "cut.gguf").dropped == (0, 5)


# ---- the command --------------------------------------------------------------------------------------------------------


def test_the_command_says_the_same_as_of_checkpoints(dense, pruned, capsys):
    assert main(["check", str(dense), str(pruned), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["proven"], said["dropped"], said["difference"]) == (True, list(DROPPED), None)
    assert {each["what"]: each["holds"] for each in said["findings"]} == COMPARED | NOT_RUN
    assert main(["check", str(dense), str(pruned), "--layers", "1,2,4", "--files-only"]) == 0
    assert "proven by the files alone" in capsys.readouterr().out
    change(pruned, "output_norm.weight")
    assert main(["check", str(dense), str(pruned)]) == 1
    assert "tensors: 'output_norm.weight' is not as in" in capsys.readouterr().err


@pytest.mark.parametrize("swapped", [False, True])
def test_a_file_and_a_checkpoint_are_refused_in_one_line(swapped, dense, tiny_checkpoint, capsys):
    pair = [str(dense), str(tiny_checkpoint)]
    assert main(["check", *(reversed(pair) if swapped else pair)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "give two checkpoints, or two GGUF files" in said.err


def test_a_directory_that_is_called_like_a_file_is_a_checkpoint(tiny_checkpoint, tmp_path, capsys):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model.gguf")
    assert main(["check", str(folder), str(tiny_checkpoint), "--files-only"]) == 1
    assert "none went" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [["--layer-by-layer"], ["--prompt-tokens", "64"], ["--trust-remote-code"], ["--allow-pickle"]]
)
def test_options_without_effect_are_refused(option, dense, pruned, capsys):
    assert main(["check", str(dense), str(pruned), *option]) == 2
    assert f"{option[0]} has no effect on GGUF files" in capsys.readouterr().err
