"""The model card: the README.md of a pruned checkpoint."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secateur.data.text import dataset_on_hub, part_on_hub
from secateur.places import is_place, last_part, shortened
from secateur.report.comparison import compared, doubt_of_speed, layer_ranges, measured_in_words
from secateur.report.record import BY_HAND
from secateur.report.weights import dense_in_words, weight_changes

__all__ = ["inherited_metadata", "model_card"]

_INHERITED = ("license", "license_name", "license_link", "language")
_READ = (*_INHERITED, "base_model")


def model_card(record: Mapping[str, Any], base_model: str, *, inherited: Mapping[str, Any] | None = None) -> str:
    """The text of README.md: metadata for the hub, what was removed, what it cost, how it was made and is loaded.

    Paths of this machine are shortened to their last part: a card is read elsewhere.

    Args:
        record: `run_record(…)`; what is missing in it is left out.
        base_model: the dense model's hub id, or its directory; of a directory what its own card has as its base is metadata.
        inherited: `inherited_metadata(…)` of where the dense model's card is.
    """
    from huggingface_hub import ModelCardData

    on_hub = _is_hub_id(base_model)
    name = base_model if on_hub else last_part(base_model)
    results = _results(record)
    data = ModelCardData(
        base_model=base_model if on_hub else (inherited or {}).get("base_model"),
        model_name=f"{name}, {len(record.get('dropped') or [])} layers shorter" if results else None,
        eval_results=results or None,
        datasets=_datasets(record) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["secateur", "pruning", "layer-pruning"],
        **{key: value for key, value in (inherited or {}).items() if key in _INHERITED and value},
    )
    unmeasured = _unmeasured(record, name if on_hub else None)
    body = [_table(record), _task(record), unmeasured, _asking(record), _making(record), _loading(record)]
    sections = [_title(record, name), *body, _limits(record, data)]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def inherited_metadata(directory: str | Path) -> dict[str, Any]:
    """Licence, language and base model as the dense model's card, README.md in `directory`, has them; empty without one."""
    from huggingface_hub import ModelCard

    card = Path(directory, "README.md")
    if not card.is_file():
        return {}
    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # a stranger's card, in whatever state: the licence is then simply not known
        return {}
    return {key: data[key] for key in _READ if data.get(key)}


def _is_hub_id(model: str) -> bool:
    """Whether `model` names a repository of the hub, and no directory here."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return not is_place(model) and not Path(model).exists()


def _code(value: Any) -> str:
    """`value` as inline code on one line, whatever is in it."""
    text = " ".join(str(value).split()).replace("`", "'")
    return f"`{text}`"


def _title(record: Mapping[str, Any], name: str) -> str:
    layers, dropped = (record.get("model") or {}).get("num_layers"), record.get("dropped") or []
    method = (record.get("method") or {}).get("name")
    removed = f"{len(dropped)} of its {layers} decoder layers" if layers else f"{len(dropped)} decoder layers"
    chosen = f", chosen by the method {_code(method)}" if method not in (None, BY_HAND) else ""
    return (
        f"# {_plain(name)}, {len(dropped)} layers shorter\n\n"
        f"{_code(name)} with {removed} removed{chosen}. Removed (counted from 0): {layer_ranges(dropped)}."
    )


def _plain(name: str) -> str:
    """A name in a heading: no Markdown, no second line."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(name.split()))


def _table(record: Mapping[str, Any]) -> str:
    metrics = record.get("metrics") or {}
    if not metrics:
        return ""
    rows = [f"| {row.metric} | {row.dense} | {row.pruned} | {row.change} |" for row in compared(metrics)]
    text = (record.get("eval_data") or {}).get("spec")
    notes = [f"Perplexity is measured on {_code(shortened(str(text)))}{measured_in_words(record)}."] if text else []
    notes += [doubt] if (doubt := doubt_of_speed(metrics)) else []
    table = "\n".join(["| | dense | pruned | change |", "|---|---:|---:|---:|", *rows])
    return "\n\n".join([table, *([" ".join(notes)] if notes else [])])


