"""ELDeR on a real model: does it choose well, and does preparing beat recovering? Results are data, tables come from them.

    python benchmarks/elder.py run MODEL DATA       # DATA holds train.txt, validation.txt and test.txt, or wikitext2's files
    python benchmarks/elder.py tables               # rewrite the tables in docs/methods/elder.md from the results

`run` does every cell of `elder_cells.json` that has no result yet; each is one JSON file in results/elder/, written atomically,
so it can be stopped and started at will, and cells added meanwhile. Settings were chosen on the validation text; cells marked
`test` are also measured on the test text.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cells import load_results, markdown, run_cells, with_tables  # noqa: E402  (a script beside this one)

RESULTS = HERE / "results" / "elder"
CELLS = HERE / "elder_cells.json"
PAGE = HERE.parent / "docs" / "methods" / "elder.md"

WINDOW = 256
CALIBRATION_WINDOWS = 128
VALIDATION_WINDOWS = 48
TEST_WINDOWS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("model")
    run.add_argument("data", type=Path)
    run.add_argument("--only", nargs="*", help="ids of cells")
    commands.add_parser("tables")
    options = parser.parse_args()
    if options.command == "run":
        texts = {name: find_text(options.data, name) for name in ("train", "validation", "test")}
        run_cells(CELLS, RESULTS, lambda cell: run_cell(options.model, texts, cell), options.only)
    else:
        PAGE.write_text(made_anew(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


# ---- running -----------------------------------------------------------------------------------------------------------


def find_text(data: Path, split: str) -> str:
    """The one text file of a split, such as `train.txt` or `train_1mb.txt`."""
    found = sorted(data.glob(f"{split}*.txt"))
    if len(found) != 1:
        raise SystemExit(f"error: {data} holds {len(found)} files {split}*.txt; one is needed")
    return str(found[0])


def run_cell(source: str, texts: dict[str, str], cell: dict[str, Any]) -> dict[str, Any]:
    """Choose layers, or prepare for the removal of the layers another cell chose; then measure."""
    import torch

    from secateur.data import calibration_and_held_out, evaluation_windows
    from secateur.decoder import Decoder
    from secateur.evaluation.perplexity import perplexity
    from secateur.loading import autocast_dtype, load_model, load_tokenizer
    from secateur.methods import METHODS, Run
    from secateur.plan import PruningPlan
    from secateur.report.record import versions

    model, tokenizer = load_model(source, dtype="float32"), load_tokenizer(source)
    decoder = Decoder(model)
    calibration, validation = calibration_and_held_out(
        texts["train"], tokenizer, eval_data=texts["validation"], sequence_length=WINDOW,
        num_sequences=CALIBRATION_WINDOWS, num_eval_sequences=VALIDATION_WINDOWS, batch_size=4, seed=cell.get("seed", 0),
    )  # fmt: skip
    run = Run(seed=cell.get("seed", 0), precision=autocast_dtype("auto", decoder.device))
    method = METHODS[cell["method"]](**cell.get("options", {}))
    result: dict[str, Any] = {
        "versions": versions(),
        "calibration": {**calibration.describe(), "spec": Path(texts["train"]).name},
        "options": method.options(),
    }

    start = time.perf_counter()
    if "layers_from" in cell:
        chosen = json.loads((RESULTS / f"{cell['layers_from']}.json").read_text(encoding="utf-8"))
        plan = PruningPlan(num_layers=decoder.num_layers, order=tuple(chosen["order"]))
        report = method.prepare_(decoder, calibration, plan, run=run)
        result["training_tokens"] = report.get("training", {}).get("tokens", 0)
        result["absorb"] = report.get("absorb")
        result["losses"] = [round(step["loss"], 4) for step in report.get("training", {}).get("losses", [])]
    else:
        plan = method.plan(decoder, calibration, drop=cell["drop"], run=run)
        result["scores"] = [round(score, 5) for score in plan.scores or ()]
    result["seconds"] = round(time.perf_counter() - start, 1)
    result["order"], result["layers"] = list(plan.order), list(plan.dropped)

    if "layers_from" in cell and (method.final_gate() > 0 or cell.get("test")):
        with decoder.gate(torch.full((decoder.num_layers,), method.final_gate()), layers=plan.dropped):
            result["validation_before_cut"] = perplexity(model, validation).perplexity
    with decoder.bypass(plan.dropped):
        result["validation"] = perplexity(model, validation).perplexity
        if cell.get("test"):
            test = evaluation_windows(
                texts["test"], tokenizer, sequence_length=WINDOW, num_sequences=TEST_WINDOWS, batch_size=4
            )
            measured = perplexity(model, test)
            result["test"], result["test_nll_stderr"] = measured.perplexity, measured.stderr
    return result


# ---- tables ------------------------------------------------------------------------------------------------------------


def made_anew(page: str) -> str:
    """The page with its tables made from the results."""
    results = load_results(CELLS, RESULTS)
    return with_tables(page, lambda name: table(name, results))


def table(name: str, results: list[dict[str, Any]]) -> str:
    """One Markdown table: `choosing` or `preparing`."""
    rows = [result for result in results if result["table"] == name]
    by_id = {result["id"]: result for result in results}
    if name == "choosing":
        head = ["what", "layers dropped", "cost", "validation", "test", "of SLEB's"]
        reference = by_id.get("sleb", {})
        body = [
            [row["title"], " ".join(map(str, row["layers"])), cost(row), number(row.get("validation")),
             number(row.get("test")), ratio(row, reference)]
            for row in rows
        ]  # fmt: skip
    else:
        head = [
            "what",
            "layers of",
            "trained tokens",
            "before the cut",
            "validation",
            "test",
            "of best cut",
            "of best recovery",
        ]
        cuts = [by_id[name] for name in ("sleb", "shortgpt") if name in by_id]
        cut = min(cuts, key=lambda result: result["validation"], default={})
        body = [
            [
                row["title"],
                by_id[row["layers_from"]]["title"],
                f"{row['training_tokens']:,}",
                *(number(row.get(text)) for text in ("validation_before_cut", "validation", "test")),
                ratio(row, cut),
                ratio(row, best_recovery(results, row)),
            ]
            for row in rows
        ]
    return markdown(head, body)


def best_recovery(results: list[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any]:
    """The best of the recoveries that were trained on exactly as many tokens."""
    equals = [
        result for result in results if result.get("recovery") and result["training_tokens"] == row["training_tokens"]
    ]
    return min(equals, key=lambda result: result["validation"], default={})


def cost(row: dict[str, Any]) -> str:
    """What choosing takes, in thousand tokens forward through the dense model; a backward pass for the gates counts 1.2."""
    from secateur.methods import METHODS

    data: Any = SimpleNamespace(
        num_sequences=CALIBRATION_WINDOWS, sequence_length=WINDOW, num_tokens=CALIBRATION_WINDOWS * WINDOW, batch_size=4
    )
    method = METHODS[row["method"]](**row["options"])
    tokens = method.cost(len(row["scores"]), row["drop"], data).choose_tokens
    return f"{tokens / 1000:.0f}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def ratio(row: dict[str, Any], reference: dict[str, Any]) -> str:
    """On the test text where both were measured there, else on the validation text."""
    split = "test" if row.get("test") and reference.get("test") else "validation"
    if not row.get(split) or not reference.get(split):
        return ""
    return f"{row[split] / reference[split]:.2f}"


if __name__ == "__main__":
    main()
