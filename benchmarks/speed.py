"""What dropping a quarter and two fifths of the layers buys in speed: reading and writing, in turn, in one run.

    python benchmarks/speed.py MODEL      # writes results/speed.json; leave the machine alone meanwhile
    python benchmarks/speed.py MODEL --dtype bfloat16 --cuda-graphs --result benchmarks/results/speed_gpu.json     # on a GPU
    python benchmarks/speed.py tables     # rewrites the tables in docs/speed.md from both

Which layers go does not matter for the speed of a model whose layers are alike: a run from the middle does. Each model has
weights of its own, as two servers would have.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cells import markdown, of_result, with_tables  # noqa: E402  (a script beside this one)

RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "speed.md"
SHARES = (0.25, 0.4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL|tables", help="a checkpoint to measure, or the word tables")
    parser.add_argument("--dtype", default="auto", help="of the weights")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--cuda-graphs", action="store_true")
    parser.add_argument("--result", type=Path, default=RESULTS / "speed.json")
    options = parser.parse_args()
    if options.model == "tables":
        PAGE.write_text(made_anew(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        measure(**vars(options))


def measure(model: str, *, dtype: str, batch_sizes: list[int], result: Path, **settings: Any) -> None:
    """Measure the dense model and two cut ones side by side, and write the result."""
    from secateur.benchmark import compare
    from secateur.evaluation.speed import SpeedSettings
    from secateur.report.console import RichProgress
    from secateur.report.record import versions
    from secateur.values import write_json

    record = compare(
        cut_models(model, dtype),
        SpeedSettings(batch_sizes=tuple(batch_sizes), **settings),
        progress=RichProgress(),
    )
    write_json(result, {"model": Path(model).resolve().name, **record, "versions": versions()})
    print(speedups(record))


def cut_models(source: str, dtype: str) -> dict[str, Any]:
    """The dense model and one for each share of its layers, by what was dropped."""
    from secateur.decoder import Decoder
    from secateur.loading import load_model
    from secateur.plan import count_to_drop
    from secateur.surgery.live import remove_layers_

    models = {"dense": load_model(source, dtype=dtype)}
    num_layers = Decoder(models["dense"]).num_layers
    for share in SHARES:
        count = count_to_drop(share, num_layers)
        name = f"{count} of {num_layers} layers dropped"
        models[name] = load_model(source, dtype=dtype)
        first = (num_layers - count) // 2
        remove_layers_(models[name], range(first, first + count))
    return models


# ---- the table -----------------------------------------------------------------------------------------------------------


def made_anew(page: str) -> str:
    """The page with its tables made from the result."""
    return with_tables(page, table)


def table(name: str) -> str | None:
    """`speed` and `speed_gpu`, with `-setting` behind it: on what it was measured; None for the tables of another script."""
    return of_result(name, RESULTS, speedups, setting) if name.startswith("speed") else None


def speedups(record: dict[str, Any]) -> str:
    """A row a cut, phase and batch size."""
    rows = [
        [
            row["model"],
            row["phase"].replace("_", " ") + (", CUDA graphs" if row["cuda_graphs"] else ""),
            str(row["batch_size"]),
            f"{row['speedup']:.2f}× ({row['low']:.2f} to {row['high']:.2f})",
            f"{row['ideal_flops']:.2f}×",
            f"{row['ideal_bytes']:.2f}×",
            f"{row['of_ideal']:.2f}",
        ]
        for row in record["speedups"]
    ]
    head = ["what", "phase", "batch", "times as fast", "ideal by FLOPs", "ideal by bytes", "measured, of ideal"]
    return markdown(head, rows)


def setting(record: dict[str, Any]) -> str:
    """One paragraph: model, machine, versions, and how much was measured."""
    machine, settings, ran = record["machine"], record["settings"], record["versions"]
    return (
        f"{record['model']}, {record['models'][0]['dtype']}, {settings['prompt_tokens']} prompt tokens, "
        f"{settings['new_tokens']} new tokens, {settings['repeats']} turns; {machine['device']} ({machine['processor']}), "
        f"{machine['threads']} threads on {machine['cores']} cores, load before the run {machine['load_before']:.1f}; "
        f"torch {ran['torch']}, transformers {ran['transformers']}."
    )


if __name__ == "__main__":
    main()
