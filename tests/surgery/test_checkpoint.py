import dataclasses
import errno
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from secateur.decoder import Decoder
from secateur.errors import ModelError, OutputError, ProofError, WriteError
from secateur.report.comparison import cached_generation_in_words
from secateur.surgery.checkpoint import bypassed_logits, prove_checkpoint, save_checkpoint
from secateur.surgery.live import remove_layers_
from secateur.surgery.output import check_output, new_directory

IDS = torch.randint(3, 120, (2, 24), generator=torch.Generator().manual_seed(0))


class BoomError(Exception):
    pass


def tree(directory: Path) -> dict[str, bytes | None]:
    """Everything under a directory: name → bytes, None for a directory."""
    return {str(p.relative_to(directory)): p.read_bytes() if p.is_file() else None for p in directory.rglob("*")}


def checkpoint_at(directory: Path, mark: str) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(mark)
    return directory


def expect_refusal(words, root, out, **options):
    before = tree(root)
    for attempt in (lambda: check_output(out, **options), lambda: new_directory(out, **options).__enter__()):
        with pytest.raises(OutputError, match=words) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert tree(root) == before


def fail_half_way(out, error, *, overwrite=False, first=lambda: None):
    with new_directory(out, overwrite=overwrite) as directory:
        (directory / "config.json").write_text("half")
        first()
        raise error


# ---- what is refused ----------------------------------------------------------------------------------------------------


