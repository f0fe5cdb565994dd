"""Each family of transformers' causal LM mapping, built tiny, cut in several ways, and held to the bypassed model.

`python tests/families/family_sweep.py` runs all of them and writes docs/families.json and docs/families.md;
`python tests/families/family_sweep.py llama gpt2` runs those, prints what came out, and writes it into the record.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
from families.family_models import EVERY_TYPE, build, perturb_, token_ids
from secateur.decoder import Decoder
from secateur.depth import count_field
from secateur.errors import UnsupportedModelError
from secateur.loading import quiet_transformers
from secateur.surgery.live import remove_layers_

CUTS = ((2,), (0,), (5,), (1, 4), (0, 2, 3), (3, 4, 5))
"""In the middle, the first, the last, and three that leave no period of 2 or 3 as it was."""

RECORD = Path(__file__).parents[2] / "docs" / "families.json"
PAGE = RECORD.with_suffix(".md")

_IDS = token_ids()
_ROUNDING = 1e-5
"""Largest difference between float32 logits that rounding explains, as a share of the largest logit."""


@dataclass
class Outcome:
    """What came out for one family."""

    model_type: str
    model_class: str
    verdict: str = "pass"
    """`pass`: every cut is right; `some cuts`: each is right or refused; `refused`; `not built`; `wrong`."""
    reason: str = ""
    """Why the family is refused or not built."""
    cuts: dict[str, str] = field(default_factory=dict)
    """The layers dropped → `right`, or `refused: …`, or `wrong: …`."""
    fields: list[str] = field(default_factory=list)
    """Configuration fields that a cut changed, beside the number of layers."""
    note: str = ""
    """What could not be checked, and why."""


class WrongError(Exception):
    """A cut that was made gives other numbers than it must."""


# ---- one family -------------------------------------------------------------------------------------------------------


def examine(model_type: str, cut_: Callable[[Any, Sequence[int]], None] = remove_layers_) -> Outcome:
    """Build, cut and check one family; whatever goes wrong is in what is returned."""
    outcome = Outcome(model_type, str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]))
    with quiet_transformers(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            model = build(model_type)
            logits(model)
        except Exception as error:  # of any type: the families' own code
            outcome.verdict, outcome.reason = "not built", _words(error)
            return outcome
        outcome.model_class = type(model).__name__
        try:
            _check_layers_matter(model)
        except UnsupportedModelError as error:
            outcome.verdict, outcome.reason = "refused", _steady(error)
            return outcome
        except AssertionError as error:
            outcome.verdict, outcome.reason = "wrong", str(error)
            return outcome
        for dropped in CUTS:
            outcome.cuts[str(list(dropped))] = _cut(model, dropped, cut_, outcome)
    kinds = {words.partition(":")[0] for words in outcome.cuts.values()}
    if "wrong" in kinds:
        outcome.verdict = "wrong"
    elif kinds != {"right"}:
        outcome.verdict = "some cuts" if "right" in kinds else "refused"
    return outcome


def _check_layers_matter(model: Any) -> None:
    """Each layer changes the logits, and none as another does: else equal logits would prove nothing."""
    decoder = Decoder(model)
    without = [logits(model)]
    for layer in range(decoder.num_layers):
        with suppress(Exception), decoder.bypass([layer]):  # where it fails, a later layer needs this one: it matters
            without.append(logits(model))
    for index, each in enumerate(without):
        assert all((each - other).abs().max() > 1e-3 for other in without[:index]), f"{index - 1} changes nothing"


def _cut(dense: Any, dropped: Sequence[int], cut_: Callable[[Any, Sequence[int]], None], outcome: Outcome) -> str:
    model = copy.deepcopy(dense)
    try:
        cut_(model, dropped)
    except UnsupportedModelError as error:
        return f"refused: {_steady(error)}"
    try:
        with Decoder(dense).bypass(dropped):
            expected = logits(dense)
        _check_cut(model, expected, Decoder(dense).num_layers - len(dropped))
        again = _check_reload(model, expected)
        for each in (model, again) if dropped == CUTS[0] else (model,):
            outcome.note = outcome.note or _check_cache(each, expected.abs().max().item())
        _record_fields(dense, model, outcome)
    except WrongError as error:
        return f"wrong: {error}"
    except Exception as error:  # of any type: the family's own code on what we made of it
        return f"wrong: {_words(error)}"
    return "right"


def _check_cut(model: Any, expected: torch.Tensor, count: int) -> None:
    if Decoder(model).num_layers != count:
        raise WrongError(f"{Decoder(model).num_layers} layers are left")
    _check_equal("the cut model's logits", logits(model), expected)


def _check_reload(model: Any, expected: torch.Tensor) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        # What the auto class gives for some composite types has a configuration that it does not take again.
        auto = AutoModelForCausalLM if type(model.config) in MODEL_FOR_CAUSAL_LM_MAPPING else type(model)
        again, report = auto.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    if any(report.values()):
        raise WrongError(f"weights and model do not fit when they are read again: {report}")
    _check_equal("the logits of the model read again", logits(again.eval()), expected)
    return again


def _check_equal(what: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    gap = (found - expected).abs().max().item()
    if not gap <= _ROUNDING * expected.abs().max().item():
        raise WrongError(f"{what} are off by {gap:.3g}")


def _check_cache(model: Any, largest: float) -> str:
    """Generation with and without the cache agree; or why that cannot be asked of this family."""
    tolerance = 10 * _ROUNDING * largest
    if (reason := _cache_reason(model, tolerance)) is None:
        return ""
    for seed in range(6):  # models that nobody cut, from the same configuration; one draw of weights may hide it
        torch.manual_seed(seed)
        fresh = type(model)(copy.deepcopy(model.config)).eval()
        perturb_(fresh)
        if _cache_reason(fresh, tolerance) is not None:
            return (
                "its cache is not checked: models of this class that nobody cut write other text with it than without"
            )
    raise WrongError(reason)


def _cache_reason(model: Any, tolerance: float) -> str | None:
    try:
        cached, plain = (_generated(model, use_cache=use_cache) for use_cache in (True, False))
    except Exception as error:
        return f"generation fails with {_words(error)}"
    for step, (with_cache, without) in enumerate(zip(cached.logits, plain.logits, strict=True)):
        if not (gap := (with_cache - without).abs().max().item()) <= tolerance:
            return f"the cache makes a logit differ by {gap:.3g}"
        if not torch.equal(cached.sequences[:, : 8 + step], plain.sequences[:, : 8 + step]):
            break  # rounding chose another token
    return None


def _generated(model: Any, *, use_cache: bool) -> Any:
    prompt = _IDS[:, :7]
    return model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        suppress_tokens=[0, 1, 2],
        pad_token_id=0,
        eos_token_id=None,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
    )


def _record_fields(dense: Any, model: Any, outcome: Outcome) -> None:
    before, after = (
        json.loads(each.config.get_text_config(decoder=True).to_json_string(False)) for each in (dense, model)
    )
    counts = {count_field(Decoder(model).config), "num_blocks", "architectures", "dtype"}
    changed = {name for name in after if after[name] != before.get(name)} - counts
    outcome.fields = sorted({*outcome.fields, *changed})


def logits(model: Any) -> torch.Tensor:
    """The logits of seeded tokens, without a cache and without our own code."""
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=_IDS, use_cache=False).logits
    return result


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _steady(error: BaseException) -> str:
    """The message without what differs from machine to machine."""
    return re.sub(r" \(?by [-\d.e]+(?: in a logit)?\)?", "", str(error))


# ---- all of them ------------------------------------------------------------------------------------------------------


def sweep(types: Sequence[str], workers: int = 2) -> Iterator[Outcome]:
    """The outcome of each; a family that kills its process ends no other's."""
    context = multiprocessing.get_context("spawn")
    left = list(types)
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for future in as_completed({pool.submit(examine, each) for each in types}):
            if not isinstance(future.exception(), BrokenProcessPool):
                left.remove(future.result().model_type)
                yield future.result()
    for each in left:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                yield pool.submit(examine, each).result()
            except BrokenProcessPool:
                name = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[each])
                yield Outcome(each, name, "not built", "its process died")