def _task(record: Mapping[str, Any]) -> str:
    """Every model's figure on the task's test data."""
    metrics = record.get("metrics") or {}
    tasks = {name: found["task"] for name, found in metrics.items() if "task" in found}
    if not tasks:
        return ""
    names = {"dense_tuned": "dense, fine-tuned alike", "pruned": "this model"}
    rows = [
        f"| {names.get(name, name)} | {task['value']:.4g} | {task['interval'][0]:.4g} to {task['interval'][1]:.4g} |"
        for name, task in tasks.items()
    ]
    first = next(iter(tasks.values()))
    head = f"On {first['num_items']:,} test items of the task:\n\n| | {first['metric']} | 95 % interval |\n|---|---:|---:|\n"
    return head + "\n".join(rows)


def _asking(record: Mapping[str, Any]) -> str:
    """How the prompts of the task look that it was fine-tuned on, and which labels may follow."""
    train = (record.get("data") or {}).get("train") or {}
    if not train.get("prompt"):
        return ""
    # Indented by four, it is code whatever is in it.
    form = "\n".join(f"    {line}" for line in str(train["prompt"]).splitlines())
    said = (
        f"## How to ask it\n\nIts prompts in training had this form, with the columns of the data in braces:\n\n{form}"
    )
    labels = train.get("labels") or []
    if labels:
        rest = f" and {len(labels) - _MOST_LABELS} more" if len(labels) > _MOST_LABELS else ""
        said += (
            f"\n\nThe answers are {', '.join(map(_code, labels[:_MOST_LABELS]))}{rest}. An accuracy is the share of items "
            "where the model finds the right one likeliest of these; writing freely, it may write something else."
        )
    return said


_MOST_LABELS = 30
"""That are named on the card; the record has all."""


def _measured(record: Mapping[str, Any]) -> bool:
    """Whether it is known how good the model is."""
    pruned = (record.get("metrics") or {}).get("pruned") or {}
    return "perplexity" in pruned or "task" in pruned


def _unmeasured(record: Mapping[str, Any], dense: str | None) -> str:
    """That nothing was measured, and what measures it; empty where something was."""
    if _measured(record):
        return ""
    return _UNMEASURED.format(dense=shlex.quote(dense or "path/to/the/dense/model"))


_UNMEASURED = """## Not measured

Nothing was measured of this model: not what removing the layers cost, and not how fast it is. Nor was it run beside the dense
model. These commands do that:

```sh
secateur check {dense} path/to/this/folder
secateur eval {dense} path/to/this/folder --data wikitext2
secateur bench {dense} path/to/this/folder
```"""


def _results(record: Mapping[str, Any]) -> list[Any]:
    """What was measured, as the hub's model-index takes it: of the dense model under a name of its own."""
    metrics = record.get("metrics") or {}
    pruned, dense = metrics.get("pruned") or {}, metrics.get("dense") or {}
    found: list[tuple[str, str, Any, str]] = []
    text = (record.get("eval_data") or {}).get("spec")
    if text:
        found = [
            ("perplexity", "perplexity", pruned.get("perplexity"), text),
            ("dense_perplexity", "perplexity of the dense model", dense.get("perplexity"), text),
        ]
    test = ((record.get("data") or {}).get("test") or {}).get("spec")
    if test and "task" in pruned:
        name = pruned["task"]["metric"]
        found.append((name, name.replace("_", " "), pruned["task"].get("value"), test))
        of_dense = (metrics.get("dense_tuned") or {}).get("task") or {}
        found.append((f"dense_{name}", f"{name} of the dense model, fine-tuned alike", of_dense.get("value"), test))
    if not (found and _finite(found[0][2])):
        return []
    return [_result(*each, pruned) for each in found if _finite(each[2])]


def _result(kind: str, name: str, value: float, spec: str, measured: Mapping[str, Any]) -> Any:
    """One figure of a model on a text or task."""
    from huggingface_hub import EvalResult

    config, split = part_on_hub(spec)
    window = {key: measured[key] for key in ("window", "stride") if measured.get(key)}
    return EvalResult(
        task_type="text-generation", dataset_type=dataset_on_hub(spec) or "text", dataset_name=shortened(spec),
        dataset_config=config, dataset_split=split, metric_type=kind, metric_name=name, metric_value=round(float(value), 6),
        metric_args=window or None,
    )  # fmt: skip


