"""GradPruner on real tasks: does the model that was pruned on the way keep up with the dense one, fine-tuned alike?

    python benchmarks/gradpruner.py run MODEL DATA     # DATA holds a folder a task with train.jsonl and test.jsonl
    python benchmarks/gradpruner.py gap MODEL DATA     # the same with three times the examples, and c4/train.jsonl to heal on
    python benchmarks/gradpruner.py times MODEL        # time of a step and of inference, 30 against 24 and 18 layers, one run
    python benchmarks/gradpruner.py tables             # rewrite the tables in docs/methods/gradpruner.md from the results

`run` does every cell of `gradpruner_cells.json` that has no result yet, one JSON a cell in results/gradpruner/. Settings were
chosen on the validation part of the training data (cells without `test`); the test data is measured in cells with it only.
`gap` asks what closes the gap between 18 and 30 layers: its cells (`gradpruner_gap_cells.json`) have several learning rates, of
which validation chooses one, and only the model trained with that is tested.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cells import load_results, markdown, run_cells, with_tables  # noqa: E402  (a script beside this one)

RESULTS = HERE / "results" / "gradpruner"
TIMES = HERE / "results" / "gradpruner_times.json"
CELLS = HERE / "gradpruner_cells.json"
GAP_RESULTS = HERE / "results" / "gradpruner_gap"
GAP_CELLS = HERE / "gradpruner_gap_cells.json"
PAGE = HERE.parent / "docs" / "methods" / "gradpruner.md"

EXAMPLES = {"num_train": 480, "num_validation": 100, "num_test": 300}
TUNING: dict[str, Any] = {
    "epochs": 2, "batch_size": 8, "micro_batch": 8, "max_length": 256,
    "trainer": {"train_sampling_strategy": "group_by_length"},  # less padding
}  # fmt: skip
HEALING = {"sequence_length": 256, "num_sequences": 1200, "num_eval_sequences": 8}  # windows of general text
COMPLETION = 3  # tokens that are learnt of an example, in the measurement of times
TASKS = ("fpb", "sms_spam", "arc_easy")
RATES = {"full": 1e-4, "lora": 2e-3}

OURS = ("then", "heal", "distill")  # options of a variant that are this script's, not the method's
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # name: what the table says, method, options
    "dense": ("dense", "", {}),
    "gradpruner": ("`gradpruner`, 3 layers merged", "gradpruner", {}),
    "no-merge": ("`gradpruner`, no merge", "gradpruner", {"merge": "none"}),
    "merge-all": ("`gradpruner`, all layers merged", "gradpruner", {"merged_layers": None}),
    "sign-igia": ("`gradpruner`, merge `sign-igia`", "gradpruner", {"merge": "sign-igia"}),
    "norm": ("`gradpruner`, norms, no merge", "gradpruner", {"merge": "none", "reduction": "norm"}),
    "absorb": ("`gradpruner`, absorb, no merge", "gradpruner", {"merge": "none", "absorb": "projection"}),
    "absorb-heal": (
        "`gradpruner`, absorb, no merge, healed on the task's text",
        "gradpruner",
        {"merge": "none", "absorb": "projection", "heal": 1},
    ),
    "absorb-distill": (
        "`gradpruner`, absorb, no merge, distilled on general text",
        "gradpruner",
        {"merge": "none", "absorb": "projection", "distill": 921_600},
    ),
    "absorb-merge": ("`gradpruner`, absorb, 3 layers merged", "gradpruner", {"absorb": "projection"}),
    "shortgpt": ("`shortgpt`", "shortgpt", {}),
    "shortgpt-absorb": ("`shortgpt`'s layers, absorb", "shortgpt", {"then": "absorb"}),
    "tail": ("`tail`", "tail", {}),
    "random": ("`random`", "random", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    gap = commands.add_parser("gap")
    for command in (run, gap):
        command.add_argument("model")
        command.add_argument("data", type=Path)
        command.add_argument("--only", nargs="*", help="ids of cells")
        command.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"], help="of the passes")
    times = commands.add_parser("times")
    times.add_argument("model")
    commands.add_parser("tables")
    options = parser.parse_args()
    if options.command in ("run", "gap"):
        cells, results = (CELLS, RESULTS) if options.command == "run" else (GAP_CELLS, GAP_RESULTS)
        run_cells(
            cells, results, lambda cell: run_cell(options.model, options.data, cell, options.precision), options.only
        )
    elif options.command == "times":
        measure_times(options.model)
    else:
        PAGE.write_text(made_anew(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


# ---- running -----------------------------------------------------------------------------------------------------------


def run_cell(source: str, data: Path, cell: dict[str, Any], precision: str) -> dict[str, Any]:
    """Fine-tune one model, pruned on the way or not, on one task; measure it."""
    from secateur.data.task import TaskSettings, windows_of
    from secateur.decoder import Decoder
    from secateur.evaluation.tasks import task_score
    from secateur.loading import autocast_dtype, load_model, load_tokenizer
    from secateur.methods import METHODS, Run
    from secateur.report.record import versions
    from secateur.surgery.absorb import absorb_
    from secateur.surgery.live import remove_layers_
    from secateur.training.rows import rows_of
    from secateur.training.supervised import FineTuning

    seed = cell.get("seed", 0)
    _, name, options = VARIANTS[cell["variant"]]
    model, tokenizer = load_model(source, dtype="float32"), load_tokenizer(source)
    decoder = Decoder(model)
    folder = data / cell["task"]
    task = TaskSettings(
        data=str(folder / "train.jsonl"), test_data=str(folder / "test.jsonl"), **(EXAMPLES | cell.get("examples", {}))
    ).load(tokenizer, 0)  # fmt: skip
    tuning = FineTuning(
        train=cell["train"], **{"learning_rate": RATES[cell["train"]], **TUNING, **cell.get("tuning", {})}
    )
    rows = rows_of(task.train, model, tokenizer, max_length=tuning.max_length)
    run = Run(seed=seed, precision=autocast_dtype(precision, decoder.device))
    result: dict[str, Any] = {"versions": versions(), "data": _described(task)}
    result["precision"] = str(run.precision or model.dtype).removeprefix("torch.")

    start = time.perf_counter()
    if name:
        method = METHODS[name](
            **{key: value for key, value in options.items() if key not in OURS}, **cell.get("options", {})
        )
        windows = windows_of(task.train, tokenizer, sequence_length=256, num_sequences=128)
        steps = tuning.num_steps(len(rows))
        plan = method.plan_on_task(decoder, rows, windows, drop=cell["drop"], run=run, total_steps=steps)
        result["order"], result["layers"] = list(plan.order), list(plan.dropped)
        result["scores"], result["stability"] = list(plan.scores or ()), plan.provenance.get("stability")
        result["merges"] = {str(layer): into for layer, into in plan.merges.items()}
        if method.prepares:
            method.prepare_(decoder, windows, plan, run=run)
        if options.get("then") == "absorb":
            absorb_(decoder, plan.dropped, windows, precision=run.precision)
        remove_layers_(model, plan.dropped)
    if "distill" in options:
        result["distilling"] = distill_(Decoder(model), source, data, options["distill"], run)
    result["choosing_seconds"] = round(time.perf_counter() - start, 1)
    result["validation_untuned"] = task_score(model, tokenizer, task.validation).value
    if "heal" in options:
        result["healing_seconds"] = heal_(model, rows, tuning, options["heal"], run)
    tuned, tuning_result = tuned_(model, tokenizer, task, rows, tuning, cell.get("rates"), run)
    result |= tuning_result
    if cell.get("test"):
        test = task_score(tuned, tokenizer, task.test)
        result["test"], result["test_interval"], result["test_items"] = test.value, list(test.interval), test.num_items
        result["outcomes"] = [int(outcome) for outcome in test.outcomes]
    return result


def tuned_(
    model: Any, tokenizer: Any, task: Any, rows: Any, tuning: Any, rates: Sequence[float] | None, run: Any
) -> tuple[Any, dict[str, Any]]:
    """The fine-tuned model and what it came to; of several learning rates, the one that is best on the validation part."""
    from secateur.decoder import Decoder
    from secateur.evaluation.tasks import task_score
    from secateur.training.supervised import fine_tune_

    best, result, validations = None, {}, {}
    for learning_rate in rates or [tuning.learning_rate]:
        settings = replace(tuning, learning_rate=learning_rate)
        with tempfile.TemporaryDirectory() as scratch:
            tuned, training = fine_tune_(
                Decoder(copy.deepcopy(model) if rates else model), rows, settings=settings, work=Path(scratch),
                precision=run.precision, seed=run.seed, save=False,
            )  # fmt: skip
        validation = validations[f"{learning_rate:g}"] = task_score(tuned, tokenizer, task.validation).value
        if best is None or validation > result["validation"]:
            best = tuned
            result = {
                "tuning": vars(settings).copy(), "training_seconds": training["seconds"],
                "loss": training["losses"][-1]["loss"], "validation": validation,
            }  # fmt: skip
    return best, result | ({"validation_of_rates": validations} if rates else {})


def heal_(model: Any, rows: Any, tuning: Any, epochs: float, run: Any) -> float:
    """Train all weights on the whole text of the examples, prompts too; the seconds that took."""
    from secateur.decoder import Decoder
    from secateur.training.supervised import fine_tune_

    whole = [{**row, "labels": row["input_ids"]} for row in rows]
    healing = replace(tuning, train="full", learning_rate=RATES["full"], epochs=epochs)
    with tempfile.TemporaryDirectory() as scratch:
        _, healed = fine_tune_(
            Decoder(model), whole, settings=healing, work=Path(scratch), precision=run.precision, save=False
        )
    return float(healed["seconds"])


def distill_(decoder: Any, source: str, data: Path, tokens: int, run: Any) -> dict[str, Any]:
    """Train the pruned model on general text towards the dense one's predictions; how much, and for how long."""
    from secateur.loading import load_model, load_tokenizer
    from secateur.request import TextSettings
    from secateur.training.recovery import Recovery, recover_

    text, _ = TextSettings(data=str(data / "c4" / "train.jsonl"), **HEALING).load(load_tokenizer(source), run.seed)
    report = recover_(
        decoder, text, settings=Recovery(recover="distill", recover_tokens=tokens, recover_batch=8),
        teacher=load_model(source, dtype="float32"), precision=run.precision, seed=run.seed,
    )  # fmt: skip
    return {key: report[key] for key in ("tokens", "rate", "passes", "seconds")}


