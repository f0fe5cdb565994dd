"""Throughput of reading, writing and training against what the device can do at most, dense and pruned.

    python benchmarks/ceiling.py MODEL                # writes results/ceiling.json; leave the machine alone meanwhile
    python benchmarks/ceiling.py MODEL --dtype bfloat16 --batch-size 64 --result benchmarks/results/ceiling_gpu.json    # on a GPU
    python benchmarks/ceiling.py tables               # rewrites the tables in docs/speed.md from both

The ceilings are measured in the same run: floating-point operations a second of one large matrix product in the weights' dtype,
and bytes a second of reading a large tensor. Reading and training are held to the first, writing to the second. Training is a
whole step of AdamW on all weights; its work is 6·N a token, N the weights that are multiplied, attention left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cells import markdown, of_result, with_tables  # noqa: E402  (a script beside this one)
from speed import cut_models  # noqa: E402

RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "speed.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL|tables", help="a checkpoint to measure, or the word tables")
    parser.add_argument("--dtype", default="auto", help="of the weights")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256, help="of a prompt, and of a sequence in training")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--result", type=Path, default=RESULTS / "ceiling.json")
    options = parser.parse_args()
    if options.model == "tables":
        PAGE.write_text(made_anew(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        measure(**vars(options))


def measure(model: str, *, dtype: str, batch_size: int, tokens: int, repeats: int, result: Path) -> None:
    """Measure the ceilings and the models in one run, and write the result."""
    import torch

    from secateur.benchmark import compare
    from secateur.evaluation.speed import SpeedSettings
    from secateur.report.record import versions
    from secateur.values import write_json

    models = cut_models(model, dtype)
    dense = models["dense"]
    flops, bandwidth = ceilings(dense.dtype, dense.device, repeats)
    settings = SpeedSettings(batch_sizes=(batch_size,), prompt_tokens=tokens, repeats=repeats)
    record = compare(models, settings)
    rows = []
    for about in record["models"]:
        speed = about["speeds"][0]
        width = torch.empty(0, dtype=dense.dtype).element_size()
        trained = trained_per_second(models[about["model"]], batch_size, tokens, repeats)
        step_bytes = about["weight_bytes"] / batch_size + about["cache_bytes"]
        for phase, speed_of, work, ceiling in (
            ("reading", speed["prefill_tokens_per_second"], about["prefill_flops"] / tokens, flops),
            ("writing", speed["decode_tokens_per_second"], step_bytes, bandwidth),
            ("training", trained, 6 * about["weight_bytes"] / width, flops),
        ):
            rows.append({
                "model": about["model"], "phase": phase, "tokens_per_second": speed_of, "work_per_token": work,
                "of_ceiling": speed_of * work / ceiling,
            })  # fmt: skip
    found = {
        "model": Path(model).resolve().name, "dtype": str(dense.dtype).removeprefix("torch."),
        "batch_size": batch_size, "tokens": tokens, "repeats": repeats, "machine": record["machine"],
        "flops_per_second": flops, "bytes_per_second": bandwidth, "rows": rows, "versions": versions(),
    }  # fmt: skip
    write_json(result, found)
    print(f"{setting(found)}\n\n{throughput(found)}")


def ceilings(dtype: Any, device: Any, repeats: int) -> tuple[float, float]:
    """FLOP/s of a matrix product, and bytes/s of reading memory."""
    import torch

    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    product = 2 * side**3 / fastest(lambda: left @ right, device, repeats)
    block = torch.zeros(2**30 if device.type == "cuda" else 2**28, dtype=torch.uint8, device=device).view(torch.int64)
    return product, block.nbytes / fastest(block.sum, device, repeats)


def fastest(work: Callable[[], Any], device: Any, repeats: int) -> float:
    """Seconds of the fastest of several turns, after two to warm up: a ceiling is what can be had."""
    return min(seconds_of(work, device) for _ in range(repeats + 2))


def seconds_of(work: Callable[[], Any], device: Any) -> float:
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def trained_per_second(model: Any, batch_size: int, tokens: int, repeats: int) -> float:
    """Tokens a second of training steps: forward, backward and AdamW on all weights (with a learning rate of 0)."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    ids = torch.randint(100, model.config.get_text_config().vocab_size, (batch_size, tokens)).to(model.device)

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    model.train()
    step()
    median = statistics.median(seconds_of(step, model.device) for _ in range(repeats))
    model.eval()
    return ids.numel() / median


# ---- the table -----------------------------------------------------------------------------------------------------------


def made_anew(page: str) -> str:
    """The page with its tables made from the results; those of other scripts stay as they are."""
    return with_tables(page, table)


def table(name: str) -> str | None:
    """`ceiling` and `ceiling_gpu`, with `-setting` behind it: on what it was measured; None for the tables of another script."""
    return of_result(name, RESULTS, throughput, setting) if name.startswith("ceiling") else None


def throughput(record: dict[str, Any]) -> str:
    """A row a model and phase."""
    dense = {row["phase"]: row for row in record["rows"] if row["model"] == "dense"}
    body = [
        [
            row["model"],
            row["phase"],
            f"{row['tokens_per_second']:,.0f}",
            f"{row['tokens_per_second'] / dense[row['phase']]['tokens_per_second']:.2f}×",
            f"{100 * row['of_ceiling']:.0f} %",
        ]
        for row in record["rows"]
    ]
    return markdown(["what", "phase", "tokens a second", "of the dense model's", "of the ceiling"], body, words=2)


def setting(record: dict[str, Any]) -> str:
    """One paragraph: model, machine, its ceilings, and how much was measured."""
    machine, ran = record["machine"], record["versions"]
    return (
        f"{record['model']}, {record['dtype']}, batches of {record['batch_size']} × {record['tokens']} tokens, median of "
        f"{record['repeats']}; {machine['device']} ({machine['processor']}), {machine['threads']} threads; ceilings measured "
        f"in the same run: {record['flops_per_second'] / 1e12:.3g} TFLOP/s, {record['bytes_per_second'] / 1e9:.3g} GB/s; "
        f"torch {ran['torch']}, transformers {ran['transformers']}."
    )


if __name__ == "__main__":
    main()
