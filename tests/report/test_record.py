import json
import math
import shlex
from datetime import datetime
from importlib.metadata import version

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from secateur.plan import LayerScores
from secateur.report.record import (
    config_sha256,
    count_parameters,
    describe_model,
    directory_size,
    redacted,
    redacted_command,
    revision_of,
    run_record,
)
from secateur.values import write_json

SECRET = "hf_abcdefghijklmnopqrstuvwxyz"  # noqa: S105 - made up, so that its absence can be tested
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


def config(**changes) -> LlamaConfig:
    return LlamaConfig(**{**SMALL, "num_hidden_layers": 3, **changes})


def record(**changes) -> dict:
    values = {
        "command": ["secateur", "prune", "some/model", "--drop", "2"],
        "model": describe_model(LlamaForCausalLM(config()), id="some/model", revision="abc"),
        "method": {"name": "sleb", "options": {"batch": 8}},
        "data": {"spec": "python-docs", "sequences": 4, "tokens": 64, "fingerprint": "f"},
        "eval_data": {"spec": "python-docs", "sequences": 2, "tokens": 32, "fingerprint": "e"},
        "dropped": (2, 1),
        "scores": LayerScores((3.0, math.nan, 1.0), "sleb"),
        "metrics": {"dense": {"perplexity": 20.0}, "pruned": {"perplexity": math.inf}},
        "timings": {"score": 1.5},
        "peak_memory_bytes": 5,
        "seed": 7,
    }
    return run_record(**{**values, **changes})


def test_it_holds_what_the_specification_asks_for(tmp_path):
    write_json(tmp_path / "record.json", record())
    body = json.loads((tmp_path / "record.json").read_text())
    assert body.keys() >= {
        "secateur_version", "command", "model", "method", "data", "eval_data", "dropped", "scores", "metrics",
        "timings", "peak_memory_bytes", "seed", "versions", "proof", "preparation", "generations", "created",
    }  # fmt: skip
    assert body["model"].keys() == {"id", "revision", "config_sha256", "num_layers", "num_parameters"}
    assert body["model"]["num_layers"] == 3
    assert body["dropped"] == [1, 2]
    assert body["scores"] == [3.0, None, 1.0]
    assert body["metrics"] == {"dense": {"perplexity": 20.0}, "pruned": {"perplexity": None}}
    assert body["versions"]["torch"] == version("torch")
    assert datetime.fromisoformat(body["created"]).utcoffset().total_seconds() == 0


def test_the_revision_of_a_model_is_the_commit_it_came_from_else_what_was_asked_for():
    model = LlamaForCausalLM(config())
    assert (revision_of(model), revision_of(model, "main")) == (None, "main")
    model.config._commit_hash = "c0ffee"
    assert (revision_of(model), revision_of(model, "main")) == ("c0ffee", "c0ffee")


@pytest.mark.parametrize(
    "command",
    [
        ["--token", "my secret"],
        ["--token=my secret"],
        ["--hf-token", "my secret"],
        [SECRET],
        [f"--other={SECRET}"],
        [f"https://me:{SECRET}@host/x"],
        ["https://me:my secret@host/x".replace(" ", "%20")],
    ],
)
def test_no_secret_of_the_command_line_is_kept(command):
    text = redacted_command(["secateur", "prune", *command, "--drop", "2"])
    assert "***" in text
    assert "secret" not in text
    assert SECRET not in text
    assert shlex.split(text)[-2:] == ["--drop", "2"]


@pytest.mark.parametrize(
    "secret",
    [
        SECRET,
        "ghp_0123456789abcdef",
        "github_pat_0123456789",
        "sk-proj-0123456789",
        "xoxb-0123456789",
        "glpat-0123456789",
    ],
)
def test_tokens_are_known_by_their_form(secret):
    assert redacted({"run_name": f"a {secret} b", "list": [secret]}) == {"run_name": "a *** b", "list": ["***"]}


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "MY_SECRET", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY"])
def test_what_this_process_has_as_a_secret_is_known(name, monkeypatch):
    monkeypatch.setenv(name, "correct horse")
    monkeypatch.setenv("SHORT_TOKEN", "the")
    assert redacted({"run_name": "the correct horse"}) == {"run_name": "the ***"}


def test_a_token_in_an_address_is_hidden():
    assert redacted("https://u:pw@host/x?a=1&token=abcd&b=2") == "https://***@host/x?a=1&token=***&b=2"


def test_a_harmless_command_line_stays_as_it_is():
    command = ["secateur", "prune", "hub model", "--max-tokens", "4096", "--out", "/a b/c"]
    assert shlex.split(redacted_command(command)) == command


def test_no_secret_of_an_option_is_kept():
    body = json.dumps(record(method={"name": "x", "options": {"token": "pass", "nested": [{"url": f"x {SECRET}"}]}}))
    assert "pass" not in body
    assert SECRET not in body


def test_config_hash_tells_architectures_apart_and_survives_saving(tmp_path):
    LlamaForCausalLM(config()).to(torch.bfloat16).save_pretrained(tmp_path)
    saved = config_sha256(AutoConfig.from_pretrained(tmp_path))
    assert saved == config_sha256(LlamaForCausalLM(config()).config)
    assert saved != config_sha256(LlamaForCausalLM(config(num_hidden_layers=2)).config)


def test_tied_parameters_count_once():
    tied = LlamaForCausalLM(config(tie_word_embeddings=True))
    untied = LlamaForCausalLM(config(tie_word_embeddings=False))
    assert count_parameters(untied) - count_parameters(tied) == 64 * 16


def test_directory_size_follows_links(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "b").write_bytes(b"12345")
    snapshot = tmp_path / "snapshot"
    (snapshot / "deep").mkdir(parents=True)
    (snapshot / "deep" / "link").symlink_to(tmp_path / "blobs" / "b")
    (snapshot / "dangling").symlink_to(tmp_path / "nowhere")
    (snapshot / "file").write_bytes(b"123")
    assert directory_size(snapshot) == 8
