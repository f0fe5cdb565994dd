"""What was done to the weights that stay, in words: for the verdict, the page and the card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from secateur.places import shortened
from secateur.report.comparison import format_number, layer_ranges

__all__ = ["WeightChange", "changed_in_words", "dense_in_words", "weight_changes"]

_TRAINED = {
    "full": "all weights trained",
    "lora": "low-rank adapters trained, then merged",
    "partial": "the last layers trained",
}
_RECOVERED = {**_TRAINED, "distill": "all weights trained, the dense model as teacher"}


@dataclass(frozen=True, kw_only=True)
class WeightChange:
    """One thing that was done."""

    when: str
    what: str
    how: str


def weight_changes(record: Mapping[str, Any]) -> list[WeightChange]:
    """All that was done to the weights, in order; empty where what stays is as it was.

    Args:
        record: the run's record.
    """
    return [*_prepared(record), *_recovered(record), *_tuned(record)]


def changed_in_words(record: Mapping[str, Any]) -> str:
    """The same as a clause, such as `what stays was trained on 512 tokens of python-docs, the dense model was not`.

    Empty where nothing was done. A fine-tuning is not in it: it has its own sentence wherever it is spoken of.

    Args:
        record: the run's record.
    """
    preparation, recovery = record.get("preparation") or {}, record.get("recovery") or {}
    done = []
    if preparation.get("absorb") or preparation.get("maps"):
        done.append("fitted to stand for what went")
    if preparation.get("merge") or preparation.get("folds"):
        done.append("merged with what went")
    before, after = ((each or {}).get("tokens") for each in (preparation.get("training"), recovery))
    if before and after:
        done.append(f"trained on {before:,} tokens{_of(record)} before the cut and {after:,} tokens after it")
    elif before or after:
        done.append(f"trained on {before or after:,} tokens{_of(record)}")
    trained = ", the dense model was not" if before or after else ""
    return f"what stays was {' and '.join(done)}{trained}" if done else ""


def dense_in_words(record: Mapping[str, Any]) -> str:
    """What a reader should know of the comparison where what stays was trained on text; empty where it was not.

    Args:
        record: the run's record.
    """
    reports = (record.get("recovery"), (record.get("preparation") or {}).get("training"))
    if not any((report or {}).get("steps") for report in reports) or record.get("training"):
        return ""
    said = "The dense model was not trained: its figures are those of the model as it came."
    text, other = ((record.get(name) or {}).get("spec") for name in ("data", "eval_data"))
    if text and text == other:
        said += (
            " Perplexity is measured on other windows of the text that was trained on, where training helps most: on other "
            "texts and tasks more may be lost."
        )
    return said


def _of(record: Mapping[str, Any]) -> str:
    spec = (record.get("data") or {}).get("spec")
    return f" of {shortened(str(spec))}" if spec else ""


def _prepared(record: Mapping[str, Any]) -> Iterator[WeightChange]:
    preparation, options = record.get("preparation") or {}, (record.get("method") or {}).get("options") or {}
    for each in preparation.get("absorb") or preparation.get("maps") or ():
        first, last = each["layers"]
        if each.get("into") is None:  # a run at the very front has no layer before it
            continue
        yield WeightChange(
            when="before the cut",
            what=f"{_layers(range(first, last + 1))} absorbed by layer {each['into']}",
            how=f"relative error of its output {each['error_before']:.3g} → {each['error_after']:.3g}",
        )
    for each in preparation.get("folds") or ():
        yield WeightChange(
            when="before the cut", what=f"{_layers(each['layers'])} folded into layer {each['into']}",
            how="their differences to it were added",
        )  # fmt: skip
    for each in preparation.get("merge") or ():
        share = f" of {each['entries']:,}" if each.get("entries") else ""
        added = f"{each['added']:,}{share} entries" if "added" in each else "the entries that the plan's masks mark"
        yield WeightChange(
            when="before the cut", what=f"layer {each['layer']} merged into layer {each['into']}",
            how=f"{added} were added",
        )  # fmt: skip
    training = preparation.get("training") or {}
    if training.get("steps"):
        what = _TRAINED.get(str(options.get("train")), "trained")
        if options.get("distil"):
            what += ", the dense model as teacher"
        yield WeightChange(when="before the cut", what=what, how=_how(record, training, options.get("learning_rate")))


def _recovered(record: Mapping[str, Any]) -> Iterator[WeightChange]:
    recovery, metrics = record.get("recovery") or {}, record.get("metrics") or {}
    if not recovery.get("steps"):
        return
    how = _how(record, recovery, recovery.get("rate"))
    cut, pruned = ((metrics.get(name) or {}).get("perplexity") for name in ("cut", "pruned"))
    if cut and pruned:
        how += f": perplexity {format_number(cut)} → {format_number(pruned)}"
    yield WeightChange(when="after the cut", what=_RECOVERED.get(str(recovery.get("kind")), "trained"), how=how)


def _tuned(record: Mapping[str, Any]) -> Iterator[WeightChange]:
    training, train = record.get("training") or {}, (record.get("data") or {}).get("train") or {}
    if not training.get("steps"):
        return
    settings = training.get("settings") or {}
    text = f" of {shortened(str(train['spec']))}" if train.get("spec") else ""
    examples = f" on {train['examples']:,} examples{text}" if train.get("examples") else ""
    yield WeightChange(
        when="after the cut",
        what="fine-tuned " + {"lora": "with LoRA", "full": "with all weights"}.get(str(settings.get("train")), ""),
        how=f"{training['steps']:,} steps{examples}{_rate(settings.get('learning_rate'))}",
    )


def _how(record: Mapping[str, Any], training: Mapping[str, Any], rate: float | None) -> str:
    tokens = f" on {training['tokens']:,} tokens{_of(record)}" if training.get("tokens") else ""
    return f"{training['steps']:,} steps{tokens}{_rate(rate)}"


def _rate(rate: float | None) -> str:
    return "" if rate is None else f", learning rate up to {rate:g}"


def _layers(layers: Any) -> str:
    numbers = sorted(layers)
    return f"layer{'s' if len(numbers) > 1 else ''} {layer_ranges(numbers)}"
