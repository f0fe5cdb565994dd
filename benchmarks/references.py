"""Two baselines against another way of doing the same.

    python benchmarks/references.py run MODEL DATA    # writes results/references.json
    python benchmarks/references.py sleb MODEL DATA   # the second alone, window of 2048 tokens: results/references_long.json
    python benchmarks/references.py tables            # rewrites the tables in docs/methods/shortgpt.md and sleb.md

`shortgpt` against optipfair's block influence, on the same batches: the same order. `sleb` with its prefix cache against
the same rounds that run the whole model for every candidate, in one run: the same choice, and how much faster. DATA is a
text file or any other data SPEC.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cells import markdown, with_tables  # noqa: E402  (a script beside this one)

RESULT = HERE / "results" / "references.json"
LONG_RESULT = HERE / "results" / "references_long.json"
PAGES = [HERE.parent / "docs" / "methods" / name for name in ("shortgpt.md", "sleb.md")]
SEQUENCES, LENGTH, TURNS, DROP = 4, 64, 2, 3
LONG = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "sleb"):
        command = commands.add_parser(name)
        command.add_argument("model")
        command.add_argument("data")
    commands.add_parser("tables")
    options = parser.parse_args()
    if options.command == "run":
        measure(options.model, options.data, RESULT, SEQUENCES, LENGTH, TURNS, ("shortgpt", "sleb"))
    elif options.command == "sleb":
        measure(options.model, options.data, LONG_RESULT, 1, LONG, 1, ("sleb",))
    else:
        for page in PAGES:
            page.write_text(made_anew(page.read_text(encoding="utf-8")), encoding="utf-8")


def measure(
    source: str, data: str, result: Path, sequences: int, length: int, turns: int, baselines: tuple[str, ...]
) -> None:
    """Compare some baselines on windows of the text, and write the result."""
    from secateur.decoder import Decoder
    from secateur.loading import load_model, load_tokenizer
    from secateur.plan import write_json
    from secateur.report.record import versions
    from secateur.request import TextSettings

    decoder = Decoder(load_model(source, dtype="float32"))
    text = TextSettings(data=data, sequence_length=length, num_sequences=sequences, num_eval_sequences=1)
    windows, _ = text.load(load_tokenizer(source), 0)
    compared = {"shortgpt": compare_shortgpt, "sleb": partial(compare_sleb, turns=turns)}
    found = {name: compared[name](decoder, windows) for name in baselines}
    write_json(result, {
        "versions": versions(), "sequences": sequences, "tokens": length, "drop": DROP, "layers": decoder.num_layers,
        **found,
    })  # fmt: skip
    print(json.dumps(found, indent=1))


def compare_shortgpt(decoder: Any, windows: Any) -> dict[str, Any]:
    from importlib.metadata import version

    from optipfair.pruning.depth import analyze_layer_importance

    from secateur.methods.shortgpt import ShortGPT

    plan = ShortGPT().plan(decoder, windows, drop=decoder.num_layers - 1)
    ours = list(plan.scores or ())
    theirs = analyze_layer_importance(decoder.model, list(windows), show_progress=False)
    return {
        "optipfair": version("optipfair"),
        "same_order": list(plan.order) == sorted(theirs, key=theirs.__getitem__)[:-1],
        "largest_difference": max(abs(ours[layer] - theirs[layer]) for layer in theirs),
    }


def compare_sleb(decoder: Any, windows: Any, turns: int) -> dict[str, Any]:
    """In turn, so that a machine that slows down slows both."""
    from secateur.methods.sleb import Sleb

    ways = {"cached": lambda: Sleb(sequences=None).plan(decoder, windows, drop=DROP).order,
            "whole": lambda: without_cache(decoder, windows)}  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    orders = {}
    for _ in range(turns):
        for name, way in ways.items():
            start = time.perf_counter()
            orders[name] = list(way())
            seconds[name].append(time.perf_counter() - start)
    ratios = [whole / cached for whole, cached in zip(seconds["whole"], seconds["cached"], strict=True)]
    return {
        "same_choice": orders["cached"] == orders["whole"],
        "order": orders["cached"],
        "faster": ratios,
        "seconds": seconds,
    }


def without_cache(decoder: Any, windows: Any) -> list[int]:
    """The same rounds, each candidate by a pass of the whole model."""
    from secateur.methods.base import Run, calibration_loss

    order: list[int] = []
    for _ in range(DROP):
        losses = {}
        for layer in set(range(decoder.num_layers)) - set(order):
            with decoder.bypass({*order, layer}):
                losses[layer] = calibration_loss(decoder, windows, Run())
        order.append(min(losses, key=lambda layer: (losses[layer], layer)))
    return order


def made_anew(page: str) -> str:
    """The page with its tables made from the results."""
    return with_tables(page, table)


def table(name: str) -> str:
    report = json.loads(RESULT.read_text(encoding="utf-8"))
    if name == "shortgpt-reference":
        found = report["shortgpt"]
        return markdown(
            ["against optipfair", "measured"],
            [
                ["version", found["optipfair"]],
                [f"order of all {report['layers']} layers", "the same" if found["same_order"] else "differs"],
                ["largest difference of a score", f"{found['largest_difference']:.1e}"],
            ],
        )
    reports = [report, *([json.loads(LONG_RESULT.read_text(encoding="utf-8"))] if LONG_RESULT.exists() else [])]
    return markdown(
        ["against a whole pass for every candidate", *(_windows(each) for each in reports)],
        [
            [f"choice of {DROP} of {report['layers']} layers",
             *("the same" if each["sleb"]["same_choice"] else "differs" for each in reports)],
            ["faster by", *(" and ".join(f"{ratio:.2f} x" for ratio in each["sleb"]["faster"]) for each in reports)],
        ],
    )  # fmt: skip


def _windows(report: dict[str, Any]) -> str:
    several = "s" if report["sequences"] > 1 else ""
    return f"{report['sequences']} window{several} of {report['tokens']} tokens"


if __name__ == "__main__":
    main()