def _described(task: Any) -> dict[str, Any]:
    """Where the data lay says nothing; its fingerprint does."""
    described: dict[str, Any] = task.describe()
    for part in described.values():
        part["spec"] = "/".join(Path(part["spec"]).parts[-2:])
    return described


def measure_times(source: str, rounds: int = 5) -> None:
    """Step and inference times of the dense model and of 24 and 18 of its layers, in turn, so that noise hits all alike."""
    import torch

    from secateur.decoder import Decoder
    from secateur.loading import autocast_dtype, load_model
    from secateur.report.record import versions
    from secateur.surgery.live import remove_layers_
    from secateur.training.completion import IGNORED, LearntPositions
    from secateur.values import write_json

    models = {}
    for drop in (0, 6, 12):
        models[drop] = load_model(source, dtype="float32")
        if drop:
            remove_layers_(models[drop], range(8, 8 + drop))
    device = Decoder(models[0]).device
    ids = torch.randint(100, 40_000, (8, 64), generator=torch.Generator().manual_seed(0)).to(device)
    labels = ids.clone()
    labels[:, :-COMPLETION] = IGNORED
    precision = autocast_dtype("auto", device)
    autocast = torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None)
    learnt, batch = LearntPositions(), {"input_ids": ids, "labels": labels}
    seconds: dict[str, dict[int, list[float]]] = {"training": {}, "all": {}, "inference": {}}

    def timed(kind: str, drop: int) -> None:
        model = models[drop]
        inputs = learnt(model, batch) if kind == "training" else batch
        start = time.perf_counter()
        if kind == "inference":
            with torch.no_grad():
                model(input_ids=ids, use_cache=False, logits_to_keep=COMPLETION)
        else:
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
            with autocast:
                loss = model(**inputs).loss
            loss.backward()
            optimizer.step()
            model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds[kind].setdefault(drop, []).append(time.perf_counter() - start)

    for _ in range(rounds + 1):  # the first warms up
        for kind in seconds:
            for drop in models if kind != "all" else (0,):
                timed(kind, drop)
    report: dict[str, Any] = {"versions": versions(), "tokens": ids.numel(), "rounds": rounds}
    pairs = [
        (f"{kind}_{drop}", seconds[kind][drop], seconds[kind][0])
        for kind in ("training", "inference")
        for drop in (6, 12)
    ]
    for name, ours, others in [*pairs, ("completion", seconds["training"][0], seconds["all"][0])]:
        ratios = [one / other for one, other in zip(ours[1:], others[1:], strict=True)]
        report[name] = {
            "median": statistics.median(ratios), "least": min(ratios), "most": max(ratios),
            "seconds": [statistics.median(others[1:]), statistics.median(ours[1:])],
        }  # fmt: skip
    write_json(TIMES, report)
    print(json.dumps({key: value for key, value in report.items() if isinstance(value, dict)}, indent=1))