def test_an_output_that_is_not_empty_is_refused_and_untouched(tmp_path):
    expect_refusal("not empty.*--overwrite", tmp_path, checkpoint_at(tmp_path / "out", "old"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_that_is_a_file_is_refused_and_untouched(tmp_path, overwrite):
    (tmp_path / "out").write_text("precious")
    expect_refusal("is a file", tmp_path, tmp_path / "out", overwrite=overwrite)


def test_overwriting_what_is_not_a_checkpoint_is_refused_and_untouched(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    expect_refusal("not a checkpoint", tmp_path, tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("inside", ["out", "a/b/out"])
def test_an_output_whose_parent_is_a_file_is_refused_and_untouched(tmp_path, inside):
    (tmp_path / "file").write_text("precious")
    expect_refusal("cannot write to", tmp_path, tmp_path / "file" / inside)


def test_an_output_whose_name_is_too_long_is_refused(tmp_path):
    expect_refusal("cannot write to", tmp_path, tmp_path / ("x" * 300))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_an_output_whose_parent_is_read_only_is_refused(tmp_path):
    parent = tmp_path / "parent"
    parent.mkdir(mode=0o555)
    expect_refusal("cannot write to", tmp_path, parent / "out")


@pytest.mark.parametrize("prepare", ["missing", "empty", "nested", "overwrite"])
def test_a_good_output_is_accepted_and_nothing_is_created(tmp_path, prepare):
    out = tmp_path / ("a/b/out" if prepare == "nested" else "out")
    if prepare == "empty":
        out.mkdir()
    if prepare == "overwrite":
        checkpoint_at(out, "old")
    before = tree(tmp_path)
    assert check_output(out, overwrite=prepare == "overwrite") == out
    assert tree(tmp_path) == before


# ---- whole or not at all ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepare", ["missing", "empty", "nested", "overwrite"])
def test_the_output_equals_what_was_written_and_nothing_else_is_there(tmp_path, prepare):
    out = tmp_path / ("a/b/out" if prepare == "nested" else "out")
    if prepare == "empty":
        out.mkdir()
    if prepare == "overwrite":
        (checkpoint_at(out, "old") / "old-weights").write_text("old")
    with new_directory(out, overwrite=prepare == "overwrite") as directory:
        (directory / "config.json").write_text("new")
        (directory / "secateur").mkdir()
        (directory / "secateur" / "plan.json").write_text("plan")
    assert tree(out) == {"config.json": b"new", "secateur": None, "secateur/plan.json": b"plan"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert out.stat().st_mode & 0o777 == 0o755


def test_the_output_is_not_there_before_the_end(tmp_path):
    out = checkpoint_at(tmp_path / "out", "old")
    with new_directory(out, overwrite=True) as directory:
        (directory / "config.json").write_text("new")
        assert tree(out) == {"config.json": b"old"}
        assert directory.parent == out.parent  # the same file system, so that the move is a rename


FAILURES = [
    (BoomError(), BoomError),
    (KeyboardInterrupt(), KeyboardInterrupt),
    (SystemExit(1), SystemExit),
    (ProofError("no"), ProofError),
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), WriteError),
]


@pytest.mark.parametrize(("raised", "seen"), FAILURES, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("prepare", ["missing", "empty", "nested", "overwrite"])
def test_a_failure_leaves_the_disk_as_it_was(tmp_path, prepare, raised, seen):
    out = tmp_path / ("a/b/out" if prepare == "nested" else "out")
    if prepare == "empty":
        out.mkdir()
    if prepare == "overwrite":
        checkpoint_at(out, "old")
    before = tree(tmp_path)
    with pytest.raises(seen) as caught:
        fail_half_way(out, raised, overwrite=prepare == "overwrite")
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before


def test_parents_that_somebody_else_uses_by_then_stay(tmp_path):
    def use_the_parent_too():
        (tmp_path / "a" / "other").write_text("precious")

    with pytest.raises(BoomError):
        fail_half_way(tmp_path / "a" / "b" / "out", BoomError(), first=use_the_parent_too)
    assert tree(tmp_path) == {"a": None, "a/other": b"precious"}


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_failure_in_the_swap_brings_the_old_checkpoint_back(tmp_path, monkeypatch, error):
    out = checkpoint_at(tmp_path / "out", "old")
    before = tree(tmp_path)
    real = Path.rename

    def rename(self, target):
        if self.suffix == ".tmp":
            raise error
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    seen = WriteError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(seen), new_directory(out, overwrite=True) as directory:
        (directory / "config.json").write_text("new")
    assert tree(tmp_path) == before


# ---- saving -------------------------------------------------------------------------------------------------------------


def test_a_saved_checkpoint_equals_the_model_and_the_tokenizer_when_read(tmp_path, tiny_model, tiny_tokenizer):
    with new_directory(tmp_path / "out") as directory:
        save_checkpoint(tiny_model, tiny_tokenizer, directory)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in tiny_model.state_dict().items())
    text = "def f(x):\n\treturn x"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o644}


def test_saving_twice_gives_the_same_bytes(tmp_path, tiny_model, tiny_tokenizer):
    for name in ("a", "b"):
        with new_directory(tmp_path / name) as directory:
            save_checkpoint(tiny_model, tiny_tokenizer, directory)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["OSError", "SafetensorError"],
)
def test_a_full_disk_is_one_line_and_nothing_is_left(tmp_path, tiny_model, tiny_tokenizer, monkeypatch, error):
    def save_pretrained(directory, **_):
        (Path(directory) / "config.json").write_text("half")
        raise error

    monkeypatch.setattr(tiny_model, "save_pretrained", save_pretrained)
    with (
        pytest.raises(
            WriteError, match=r"the disk is full: cannot write .*is free; nothing is left there: make room"
        ) as caught,
        new_directory(tmp_path / "o") as folder,
    ):
        save_checkpoint(tiny_model, tiny_tokenizer, folder)
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_really_full_is_one_line_and_nothing_is_left(tmp_path, tiny_model, tiny_tokenizer):
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path)]  # the weights alone are 256 kB
    if (done := subprocess.run(mount, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    try:
        with pytest.raises(WriteError, match="make room") as caught, new_directory(tmp_path / "a" / "out") as folder:
            save_checkpoint(tiny_model, tiny_tokenizer, folder)
        assert "\n" not in str(caught.value)
        assert tree(tmp_path) == {}
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# ---- the proof ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path, tiny_model, tiny_tokenizer):
    """A cut checkpoint, and the logits of the dense model with the layers bypassed."""
    expected = bypassed_logits(Decoder(tiny_model), [1, 4], IDS)
    remove_layers_(tiny_model, [1, 4])
    save_checkpoint(tiny_model, tiny_tokenizer, tmp_path)
    return tmp_path, expected


def tamper(directory, change):
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def test_the_expected_logits_equal_those_of_the_model_with_the_layers_out_of_its_list(tiny_model):
    layers = tiny_model.model.layers
    expected = bypassed_logits(Decoder(tiny_model), [0, 3], IDS)
    tiny_model.model.layers = torch.nn.ModuleList([layers[1], layers[2], layers[4], layers[5]])
    tiny_model.config.num_hidden_layers = 4
    with torch.no_grad():
        assert torch.equal(tiny_model(input_ids=IDS, use_cache=False).logits, expected)


def test_the_proof_holds_for_a_plain_cut_with_no_difference_at_all(written):
    directory, expected = written
    proof, model = prove_checkpoint(directory, IDS, expected, new_tokens=8)
    assert (proof.tokens, proof.generated_tokens) == (48, 8)
    assert (proof.max_difference, proof.max_cache_gap) == (0.0, 0.0)
    assert model.config.num_hidden_layers == 4
    assert torch.equal(bypassed_logits(Decoder(model), (), IDS), expected)


def test_the_proof_holds_on_a_text_of_one_token(written):
    directory, expected = written
    proof, _ = prove_checkpoint(directory, IDS[:1, :1], expected[:1, :1], new_tokens=3)
    assert proof.tokens == 1


def test_the_proof_holds_in_bfloat16(tmp_path, tiny_model, tiny_tokenizer):
    model = tiny_model.to(torch.bfloat16)
    expected = bypassed_logits(Decoder(model), [2], IDS)
    remove_layers_(model, [2])
    save_checkpoint(model, tiny_tokenizer, tmp_path)
    proof, again = prove_checkpoint(tmp_path, IDS, expected)
    assert again.dtype == torch.bfloat16
    assert proof.max_difference <= proof.tolerance


@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.up_proj.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight"]
)
def test_a_weight_that_was_tampered_with_fails_the_proof(written, name):
    directory, expected = written
    tamper(directory, lambda weights: weights[name].flatten()[0].add_(0.5))
    with pytest.raises(ProofError, match=r"logits differ by") as caught:
        prove_checkpoint(directory, IDS, expected)
    assert "\n" not in str(caught.value)


def test_a_weight_that_is_not_a_number_fails_the_proof(written):
    directory, expected = written
    tamper(directory, lambda weights: weights["model.norm.weight"].fill_(torch.nan))
    with pytest.raises(ProofError, match="logits differ by nan"):
        prove_checkpoint(directory, IDS, expected)


@pytest.mark.parametrize("damage", ["truncated", "weight missing", "no config", "one layer too many"])
def test_a_checkpoint_that_cannot_be_read_again_fails_the_proof_in_one_line(written, damage):
    directory, expected = written
    weights = directory / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "weight missing":
        tamper(directory, lambda tensors: tensors.pop("model.norm.weight"))
    elif damage == "no config":
        (directory / "config.json").unlink()
    else:
        config = directory / "config.json"
        config.write_text(config.read_text().replace('"num_hidden_layers": 4', '"num_hidden_layers": 5'))
    with pytest.raises(ProofError) as caught:
        prove_checkpoint(directory, IDS, expected)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ModelError)


