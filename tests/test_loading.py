import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration
from transformers.utils import logging as hf_logging

from secateur.errors import ModelError, UnsupportedModelError
from secateur.loading import (
    autocast_dtype,
    described_in,
    licence_files,
    load_model,
    load_tokenizer,
    quiet_transformers,
)
from secateur.trust import is_pickle_allowed, pickle_allowed


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def expect_one_line(call, words, kind=ModelError):
    with pytest.raises(kind, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_the_loaded_model_equals_the_saved_one_byte_for_byte(tiny_checkpoint, tiny_model):
    model = load_model(tiny_checkpoint, device="cpu")
    assert not model.training
    assert model.dtype == torch.float32
    assert all(torch.equal(value, tiny_model.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_asked_for_equals_that_of_the_weights(tiny_checkpoint, dtype):
    assert load_model(tiny_checkpoint, dtype=dtype, device="cpu").dtype == getattr(torch, dtype)


def test_an_unknown_dtype_is_refused_with_the_choices(tiny_checkpoint):
    expect_one_line(lambda: load_model(tiny_checkpoint, dtype="int3"), "unknown dtype 'int3'.*bfloat16")


def test_the_loaded_tokenizer_equals_the_saved_one(tiny_checkpoint, tiny_tokenizer):
    text = "print('Hello, World!')\n"
    tokenizer = load_tokenizer(tiny_checkpoint)
    assert tokenizer(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("kept", [0, 7, 100, 5000, -1])
def test_a_truncated_safetensors_file_is_one_line_that_says_damaged(checkpoint, kept):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    expect_one_line(lambda: load_model(checkpoint), "copy.*damaged safetensors")


def test_a_safetensors_file_of_garbage_is_one_line_that_says_damaged(checkpoint):
    (checkpoint / "model.safetensors").write_bytes(b"<html>404</html>\n" * 100)
    expect_one_line(lambda: load_model(checkpoint), "damaged safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_one_line_that_names_the_directory(checkpoint, name):
    (checkpoint / name).unlink()
    expect_one_line(lambda: load_model(checkpoint), "cannot load .*copy")


def test_a_missing_weight_is_one_line_that_names_it(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    del weights["model.layers.3.mlp.up_proj.weight"], weights["model.norm.weight"]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    expect_one_line(
        lambda: load_model(checkpoint), r"lacks 2 of the model's weights, 'model.layers.3.mlp.up_proj.weight'"
    )


def test_a_weight_of_another_shape_is_one_line(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    expect_one_line(lambda: load_model(checkpoint), "cannot load")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", "{}", '{"model_type": "no-such-family"}', '{"model_type": 3}', "\x00", "not\njson"],
)
def test_a_malformed_configuration_is_one_line(checkpoint, text):
    (checkpoint / "config.json").write_text(text)
    expect_one_line(lambda: load_model(checkpoint), "cannot load")


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": "six"},
        {"hidden_size": 33},
        {"num_attention_heads": 0},
        {"hidden_act": "no-such"},
        {"rope_parameters": {"rope_type": "no-such"}},
        {"vocab_size": None},
    ],
    ids=str,
)
def test_a_configuration_with_a_wrong_value_is_one_line(checkpoint, change):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | change))
    expect_one_line(lambda: load_model(checkpoint), "copy")


def test_a_masked_language_model_is_refused_as_not_causal(tmp_path):
    config = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    expect_one_line(lambda: load_model(tmp_path), "'bert' model, not a causal language model", UnsupportedModelError)


def test_an_encoder_decoder_is_refused_as_not_causal(tmp_path):
    config = T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=4, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    expect_one_line(lambda: load_model(tmp_path), "'t5' model, not a causal", UnsupportedModelError)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize("source", ["secateur-tests/no-such-model", "no-such-dir", "a/b/c", "./no such", ""])
def test_a_source_that_is_not_there_is_one_line_that_names_it(source, load, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    expect_one_line(lambda: load(source), f"(cannot load .*|there is no ){source}")


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_file_in_place_of_a_directory_is_one_line(tmp_path, load):
    (tmp_path / "model").write_text("x")
    expect_one_line(lambda: load(tmp_path / "model"), "cannot load")


@pytest.mark.parametrize("damage", ["missing", "garbage", "empty", "wrong"])
def test_a_damaged_tokenizer_is_one_line_that_says_tokenizer(checkpoint, damage):
    file = checkpoint / "tokenizer.json"
    if damage == "missing":
        file.unlink()
        (checkpoint / "tokenizer_config.json").unlink()
    else:
        file.write_text({"garbage": "<html>", "empty": "", "wrong": '{"version": "1.0"}'}[damage])
    expect_one_line(lambda: load_tokenizer(checkpoint), "the tokenizer of .*copy")


@pytest.mark.parametrize("error", [None, ValueError])
def test_the_verbosity_of_transformers_comes_back(error):
    before = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    try:
        with quiet_transformers():
            assert hf_logging.get_verbosity() == hf_logging.ERROR
            assert not hf_logging.is_progress_bar_enabled()
            if error:
                raise error
    except ValueError:
        pass
    assert (hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()) == before


def test_the_compute_dtype_asked_for_is_the_one_given():
    cpu = torch.device("cpu")
    assert autocast_dtype("fp32", cpu) is None
    assert autocast_dtype("bf16", cpu) is torch.bfloat16
    assert autocast_dtype("auto", cpu) in {None, torch.bfloat16}


@pytest.fixture
def pickled(checkpoint):
    """The checkpoint with its weights in a `.bin` file."""
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(weights, checkpoint / "pytorch_model.bin")
    return checkpoint


def test_pickled_weights_are_refused_with_the_option_that_reads_them(pickled):
    with pytest.raises(ModelError, match="--allow-pickle"):
        load_model(pickled)


def test_pickled_weights_equal_those_of_safetensors_where_pickle_is_allowed(pickled, tiny_model):
    with pickle_allowed():
        loaded = load_model(pickled).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in tiny_model.state_dict().items())
    assert not is_pickle_allowed()


class Attack:
    """What a pickle could do."""

    def __reduce__(self):
        return (Path.touch, (Path("attacked"),))


def test_code_in_a_pickle_is_refused_and_not_run(pickled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model.embed_tokens.weight": Attack()}, pickled / "pytorch_model.bin")
    with pickle_allowed(), pytest.raises(ModelError):
        load_model(pickled)
    assert not (tmp_path / "attacked").exists()


def test_the_card_and_licence_of_a_hub_id_are_fetched_and_nothing_else_and_an_error_leaves_them_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, str | None, list[str]]] = []

    def fetch(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo_id, revision, allow_patterns))
        if repo_id == "no/body":
            raise ConnectionError
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    for name in ("LICENSE", "NOTICE.txt", "config.json"):
        (tmp_path / name).touch()
    assert described_in("some/body", revision="main") == tmp_path
    assert [file.name for file in licence_files(tmp_path)] == ["LICENSE", "NOTICE.txt"]
    assert described_in("no/body") is None
    assert described_in(tmp_path) == tmp_path
    assert [each[:2] for each in asked] == [("some/body", "main"), ("no/body", None)]
    assert not [pattern for pattern in asked[0][2] if "safetensors" in pattern or pattern == "*"]