# ---- tables ------------------------------------------------------------------------------------------------------------


def made_anew(page: str) -> str:
    """The page with its tables made from the results."""
    results = load_results(CELLS, RESULTS)
    return with_tables(page, lambda name: table(name, results))


def table(name: str, results: list[dict[str, Any]]) -> str:
    """`TASK-TRAIN`, such as `fpb-full`, a row a variant and a count of layers; `summary`; `gap`; `times`; `cost`; `settings`."""
    if name == "times":
        return times_table()
    if name == "cost":
        from igia_cost import table as cost_table

        return cost_table()
    if name == "summary":
        return summary(results)
    if name == "gap":
        return gap_table(load_results(GAP_CELLS, GAP_RESULTS))
    if name == "settings":
        rows = [row for row in results if not row.get("test")]
        return markdown(
            ["cell", "learning rate", "epochs", "validation accuracy"],
            [
                [
                    row["id"],
                    f"{row['tuning']['learning_rate']:g}",
                    f"{row['tuning']['epochs']:g}",
                    f"{row['validation']:.3f}",
                ]
                for row in rows
            ],
        )
    task, _, train = name.rpartition("-")
    rows = [row for row in results if (row["task"], row["train"]) == (task, train) and row.get("test")]
    dense = {rate(row): row for row in rows if row["variant"] == "dense"}
    head = [
        "what",
        "dropped",
        "rate",
        "layers",
        "stability",
        "before tuning (validation)",
        "validation",
        "test",
        "95 %",
        "test, of dense",
    ]
    body = [
        [
            VARIANTS[row["variant"]][0],
            str(row.get("drop", 0)),
            f"{rate(row):g}",
            " ".join(map(str, row.get("layers", []))) or "none",
            "" if row.get("stability") is None else f"{row['stability']:.2f}",
            f"{row['validation_untuned']:.3f}",
            f"{row['validation']:.3f}",
            f"{row['test']:.3f}",
            f"{row['test_interval'][0]:.3f} to {row['test_interval'][1]:.3f}",
            f"{100 * (row['test'] - dense[rate(row)]['test']):+.1f} points"
            if rate(row) in dense and row["variant"] != "dense"
            else "",
        ]
        for row in rows
    ]
    return markdown(head, body)