def test_a_cache_that_forgets_fails_the_proof(written, monkeypatch):
    """Two layers that share one slot of the cache: right without the cache, wrong with it."""
    from secateur.surgery import checkpoint

    directory, expected = written

    def load_with_one_number(*args, **kwargs):
        model = real(*args, **kwargs)
        model.model.layers[1].self_attn.layer_idx = 0
        return model

    real = checkpoint.load_model
    monkeypatch.setattr(checkpoint, "load_model", load_with_one_number)
    with pytest.raises(ProofError, match="cached and uncached"):
        prove_checkpoint(directory, IDS, expected)


def test_a_cache_that_forgets_in_the_dense_model_too_is_not_held_against_the_cut(written, monkeypatch):
    from secateur.surgery import checkpoint

    directory, expected = written
    gaps = iter([0.5, 0.2, 10.0, 0.2, 0.5, 0.0, 0.5])  # of the cut model, and of the dense one
    monkeypatch.setattr(checkpoint, "cache_gap", lambda *_: next(gaps))
    proof, _ = prove_checkpoint(directory, IDS, expected, dense=lambda: None)
    assert (proof.max_cache_gap, proof.dense_cache_gap) == (0.5, 0.2)
    assert "differs from uncached by 0.5 in a logit, as in the dense model, by 0.2" in cached_generation_in_words(
        dataclasses.asdict(proof)
    )
    for of_dense in ("0.2", "0"):
        with pytest.raises(ProofError, match=f"in a logit, and in the dense model by {of_dense}, more than rounding"):
            prove_checkpoint(directory, IDS, expected, dense=lambda: None)

    def cannot():
        raise RuntimeError

    with pytest.raises(ProofError, match=r"disagree by 0.5 in a logit, more than rounding"):
        prove_checkpoint(directory, IDS, expected, dense=cannot)
