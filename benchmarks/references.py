"""Two baselines against another way of doing the same.

    python benchmarks/references.py run MODEL DATA   # writes results/references.json
    python benchmarks/references.py tables           # rewrites the tables in docs/methods/shortgpt.md and sleb.md

`shortgpt` against optipfair's block influence, on the same batches: the same order. `sleb` with its prefix cache against
the same rounds that run the whole model for every candidate, in one run: the same choice, and how much faster; on MODEL, and
on random weights in the shape of TinyLlama-1.1B, whose head is a smaller share of the work. DATA is a text file or any
other data SPEC.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cells import markdown, with_tables  # noqa: E402  (a script beside this one)

RESULT = HERE / "results" / "references.json"
PAGES = [HERE.parent / "docs" / "methods" / name for name in ("shortgpt.md", "sleb.md")]
SEQUENCES, LENGTH, DROP = 4, 64, 3
LARGE: dict[str, Any] = {
    "vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4,
}  # fmt: skip
"""The shape of TinyLlama-1.1B: the head is 6 % of what a pass computes."""
LARGE_SEQUENCES, LARGE_DROP = 1, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("model")
    run.add_argument("data")
    commands.add_parser("tables")
    options = parser.parse_args()
    if options.command == "run":
        measure(options.model, options.data)
    else:
        for page in PAGES:
            page.write_text(made_anew(page.read_text(encoding="utf-8")), encoding="utf-8")


def measure(source: str, data: str) -> None:
    from secateur.decoder import Decoder
    from secateur.loading import load_model, load_tokenizer
    from secateur.report.record import versions
    from secateur.request import TextSettings
    from secateur.values import write_json

    decoder = Decoder(load_model(source, dtype="float32"))
    text = TextSettings(data=data, sequence_length=LENGTH, num_sequences=SEQUENCES, num_eval_sequences=1)
    windows, _ = text.load(load_tokenizer(source), 0)
    report = {
        "versions": versions(), "sequences": SEQUENCES, "tokens": LENGTH, "drop": DROP, "layers": decoder.num_layers,
        "shortgpt": compare_shortgpt(decoder, windows), "sleb": compare_sleb(decoder, windows, DROP),
    }  # fmt: skip
    del decoder
    report["sleb_large"] = compare_sleb(*large(), LARGE_DROP)
    write_json(RESULT, report)
    print(json.dumps({name: report[name] for name in ("shortgpt", "sleb", "sleb_large")}, indent=1))


def large() -> tuple[Any, Any]:
    """Layers of a random model of a billion parameters, and a window for it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from secateur.data import TokenBatches
    from secateur.decoder import Decoder

    torch.manual_seed(0)
    ids = torch.randint(3, LARGE["vocab_size"], (LARGE_SEQUENCES, LENGTH))
    return Decoder(LlamaForCausalLM(LlamaConfig(**LARGE)).eval()), TokenBatches(ids, LARGE_SEQUENCES, "random")


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


def compare_sleb(decoder: Any, windows: Any, drop: int) -> dict[str, Any]:
    """In turn, twice, so that a machine that slows down slows both."""
    from secateur.methods.sleb import Sleb

    ways = {"cached": lambda: Sleb(sequences=None).plan(decoder, windows, drop=drop).order,
            "whole": lambda: without_cache(decoder, windows, drop)}  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    orders = {}
    for _ in range(2):
        for name, way in ways.items():
            start = time.perf_counter()
            orders[name] = list(way())
            seconds[name].append(time.perf_counter() - start)
    ratios = [whole / cached for whole, cached in zip(seconds["whole"], seconds["cached"], strict=True)]
    return {
        "layers": decoder.num_layers,
        "drop": drop,
        "same_choice": orders["cached"] == orders["whole"],
        "order": orders["cached"],
        "faster": ratios,
        "seconds": seconds,
    }


def without_cache(decoder: Any, windows: Any, drop: int) -> list[int]:
    """The same rounds, each candidate by a pass of the whole model."""
    from secateur.methods.base import Run, calibration_loss

    order: list[int] = []
    for _ in range(drop):
        losses = {}
        for layer in set(range(decoder.num_layers)) - set(order):
            with decoder.bypass({*order, layer}):
                losses[layer] = calibration_loss(decoder, windows, Run())
        order.append(min(losses, key=lambda layer: (losses[layer], layer)))
    return order


def made_anew(page: str) -> str:
    """The page with its tables made from the results."""
    return with_tables(page, table)


def table(name: str) -> str | None:
    """A table of its own; None for those of another script."""
    if not name.endswith("-reference"):
        return None
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
    return markdown(
        ["model", "layers", "choice", "faster than a whole pass for every candidate"],
        [
            [
                title,
                f"{found['drop']} of {found['layers']}",
                "the same" if found["same_choice"] else "differs",
                " and ".join(f"{ratio:.2f} ×" for ratio in found["faster"]),
            ]
            for title, found in (
                ("SmolLM2-135M", report["sleb"]),
                ("random, the shape of TinyLlama-1.1B", report["sleb_large"]),
            )
        ],
    )


if __name__ == "__main__":
    main()
