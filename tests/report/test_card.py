import re
import shutil

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from secateur.report.card import inherited_metadata, model_card

RECORD = {
    "secateur_version": "0.1.0",
    "command": "secateur prune org/base --data /home/me/private/text.txt --out=/home/me/out --drop 4",
    "model": {"num_layers": 30},
    "method": {"name": "elder"},
    "dropped": [5, 3, 4, 9],
    "data": {"spec": "/home/me/private/text.txt", "tokens": 4096},
    "eval_data": {"spec": "python-docs"},
    "metrics": {"dense": {"perplexity": 20.0, "num_layers": 30}, "pruned": {"perplexity": 25.0, "num_layers": 26}},
}


def test_metadata_for_the_hub():
    data = ModelCard(
        model_card(RECORD, "org/base", inherited={"license": "apache-2.0", "language": "en", "model": 1})
    ).data
    assert data.base_model == "org/base"
    assert data.library_name == "transformers"
    assert data.tags == ["secateur", "pruning", "layer-pruning"]
    assert data.license == "apache-2.0"
    assert data.language == "en"


def test_what_was_measured_is_in_the_model_index():
    results = ModelCard(model_card(RECORD, "org/base")).data.eval_results
    assert [(each.metric_type, each.metric_value, each.dataset_name) for each in results] == [
        ("perplexity", 25.0, "python-docs"), ("dense_perplexity", 20.0, "python-docs"),
    ]  # fmt: skip
    assert results[1].metric_name == "perplexity of the dense model"
    task = {"metric": "accuracy", "value": 0.8, "interval": [0.7, 0.9], "num_items": 300}
    tuned = {
        **RECORD,
        "eval_data": None,
        "data": {"test": {"spec": "/home/me/task.jsonl"}},
        "metrics": {"dense_tuned": {"task": {**task, "value": 0.85}}, "pruned": {"task": task}},
    }
    text = model_card(tuned, "org/base")
    assert [(each.metric_type, each.metric_value, each.dataset_name) for each in ModelCard(text).data.eval_results] == [
        ("accuracy", 0.8, "task.jsonl"), ("dense_accuracy", 0.85, "task.jsonl"),
    ]  # fmt: skip
    assert "| this model | 0.8 | 0.7 to 0.9 |" in text
    assert "| dense, fine-tuned alike | 0.85 | 0.7 to 0.9 |" in text


def test_what_is_no_number_is_in_no_model_index():
    nothing = {**RECORD, "metrics": {"pruned": {"perplexity": float("inf")}}}
    assert ModelCard(model_card(nothing, "org/base")).data.eval_results is None


def test_it_says_what_was_removed_what_it_cost_and_how():
    text = model_card(RECORD, "org/base")
    assert "4 of its 30 decoder layers removed, chosen by the method `elder`" in text
    assert "3–5, 9" in text
    assert "| perplexity | 20.00 | 25.00 | +25.0 % |" in text
    assert "secateur prune org/base --data text.txt --out=out --drop 4" in text
    assert "AutoModelForCausalLM.from_pretrained" in text
    assert "license" not in text.split("---")[1]


@pytest.mark.parametrize("place", ["/home/me/models/base", "./models/base", "~/models/base", r"C:\me\models\base"])
def test_no_path_of_this_machine_is_told(place):
    text = model_card(RECORD, place)
    assert "`base` with" in text
    assert "home" not in text
    assert "models" not in text.replace("language models", "")
    assert ModelCard(text).data.base_model is None


def test_a_relative_directory_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "base").mkdir(parents=True)
    assert ModelCard(model_card(RECORD, "org/base")).data.base_model is None


@pytest.mark.parametrize("name", ["a\n---\nlicense: evil", "`code`", "# heading | pipe", "", "x" * 300])
def test_odd_names_do_not_break_the_card(name):
    card = ModelCard(model_card(RECORD, name))
    assert card.data.base_model is None
    assert card.data.license is None
    assert card.text.lstrip().startswith("# ")


def test_a_command_whose_paths_were_shortened_says_so_and_another_does_not():
    note = "Of paths only the last part is shown"
    assert note in model_card(RECORD, "org/base")
    assert note not in model_card({**RECORD, "command": "secateur demo --seed 1"}, "org/base")


def test_what_a_perplexity_stands_on_is_said_beside_it():
    """The error of a perplexity is that of its logarithm times it: 25 · 0.05."""
    dense, pruned = ({"perplexity": value, "window": 256, "nll_stderr": 0.05} for value in (20.0, 25.0))
    metrics = {"dense": dense, "pruned": pruned}
    measured = {**RECORD, "eval_data": {"spec": "python-docs", "sequences": 24}, "metrics": metrics}
    assert (
        "measured on `python-docs`, 24 windows of 256 tokens that nothing was chosen or trained on; one standard error: "
        "dense ± 1.00, pruned ± 1.25, of each alone (the windows are the same, so their difference is usually surer)."
        in model_card(measured, "org/base")
    )
    assert "measured on `python-docs`." in model_card(RECORD, "org/base")


def test_of_a_local_model_the_base_is_what_its_own_card_has(tmp_path):
    (tmp_path / "README.md").write_text("---\nbase_model: owner/first\n---\n# hello\n")
    inherited = inherited_metadata(tmp_path)
    assert ModelCard(model_card(RECORD, str(tmp_path), inherited=inherited)).data.base_model == "owner/first"
    assert ModelCard(model_card(RECORD, "org/base", inherited=inherited)).data.base_model == "org/base"


