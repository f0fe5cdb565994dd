"""What pruning buys, as tables: sizes and work of each model, then each phase against the dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from secateur.report.comparison import MISSING, format_bytes, format_count, format_number

__all__ = ["format_flops", "format_share", "show_bench", "size_table", "speed_table"]


def show_bench(record: Mapping[str, Any], console: Console) -> None:
    """Both tables, and what the figures are, in words.

    Args:
        record: of `secateur.benchmark.bench`.
        console: a rich console.
    """
    settings, machine = record["settings"], record["machine"]
    console.print(size_table(record))
    for about in record["models"][1:]:
        console.print(speed_table(record, about["model"]))
    console.print(
        f"{settings['prompt_tokens']} prompt tokens, {settings['new_tokens']} new tokens, {settings['repeats']} turns, "
        f"{machine['device']}, {machine['threads']} threads, {record['models'][0]['dtype']}\n"
        "dense and pruned: milliseconds for prefill and first token, tokens a second for decode\n"
        "times faster: the median over the turns; half of the turns lie within\n"
        "ideal: if time were in proportion to the work, in floating-point operations or in bytes read of weights and cache\n"
        "of ideal: measured, as a share of the ideal by FLOPs for prefill and first token, by bytes for decode",
        soft_wrap=True,
    )


def size_table(record: Mapping[str, Any]) -> Table:
    """A row a figure, a column a model."""
    models = record["models"]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for about in models:
        table.add_column(about["model"], justify="right", overflow="fold")
    for label, key, write in _SIZES:
        values = [about.get(key) for about in models]
        table.add_row(label, *(MISSING if value is None else write(value) for value in values))
    return table


def speed_table(record: Mapping[str, Any], model: str) -> Table:
    """A row a phase and batch size: both models, the speed-up with its spread, and how far that is from the ideal.

    Args:
        record: of `secateur.benchmark.bench` or `compare`.
        model: the name of the pruned model.
    """
    dense, pruned = record["models"][0], next(about for about in record["models"] if about["model"] == model)
    title = f"{model} against {dense['model']}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, collapse_padding=True)
    table.add_column("phase", no_wrap=True)
    for name in (
        "batch",
        "dense",
        "pruned",
        "times\nfaster",
        "half\nwithin",
        "ideal\nFLOPs",
        "ideal\nbytes",
        "of\nideal",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in record["speedups"]:
        if row["model"] == model:
            table.add_row(
                "… CUDA graphs" if row["cuda_graphs"] else _LABELS[row["phase"]],
                str(row["batch_size"]),
                _measured(dense, row),
                _measured(pruned, row),
                f"{row['speedup']:.2f}",
                f"{row['low']:.2f}–{row['high']:.2f}",
                f"{row['ideal_flops']:.2f}",
                f"{row['ideal_bytes']:.2f}",
                format_share(row["of_ideal"]),
            )
    return table


def _measured(about: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """What one model took in the phase of this row: milliseconds of reading, tokens a second of writing."""
    speeds = next(
        speeds for speeds in about["speeds"]
        if (speeds["batch_size"], speeds["cuda_graphs"]) == (row["batch_size"], row["cuda_graphs"])
    )  # fmt: skip
    if row["phase"] == "decode":
        return format_number(speeds["decode_tokens_per_second"])
    return format_number(1000 * speeds[f"{row['phase']}_seconds"])


def format_flops(value: float) -> str:
    """Floating-point operations: `28.4 GFLOP`."""
    for unit, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}FLOP"
    return f"{value:.0f} FLOP"


def format_share(value: float) -> str:
    """A share as a whole percentage: `97 %`."""
    return f"{100 * value:.0f} %"


_LABELS = {"prefill": "prefill", "first_token": "first token", "decode": "decode"}

_SIZES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("layers", "num_layers", format_count),
    ("parameters", "num_parameters", format_count),
    ("weights on disk", "disk_bytes", format_bytes),
    ("peak memory, largest batch", "peak_memory_bytes", format_bytes),
    ("work of a prompt", "prefill_flops", format_flops),
    ("work of a token", "decode_flops", format_flops),
    ("weights read a token", "weight_bytes", format_bytes),
    ("cache read a token", "cache_bytes", format_bytes),
)