def summary(
    results: list[dict[str, Any]], trainings: Collection[str] = RATES, variants: Collection[str] = VARIANTS
) -> str:
    """All tasks beside each other, at the rate that validation chose: a row a training, a number of layers and a variant."""
    times = json.loads(TIMES.read_text(encoding="utf-8"))
    tested = [row for row in results if row.get("test") and rate(row) == RATES[row["train"]]]
    scores = {(row["train"], row.get("drop", 0), row["variant"], row["task"]): row["test"] for row in tested}
    body = []
    for train in trainings:
        for drop, variant in [(0, "dense"), *((drop, variant) for drop in (12, 6) for variant in variants)]:
            found = {task: scores.get((train, drop, variant, task)) for task in TASKS}
            if all(score is None for score in found.values()):
                continue
            dense = {task: scores.get((train, 0, "dense", task)) for task in TASKS}
            points = {
                task: 100 * (score - against)
                for task, score in found.items()
                if drop and score is not None and (against := dense[task]) is not None
            }
            shown = [
                "–"
                if found[task] is None
                else f"{found[task]:.3f}" + (f" ({points[task]:+.1f})" if task in points else "")
                for task in TASKS
            ]
            mean = f"{statistics.mean(points.values()):+.1f}" if len(points) == len(TASKS) else ""
            ratios = [f"{times[f'{kind}_{drop}']['median']:.2f}" if drop else "1" for kind in ("training", "inference")]
            body.append([VARIANTS[variant][0], train, str(drop), *shown, mean, *ratios])
    head = ["what", "training", "dropped", *TASKS, "mean, points", "training time", "inference time"]
    return markdown(head, body)


