"""How near `secateur estimate` comes: peak memory and time of real runs beside what was estimated from the configuration.

    python benchmarks/estimates.py run MODEL DATA     # DATA as for elder.py; writes results/estimates.json, on an idle machine
    python benchmarks/estimates.py card CONFIG TOKENIZER DATA   # on a GPU, random weights; results/estimates_gpu.json
    python benchmarks/estimates.py cells MODEL        # what ran on a GPU already; writes results/estimates_cells.json
    python benchmarks/estimates.py tables             # rewrites the tables in docs/estimating.md from these

Each run is `secateur.prune` or `secateur.tune` in a process of its own, as with SECATEUR_RETURN_MEMORY=1, without speed and
samples, which are not estimated. Time is that of choosing, preparing, training and measuring; loading and writing depend on the
disk.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cells import markdown, with_tables  # noqa: E402  (a script beside this one)

RESULT = HERE / "results" / "estimates.json"
CARD_RESULT = HERE / "results" / "estimates_gpu.json"
CELLS_RESULT = HERE / "results" / "estimates_cells.json"
COMPARISON = HERE / "results" / "comparison_full_length"
PAGE = HERE.parent / "docs" / "estimating.md"

DROP = 8
TEXT: dict[str, Any] = {"sequence_length": 256, "num_sequences": 16, "num_eval_sequences": 16, "batch_size": 4}
NOT_ESTIMATED = ("load", "cut", "cut and prove", "prove")
TASK = "pubmedqa"
EXAMPLES = {"num_train": 48, "num_validation": 6, "num_test": 12}
SIZE = {"mean_tokens": 345, "completion_tokens": 2}
"""Of its examples; some are longer than `max_length`, and the answers to choose among are single tokens."""
TUNING = {"epochs": 1, "max_length": 512}
RUNS: dict[str, dict[str, Any]] = {
    # what the table says: method, its settings, recovery, text, dtype; or how to fine-tune
    "`shortgpt`": {"method": "shortgpt"},
    "`shortgpt`, windows of 1,024 tokens": {"method": "shortgpt", "text": {"sequence_length": 1024, "num_sequences": 8,
                                                                        "num_eval_sequences": 4}},
    "`shortened-taylor`": {"method": "shortened-taylor"},
    "`gradpruner`": {"method": "gradpruner", "settings": {"merge": "none"}},
    "`elder`": {"method": "elder", "settings": {"joint_steps": 8, "measured_start": False, "shortlist": 1}},
    "`elder-published`": {"method": "elder-published", "settings": {"first_steps": 2, "round_steps": 1}},
    "`shortgpt`, `--recover lora`": {"method": "shortgpt", "recovery": {"recover": "lora"}},
    "`shortgpt`, `--recover full`": {"method": "shortgpt", "recovery": {"recover": "full"}},
    "`shortgpt`, `--recover distill`": {"method": "shortgpt", "recovery": {"recover": "distill"}},
    "`shortgpt`, bfloat16": {"method": "shortgpt", "dtype": "bfloat16"},
    "`tune`, `--train lora`": {"method": "gradpruner", "settings": {"scoring_steps": 4}, "tuning": {"train": "lora", **TUNING}},
    "`tune`, `--train full`": {"method": "gradpruner", "settings": {"scoring_steps": 4}, "tuning": {"train": "full", **TUNING}},
}  # fmt: skip
CHECKPOINTED = {"activation_checkpointing": True}
CARD_TEXT: dict[str, Any] = {"sequence_length": 256, "num_sequences": 128, "num_eval_sequences": 64, "batch_size": 4}
CARD_RUNS: dict[str, dict[str, Any]] = {
    # the recipes of docs/scaling.md for one GPU, dropping a quarter
    "`elder`, LoRA, activations computed again": {
        "method": "elder", "settings": {"train": "lora", "trainer": CHECKPOINTED}, "text": CARD_TEXT,
    },
    "`sleb`": {"method": "sleb", "text": CARD_TEXT},
    "`shortgpt`, `--recover lora`": {"method": "shortgpt", "recovery": {"recover": "lora"}, "text": CARD_TEXT},
}  # fmt: skip

CELLS = [
    ("elder", "none"), ("elder-published", "none"), ("shortgpt", "lora"), ("shortgpt", "full"), ("shortgpt", "distill"),
]  # fmt: skip
"""Of the comparison at 2048 tokens: those that train, which is their peak; the choice may be another cell's."""
TRAININGS = ("prepare", "recover")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("model")
    card = commands.add_parser("card")
    card.add_argument("config", type=Path, help="folder of a config.json")
    card.add_argument("tokenizer", help="of any model whose vocabulary is no larger")
    card.add_argument("--sheet", default="h200", help="whose data sheet is held against the measured time, too")
    for command in (run, card):
        command.add_argument("data", type=Path)
        command.add_argument("--only", nargs="*", help="what the table calls them")
        command.add_argument("--memory-only", action="store_true", help="keep no times: the machine is not idle")
    commands.add_parser("cells").add_argument("model", help="whose configuration is asked")
    commands.add_parser("tables")
    options = parser.parse_args()
    if options.command == "run":
        measure(options.model, options.data, RUNS, RESULT, options.only, memory_only=options.memory_only)
    elif options.command == "card":
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder, options.config.name)
            write_random_model(options.config, options.tokenizer, model)
            measure(str(model), options.data, CARD_RUNS, CARD_RESULT, options.only, options.sheet, options.memory_only)
    elif options.command == "cells":
        hold_cells(options.model)
    else:
        PAGE.write_text(made_anew(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def measure(
    model: str, data: Path, runs: dict[str, dict[str, Any]], result: Path, only: list[str] | None, sheet: str | None = None,
    memory_only: bool = False,
) -> None:  # fmt: skip
    """Every run in a process of its own, its estimate just before it."""
    from secateur.report.record import versions
    from secateur.values import write_json

    found = json.loads(result.read_text(encoding="utf-8"))["rows"] if result.exists() else {}
    processes = multiprocessing.get_context("spawn")
    for name, asked in runs.items():
        if only and name not in only:
            continue
        with processes.Pool(1) as pool:
            estimated = pool.apply(estimate_one, (model, asked, sheet))
        with processes.Pool(1) as pool:
            measured = pool.apply(run_one, (model, str(data), asked))
        found[name] = {"estimated": estimated, "measured": measured}
        if memory_only:
            found[name] = {side: {"memory_bytes": values["memory_bytes"]} for side, values in found[name].items()}
        print(name, json.dumps(found[name]), flush=True)
        rows = {key: found[key] for key in runs if key in found}
        write_json(result, {"model": Path(model).resolve().name, "versions": versions(), "rows": rows})


def hold_cells(model: str) -> None:
    """The memory of cells of the comparison that were made on a GPU, beside what is estimated for them."""
    from secateur.estimation.estimate import PROCESS_BYTES
    from secateur.forecast import forecast
    from secateur.methods import METHODS
    from secateur.training.recovery import Recovery
    from secateur.values import write_json

    rows = []
    for name, kind in CELLS:
        (file,) = COMPARISON.glob(f"cells/*--{name}--drop{DROP}--{kind}--seed0.json")
        cell = json.loads(file.read_text(encoding="utf-8"))
        asked, tokens = cell["request"]["text"], cell["tokens"]["trained_after_cut"]
        found = forecast(
            model,
            method=METHODS[name](),
            drop=DROP,
            recovery=Recovery(recover=kind, recover_tokens=tokens or None),
            hardware="h200",
            precision="bf16",
            sequence_length=asked["sequence_length"],
            num_sequences=asked["num_sequences"],
            batch_size=asked["batch_size"],
        )
        most = max(phase["memory_bytes"] for phase in found["phases"] if phase["phase"] in TRAININGS) - PROCESS_BYTES
        measured = cell["timings"]["peak_memory_bytes"]
        device = cell["versions"]["device"]
        rows.append({"method": name, "recover": kind, "estimated": most, "allocated": measured, "device": device})
    write_json(CELLS_RESULT, {"model": Path(model).resolve().name, "rows": rows})


def write_random_model(config: Path, tokenizer: str, out: Path) -> None:
    """A checkpoint of that shape with random weights, in the configuration's dtype, made on the GPU if there is one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    shape = AutoConfig.from_pretrained(config)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(shape, dtype=shape.dtype)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(out)


def estimate_one(model: str, asked: dict[str, Any], sheet: str | None) -> dict[str, Any]:
    """What `secateur estimate` says; the time by a card's data sheet too, if one is named."""
    from secateur.allocator import return_freed_memory
    from secateur.estimation.hardware import hardware_named
    from secateur.estimation.task_size import TaskSize
    from secateur.forecast import forecast, forecast_tuning
    from secateur.methods import METHODS
    from secateur.training.recovery import Recovery
    from secateur.training.settings import FineTuning

    return_freed_memory()
    method = METHODS[asked["method"]](**asked.get("settings", {}))
    if "tuning" in asked:
        found = forecast_tuning(
            model,
            task=TaskSize(**EXAMPLES, **SIZE),
            drop=DROP,
            method=method,
            tuning=FineTuning(**asked["tuning"]),
            speed=False,
        )
    else:
        found = forecast(
            model,
            method=method,
            drop=DROP,
            recovery=Recovery(**asked.get("recovery", {})),
            dtype=asked.get("dtype", "auto"),
            **{**TEXT, **asked.get("text", {})},
        )
    estimated = {
        "memory_bytes": found["memory_bytes"],
        "seconds": found["seconds"],
        "hardware": found["hardware"]["name"],
    }
    if "tuning" in asked:
        estimated["phases"] = {phase["phase"]: [phase["memory_bytes"], phase["seconds"]] for phase in found["phases"]}
    if sheet:
        flops = sum(phase["flops"] for phase in found["phases"])
        estimated |= {"sheet": sheet, "sheet_seconds": flops / hardware_named(sheet).flops_per_second}
    return estimated


def run_one(model: str, data: str, asked: dict[str, Any]) -> dict[str, Any]:
    """The real thing."""
    from secateur.allocator import return_freed_memory
    from secateur.methods import METHODS
    from secateur.pipeline import prune
    from secateur.request import Target, TextSettings
    from secateur.training.recovery import Recovery

    return_freed_memory()
    if "tuning" in asked:
        return tune_one(model, Path(data, TASK), asked)
    train, test = (str(min(Path(data).rglob(f"{part}*.txt"))) for part in ("train", "test"))
    with tempfile.TemporaryDirectory() as scratch:
        record = prune(
            model,
            method=METHODS[asked["method"]](**asked.get("settings", {})),
            text=TextSettings(data=train, eval_data=test, **{**TEXT, **asked.get("text", {})}),
            target=Target(drop=DROP),
            recovery=Recovery(**asked.get("recovery", {})),
            out=Path(scratch) / "out",
            dtype=asked.get("dtype", "auto"),
            prompts=(),
            speed=False,
        ).record
    return measured_of(record)


def tune_one(model: str, data: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The same of a fine-tuning."""
    from secateur.data.task import TaskSettings
    from secateur.methods import METHODS
    from secateur.request import Target
    from secateur.training.settings import FineTuning
    from secateur.tuning import tune

    with tempfile.TemporaryDirectory() as scratch:
        record = tune(
            model,
            method=METHODS[asked["method"]](**asked.get("settings", {})),
            task=TaskSettings(data=str(data / "train.jsonl"), test_data=str(data / "test.jsonl"), **EXAMPLES),
            target=Target(drop=DROP),
            tuning=FineTuning(**asked["tuning"]),
            out=Path(scratch) / "out",
            speed=False,
        ).record
    return measured_of(record)


def measured_of(record: dict[str, Any]) -> dict[str, Any]:
    """What a run took, of what is estimated."""
    timings = {name: seconds for name, seconds in record["timings"].items() if name not in NOT_ESTIMATED}
    return {"memory_bytes": record["peak_memory_bytes"], "seconds": sum(timings.values()), "timings": record["timings"]}


# ---- the table -----------------------------------------------------------------------------------------------------------


def made_anew(page: str) -> str:
    """The page with its table made from the result."""
    return with_tables(page, table)


def table(name: str) -> str:
    """A row a run."""
    if name == "estimates-cells":
        return cells_table()
    result = {"estimates": RESULT, "estimates-gpu": CARD_RESULT}[name]
    if not result.exists():
        return "Not measured yet."
    rows = json.loads(result.read_text(encoding="utf-8"))["rows"]
    head = ["run", "memory, GB: estimated", "measured", "off by", "time, s: estimated", "measured", "off by"]
    body = []
    for run, row in rows.items():
        estimated, measured = row["estimated"], row["measured"]
        cells = [run, *_compared(estimated["memory_bytes"] / 1e9, measured["memory_bytes"] / 1e9)]
        timed = "seconds" in measured
        cells += _compared(estimated["seconds"], measured["seconds"]) if timed else ["not on an idle machine", "", ""]
        if name == "estimates-gpu":
            by_sheet, _, off = _compared(estimated["sheet_seconds"], measured["seconds"])
            cells += [by_sheet, off]
        body.append(cells)
    if name == "estimates-gpu":
        head += ["by data sheet", "off by"]
    return markdown(head, body)


def cells_table() -> str:
    """A row a cell."""
    rows = json.loads(CELLS_RESULT.read_text(encoding="utf-8"))["rows"]
    body = [
        [
            f"`{row['method']}`" + ("" if row["recover"] == "none" else f", `--recover {row['recover']}`"),
            *_compared(row["estimated"] / 1e9, row["allocated"] / 1e9),
        ]
        for row in rows
    ]
    return markdown(["cell", "memory, GB: estimated", "allocated", "off by"], body)


def _compared(estimated: float, measured: float) -> list[str]:
    return [f"{estimated:.3g}", f"{measured:.3g}", f"{round(100 * (estimated / measured - 1)):+d} %"]


if __name__ == "__main__":
    main()