def _datasets(record: Mapping[str, Any]) -> list[str]:
    """The data sets of the hub that the model was calibrated or trained on."""
    data = record.get("data") or {}
    specs = [data.get("spec"), (data.get("train") or {}).get("spec")]
    return [name for spec in specs if spec and (name := dataset_on_hub(str(spec)))]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _making(record: Mapping[str, Any]) -> str:
    data = record.get("data") or {}
    lines = []
    if record.get("command"):
        words = shlex.split(str(record["command"]))
        command = shlex.join(map(shortened, words))
        lines.append("```sh\n" + " ".join(command.split()).replace("`", "'") + "\n```\n")
        if command != shlex.join(words):
            lines.append("Of paths only the last part is shown: put your own there.")
    if data.get("spec"):
        tokens = f", {data['tokens']:,} tokens" if isinstance(data.get("tokens"), int) else ""
        lines.append(f"Calibration text: {_code(shortened(str(data['spec'])))}{tokens}.")
    if (record.get("method") or {}).get("name") == BY_HAND:
        lines.append("The layers were named by their numbers: no text was read, and nothing was calibrated.")
    lines += _weights(record)
    lines += _tuned(record)
    revision, seed = (record.get("model") or {}).get("revision"), record.get("seed")
    if revision:
        lines.append(f"The dense model is that of revision {_code(revision)}.")
    if seed is not None:
        lines.append(f"The seed was {seed}.")
    made = f"secateur {record.get('secateur_version') or ''}".strip()
    lines.append(f"Made with {made}; the whole record is in `secateur/record.json`.")
    if "--config" in str(record.get("command")):
        lines.append("The settings that `--config` read are in `secateur/request.json`.")
    return "## How it was made\n\n" + "\n".join(lines)


def _weights(record: Mapping[str, Any]) -> list[str]:
    """What was done to the weights, and what that means for the comparison."""
    lines = [f"- {change.when}, {change.what}: {change.how}" for change in weight_changes(record)]
    undone = (record.get("preparation") or {}).get("left_undone")
    rest = [f"What {undone} also does to weights before the cut was not done."] if undone else []
    if not lines:
        return ["The layers that stay have the weights that they had in the dense model.", *rest]
    rest += [said] if (said := dense_in_words(record)) else []
    return ["\nThe weights of the layers that stay were changed:\n", *lines, "", *rest]


def _tuned(record: Mapping[str, Any]) -> list[str]:
    """What it was fine-tuned on, and how."""
    training, train = record.get("training") or {}, (record.get("data") or {}).get("train") or {}
    if not (training and train):
        return []
    settings = training.get("settings") or {}
    weights = {"lora": "with LoRA", "full": "with all weights"}.get(str(settings.get("train")), "")
    return [
        f"Fine-tuned {weights} on {train['examples']:,} examples of {_code(shortened(str(train['spec'])))} in "
        f"{training['steps']:,} steps, with the loss on the completions; the best epoch was chosen on validation examples."
    ]


def _loading(record: Mapping[str, Any]) -> str:
    """Python that loads the model and asks it what its task is, if it has one; with the adapter, where there is one."""
    train = (record.get("data") or {}).get("train") or {}
    prompt = json.dumps(train.get("example") or "The three states of matter are", ensure_ascii=False)
    options = ", add_special_tokens=False" if train.get("has_bos") else ""  # it is written out
    adapter = _WITH_ADAPTER if record.get("adapter") else ("", "")
    return _LOADING.format(*adapter, prompt.replace("`", "\\x60"), options)


_WITH_ADAPTER = (
    "from peft import PeftModel\n",
    'model = PeftModel.from_pretrained(model, folder, subfolder="adapter")  # what was trained\n',
)

_LOADING = """## How to load it

```python
{}from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"  # or this repository's id on the hub
model = AutoModelForCausalLM.from_pretrained(folder)
{}tokenizer = AutoTokenizer.from_pretrained(folder)

tokens = tokenizer({}{}, return_tensors="pt")
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=32)[0], skip_special_tokens=True))
```"""


def _limits(record: Mapping[str, Any], data: Any) -> str:
    """What to expect of it, and what is not known of its licence and its base."""
    unknown = []
    if not data.license:
        unknown.append("- Licence unknown: see the base model's, which holds for this one too.")
    if not data.base_model:
        unknown.append("- The base model was a local directory: where it comes from is not known here.")
    measured = "Nothing here was measured beyond the figures above." if _measured(record) else "Nothing was measured."
    return "\n".join([_LIMITS.format(measured=measured), *unknown])


_LIMITS = """## Limits

- Removing layers loses something, and more than the perplexity says: it is known to harm knowledge, reasoning over several steps
  and long chains of thought, and may harm safety training. Try the model on your own task before you rely on it.
- What it writes can be fluent and wrong. {measured}
- The limits, biases and licence of the dense model hold here too."""