def test_a_speed_in_doubt_stands_below_the_table():
    speeds = {"dense": {"num_layers": 30, "decode_tokens_per_second": 10.0}, "pruned": {"num_layers": 24}}
    speeds["pruned"]["decode_tokens_per_second"] = 24.0
    text = model_card({**RECORD, "metrics": speeds}, "org/base")
    assert "measured on `python-docs`. The speed is in doubt: 2.40 times as fast was measured" in text
    assert "| decode tokens/s | 10.00 | 24.00 | +140.0 % (in doubt) |" in text
    assert "in doubt" not in model_card(RECORD, "org/base")


def test_the_table_of_a_tuned_model_has_no_row_of_what_was_not_measured():
    metrics = {"dense": {"num_layers": 30}, "pruned": {"num_layers": 24, "size_bytes": 17_000_000}}
    text = model_card({**RECORD, "metrics": metrics}, "org/base")
    assert "| size on disk | not measured | 17 MB | – |" in text
    assert "| perplexity |" not in text


def test_a_licence_and_a_base_that_are_not_known_are_said_not_to_be(tmp_path):
    unknown, no_base = "Licence unknown: see the base model's", "The base model was a local directory"
    local, hub = model_card(RECORD, str(tmp_path)), model_card(RECORD, "org/base", inherited={"license": "mit"})
    assert unknown in local
    assert no_base in local
    assert unknown not in hub
    assert no_base not in hub


def test_an_empty_record_still_makes_a_card():
    assert "## How to load it" in model_card({}, "org/base")


def test_licence_is_read_from_the_dense_models_card(tmp_path):
    assert inherited_metadata(tmp_path) == {}
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: mine\ntags: [x]\n---\n# hello\n")
    assert inherited_metadata(tmp_path) == {"license": "other", "license_name": "mine"}


@pytest.mark.parametrize("text", ["", "no metadata", "---\n[broken: yaml\n---\n", "---\n- a\n- list\n---\n"])
def test_a_broken_card_gives_no_licence(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert inherited_metadata(tmp_path) == {}


def test_data_sets_of_the_hub_are_named_as_such_and_others_are_not():
    record = {**RECORD, "data": {"spec": "wikitext2"}, "eval_data": {"spec": "hub:owner/text/config:test#body"}}
    data = ModelCard(model_card(record, "org/base")).data
    assert data.datasets == ["Salesforce/wikitext"]
    assert {result.dataset_type for result in data.eval_results} == {"owner/text"}
    assert {(result.dataset_config, result.dataset_split) for result in data.eval_results} == {("config", "test")}
    local = ModelCard(model_card(RECORD, "org/base")).data
    assert local.datasets is None
    assert {result.dataset_type for result in local.eval_results} == {"text"}


def test_a_fine_tuning_and_its_adapter_are_explained():
    tuned = {
        **RECORD,
        "adapter": True,
        "seed": 7,
        "model": {"num_layers": 30, "revision": "abc123"},
        "data": {"train": {"spec": "/home/me/task.jsonl", "examples": 1234}},
        "training": {"settings": {"train": "lora"}, "steps": 231},
    }
    text = model_card(tuned, "org/base")
    assert "Fine-tuned with LoRA on 1,234 examples of `task.jsonl` in 231 steps" in text
    assert "revision `abc123`" in text
    assert "The seed was 7." in text
    assert 'PeftModel.from_pretrained(model, folder, subfolder="adapter")' in text
    assert "PeftModel" not in model_card(RECORD, "org/base")


ASKED = {"prompt": "{text}\n```\nLabel:", "example": "It `rained`.\nLabel:", "has_bos": False}


def asked(**more):
    train = {"spec": "/home/me/task.jsonl", "examples": 9, **ASKED, **more}
    return {**RECORD, "data": {"train": train}, "training": {"settings": {"train": "lora"}, "steps": 231}}


def test_a_task_says_its_prompts_and_labels_and_is_asked_so():
    text = model_card(asked(labels=["good", "so `so`"]), "org/base")
    assert "\n\n    {text}\n    ```\n    Label:\n\nThe answers are `good`, `so 'so'`. An accuracy is" in text
    assert 'tokenizer("It \\x60rained\\x60.\\nLabel:", return_tensors="pt")' in text
    assert "three states" not in text
    assert "and 47 more. An accuracy" in model_card(asked(labels=[str(n) for n in range(77)]), "org/base")
    assert "add_special_tokens" not in text
    assert 'Label:", add_special_tokens=False, return_tensors="pt")' in model_card(asked(has_bos=True), "org/base")


def test_a_task_without_labels_or_prompts_says_none():
    assert "The answers are" not in model_card(asked(labels=[]), "org/base")
    text = model_card(asked(prompt=None, example=None), "org/base")
    assert "How to ask it" not in text
    assert "The three states of matter are" in text


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft
@pytest.mark.parametrize("adapter", [False, True])
def test_the_python_of_the_card_runs_and_loads_the_adapter(adapter, tiny_checkpoint, tmp_path, capsys):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "made")
    if adapter:
        wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(target_modules=["q_proj"]))
        wrapped.save_pretrained(folder / "adapter")
    (code,) = re.findall(r"```python\n(.*?)```", model_card({**RECORD, "adapter": adapter}, "org/base"), re.DOTALL)
    names = {}
    exec(code.replace("path/to/this/folder", str(folder)), names)  # noqa: S102
    assert capsys.readouterr().out.startswith("The three states of matter are")
    assert isinstance(names["model"], PeftModel) == adapter


def test_the_python_of_a_task_s_card_asks_in_its_form(tiny_checkpoint, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", model_card(asked(), "org/base"), re.DOTALL)
    names = {}
    exec(code.replace("path/to/this/folder", str(tiny_checkpoint)), names)  # noqa: S102
    assert names["tokenizer"].decode(names["tokens"]["input_ids"][0]) == ASKED["example"]