def recorded() -> dict[str, Any]:
    """What the last sweep of all families wrote."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return record


def page(record: dict[str, Any]) -> str:
    """docs/families.md."""
    outcomes = [Outcome(**each) for each in record["families"]]
    count = {verdict: sum(each.verdict == verdict for each in outcomes) for verdict in _MEANINGS}
    lines = [
        "# Families",
        "",
        f"What `remove_layers_` does with each of the {len(outcomes)} entries of transformers {record['transformers']}'s causal "
        "language model mapping. Each is built tiny, with six layers and random weights, and cut "
        f"{len(CUTS)} times: layers {', '.join(f'`{list(cut)}`' for cut in CUTS)}. A cut is right if the logits are those of "
        "the model with the layers bypassed (float32, up to rounding), they stay so when the model is saved and read again, "
        "and generation with the cache is generation without. Before, each layer is shown to change the logits.",
        "",
        "This page is written by `python tests/families/family_sweep.py`, which runs them all; "
        "`pytest tests/families --every-family -n 2` holds them all to it (195 tests in six minutes of one core's time), "
        "and without the option some of each kind. "
        "Encoder-decoders such as T5 are not in that mapping, and are refused; decoders of theirs that are (BART's) are cut.",
        "",
        "| outcome | families | meaning |",
        "|---|---|---|",
        *(f"| {verdict} | {count[verdict]} | {_MEANINGS[verdict]} |" for verdict in _MEANINGS),
        "",
        "Fields are those of the configuration that a cut changed, beside the number of layers.",
        "",
        "| model type | class | outcome | fields | reason |",
        "|---|---|---|---|---|",
        *map(_row, outcomes),
    ]
    return "\n".join(lines) + "\n"


_MEANINGS = {
    "pass": "every cut is right",
    "some cuts": "each cut is right, or refused for the reason given",
    "refused": "no cut is made",
    "not built": "transformers does not build or run a tiny one here",
    "wrong": "a cut gives other numbers than it must",
}


def _row(outcome: Outcome) -> str:
    alike: dict[str, list[tuple[str, str]]] = {}
    for cut, words in outcome.cuts.items():
        if words != "right":
            reason = (
                words.partition(": ")[2].removeprefix(f"{outcome.model_class}: ").removesuffix("; drop other layers")
            )
            alike.setdefault(re.sub(r"[\d.]+|\[[^]]*\]", "", reason), []).append((cut, reason))
    reasons = [
        f"{', '.join(f'`{cut}`' for cut, _ in found)}: {found[0][1].removeprefix(f'{outcome.model_class} ')}"
        for found in alike.values()
    ]
    reasons = [*filter(None, [outcome.reason.removeprefix(f"{outcome.model_class}: ")]), *reasons]
    reason = "; ".join(filter(None, [*reasons, outcome.note]))
    fields = ", ".join(f"`{name}`" for name in outcome.fields)
    cells = f"`{outcome.model_type}`", outcome.model_class, outcome.verdict, fields, reason.replace("|", r"\|")
    return f"| {' | '.join(cells)} |"


def main(types: Sequence[str]) -> None:
    """Run the families named, or all, and write the record and the page."""
    families = {each["model_type"]: each for each in recorded()["families"]} if types else {}
    for outcome in sweep(types or EVERY_TYPE):
        families[outcome.model_type] = asdict(outcome)
        print(  # noqa: T201
            json.dumps(asdict(outcome), indent=2) if types else f"{outcome.verdict:10} {outcome.model_type}", flush=True
        )
    record = {"transformers": transformers.__version__, "families": [families[name] for name in sorted(families)]}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(record), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
