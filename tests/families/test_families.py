"""Every family does what docs/families.md says of it."""

import ast

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from families.family_models import EVERY_TYPE, build, skip_without
from families.family_sweep import PAGE, examine, page, recorded
from secateur.errors import SecateurError
from secateur.surgery.files import cut_checkpoint
from secateur.surgery.live import remove_layers_

SOME = (
    "bart", "beam", "bert", "big_bird", "blt", "cpmant", "deepseek_v3", "diffllama", "dots3_note_text", "ernie4_5_moe",
    "gemma3", "gemma3n_text", "gemma4_assistant", "gemma4_text", "gpt_neo", "hrm_text", "hy_v4", "jamba", "llama4",
    "longcat_flash", "minicpm3", "minimax", "mllama", "musicgen", "nemotron_h", "openai-gpt", "qwen4_exp_text",
    "recurrent_gemma", "reformer", "rwkv", "xlm", "xlstm", "zamba2",
)  # fmt: skip
"""One for each thing that a family may do to layers; the others run with --every-family."""


def kinds(outcome):
    return {cut: words.partition(":")[0] for cut, words in outcome["cuts"].items()}


def pytest_generate_tests(metafunc):
    if "model_type" in metafunc.fixturenames:
        metafunc.parametrize("model_type", EVERY_TYPE if metafunc.config.getoption("--every-family") else SOME)


def test_a_cut_family_does_what_the_page_says(model_type):
    skip_without(model_type)
    found = vars(examine(model_type))
    assert found["verdict"] != "wrong", found
    if recorded()["transformers"] == transformers.__version__:
        written = next(each for each in recorded()["families"] if each["model_type"] == model_type)
        assert (found["verdict"], kinds(found)) == (written["verdict"], kinds(written))
        assert found["fields"] == written["fields"]


def test_a_cut_of_the_files_is_that_of_the_live_model_or_refused(model_type, tmp_path):
    """What the live surgery refuses, as the logits would differ or the model would not run, the files must not give either."""
    outcome = next(each for each in recorded()["families"] if each["model_type"] == model_type)
    if outcome["verdict"] == "not built" or recorded()["transformers"] != transformers.__version__:
        pytest.skip("there is nothing to hold it to")
    torch.manual_seed(0)
    build(model_type).save_pretrained(tmp_path / "dense")
    cuts = outcome["cuts"] or {"[1, 4]": "refused"}
    right = [cut for cut, words in cuts.items() if words == "right"][:1]
    for cut in [*right, *(cut for cut, words in cuts.items() if words != "right")]:
        layers, out = ast.literal_eval(cut), tmp_path / cut
        try:
            cut_checkpoint(tmp_path / "dense", out, layers)
        except SecateurError:
            continue
        assert cut in right, f"layers {cut}: {cuts[cut]}"
        live = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
        remove_layers_(live, layers)
        from_files = AutoModelForCausalLM.from_pretrained(out).state_dict()
        assert from_files.keys() == live.state_dict().keys()
        assert all(torch.equal(value, from_files[name]) for name, value in live.state_dict().items())


def test_the_page_equals_what_the_record_gives():
    assert PAGE.read_text(encoding="utf-8") == page(recorded())


def test_the_record_is_of_every_family_and_none_is_wrong():
    families = recorded()["families"]
    if recorded()["transformers"] == transformers.__version__:
        assert [each["model_type"] for each in families] == list(EVERY_TYPE)
    verdicts = [each["verdict"] for each in families]
    assert "wrong" not in verdicts
    assert verdicts.count("pass") >= 150


def another_layer(model, dropped):
    remove_layers_(model, [(layer + 1) % 6 for layer in dropped])


def stale_configuration(model, dropped):
    count = model.config.num_hidden_layers
    remove_layers_(model, dropped)
    model.config.num_hidden_layers = count


def stale_numbers(model, dropped):
    remove_layers_(model, dropped)
    for layer in model.model.layers:
        layer.self_attn.layer_idx = 0


@pytest.mark.parametrize("cut_", [another_layer, stale_configuration, stale_numbers])
def test_a_wrong_cut_is_called_wrong(cut_):
    assert examine("llama", cut_).verdict == "wrong"


def test_a_family_whose_layers_change_nothing_is_called_wrong(monkeypatch):
    real = AutoModelForCausalLM.from_config

    def without_a_layer(config, **kwargs):
        model = real(config, **kwargs)
        model.model.layers[3].forward = lambda hidden_states, **_: hidden_states
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", without_a_layer)
    outcome = examine("llama")
    assert (outcome.verdict, outcome.reason) == ("wrong", "3 changes nothing")