def gap_table(results: list[dict[str, Any]]) -> str:
    """With more examples: a row a variant, and in brackets the points to the dense model with their 95 % interval."""
    rows = {(row["variant"], row["task"]): row for row in results}
    body = []
    for variant in dict.fromkeys(variant for variant, _ in rows):
        found = {task: rows.get((variant, task)) for task in TASKS}
        drop = max(row.get("drop", 0) for row in found.values() if row)
        shown = [_tested(row, rows.get(("dense", task))) for task, row in found.items()]
        body.append([VARIANTS[variant][0], str(drop), *shown])
    return markdown(["what", "dropped", *TASKS], body)


def _tested(row: dict[str, Any] | None, dense: dict[str, Any] | None) -> str:
    """A score, and its difference to the dense model's on the same items, with the interval of the items' differences."""
    if row is None or dense is None or row is dense:
        return "–" if row is None else f"{row['test']:.3f}"
    from secateur.evaluation.intervals import Z, influence, standard_error

    differences = [100 * (one - other) for one, other in zip(row["outcomes"], dense["outcomes"], strict=True)]
    margin = Z * standard_error(influence(differences, [1] * len(differences)))
    return f"{row['test']:.3f} ({statistics.mean(differences):+.1f} ± {margin:.1f})"


def rate(row: dict[str, Any]) -> float:
    """The learning rate of a cell's fine-tuning."""
    return float(row["tuning"]["learning_rate"])


def times_table() -> str:
    if not TIMES.exists():
        return "not measured"
    times = json.loads(TIMES.read_text(encoding="utf-8"))
    what = {f"{kind}_{drop}": f"{kind}, {drop} of 30 layers dropped, of the dense model's"
            for kind in ("training", "inference") for drop in (6, 12)}  # fmt: skip
    what["completion"] = "training the dense model, logits of completions only, of the same with all logits"
    body = [
        [title, f"{times[name]['median']:.2f}", f"{times[name]['least']:.2f} to {times[name]['most']:.2f}"]
        for name, title in what.items()
        if name in times
    ]
    return markdown(["time of a step", "median", "spread"], body)


if __name__ == "__main__":
    main()
