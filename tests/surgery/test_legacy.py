import json

import pytest
from transformers import AutoConfig, AutoTokenizer, Gemma3TextConfig, LlamaConfig, LlavaConfig, PhiConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from secateur.surgery.checkpoint import save_checkpoint
from secateur.surgery.files import cut_checkpoint
from secateur.surgery.legacy import with_legacy_fields

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "rope_theta": 5e5}


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 1e5}), {"rope_theta": 1e5}),
        (
            LlamaConfig(rope_parameters=YARN),
            {"rope_theta": 5e5, "rope_scaling": {name: YARN[name] for name in YARN if name != "rope_theta"}},
        ),
        (
            PhiConfig(rope_parameters={"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.25}),
            {"rope_theta": 2e4, "partial_rotary_factor": 0.25},
        ),
    ],
)
def test_older_readers_find_the_rotary_fields_and_transformers_reads_the_same_as_before(tmp_path, config, fields):
    text = with_legacy_fields(config.to_json_string(), type(config))
    raw = json.loads(text)
    assert {name: raw[name] for name in fields} == fields
    read = []
    for each in (config.to_json_string(), text):
        (tmp_path / "config.json").write_text(each)
        read.append(AutoConfig.from_pretrained(tmp_path).to_dict())
    assert read[1] == read[0]
    assert read[1]["rope_parameters"] == config.to_dict()["rope_parameters"]


def test_the_text_model_of_a_composite_one_gets_them_too():
    config = LlavaConfig(text_config=LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 7e5}))
    assert json.loads(with_legacy_fields(config.to_json_string(), type(config)))["text_config"]["rope_theta"] == 7e5


@pytest.mark.filterwarnings("ignore")
def test_every_causal_configuration_is_read_as_without_the_old_fields(tmp_path):
    helped = set()
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        for parameters in ({"rope_type": "default", "rope_theta": 777.0}, YARN | {"partial_rotary_factor": 0.5}):
            read = []
            try:
                config = AutoConfig.for_model(name, rope_parameters=dict(parameters))
                texts = [config.to_json_string(), with_legacy_fields(config.to_json_string(), type(config))]
                for text in texts:
                    (tmp_path / "config.json").write_text(text)
                    read.append(AutoConfig.from_pretrained(tmp_path).to_dict())
            except Exception:
                assert not read, name  # what could be read can be read
                continue
            assert read[0] == read[1], name
            if "rope_theta" in json.loads(texts[1]) and "rope_theta" not in json.loads(texts[0]):
                helped.add(name)
    assert {"llama", "mistral", "qwen2", "qwen3", "olmo2", "phi", "glm4", "mixtral"} <= helped
    assert "gpt_neox" not in helped  # it would take the old fields for the new ones


def test_what_older_readers_know_already_or_could_not_tell_is_left_as_it_is():
    for text, kind in (
        (Gemma3TextConfig().to_json_string(), Gemma3TextConfig),
        (json.dumps({"rope_parameters": {"rope_theta": 3}, "rope_theta": 2}), LlamaConfig),
        (json.dumps({"hidden_size": 8, "rope_parameters": None}), LlamaConfig),
        (json.dumps({"hidden_size": "wide", "rope_parameters": {"rope_theta": 3}}), LlamaConfig),
    ):
        assert with_legacy_fields(text, kind) == text


def test_a_cut_checkpoint_has_them(tiny_checkpoint, tmp_path):
    cut_checkpoint(tiny_checkpoint, tmp_path / "cut", [1])
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["rope_theta"] == 10_000.0


def test_a_saved_tokenizer_has_a_class_that_older_readers_know_and_is_read_as_before(
    tiny_model, tiny_tokenizer, tmp_path
):
    tiny_tokenizer.save_pretrained(tmp_path / "before")
    assert "TokenizersBackend" in (tmp_path / "before" / "tokenizer_config.json").read_text()
    (tmp_path / "saved").mkdir()
    save_checkpoint(tiny_model, tiny_tokenizer, tmp_path / "saved")
    raw = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert raw["tokenizer_class"] == "PreTrainedTokenizerFast"
    before, saved = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("before", "saved"))
    assert type(saved) is type(before)
    assert saved("What is it?").input_ids == before("What is it?").input_ids
    assert saved.init_kwargs.keys() == before.init_kwargs.keys()
