"""How much faster a pruned model is than the dense one, and how much of what its smaller work promises that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from secateur.evaluation.flops import Work
from secateur.evaluation.speed import Laps, Workload

__all__ = ["PHASES", "Speedup", "speedups"]

PHASES = ("prefill", "first_token", "decode")
"""The fields of `Laps`."""


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """Dense seconds over pruned seconds of one phase: 1.25 is a quarter more tokens in the same time."""

    phase: str
    """`prefill`, `first_token` or `decode`."""

    batch_size: int
    """Sequences at once."""

    cuda_graphs: bool
    """Whether the steps were replayed from a CUDA graph."""

    speedup: float
    """The median over the turns; in each, the models are compared with what they took one right after the other."""

    low: float
    """The first quartile over the turns."""

    high: float
    """The third."""

    turns: tuple[float, ...]
    """The ratio of each turn."""

    ideal_flops: float
    """The speed-up if the time were in proportion to the floating-point operations."""

    ideal_bytes: float
    """The speed-up if the time were in proportion to the bytes read of weights and cache."""

    of_ideal: float
    """The measured speed-up as a share of the ideal: that of the FLOPs for reading a prompt, of the bytes for writing."""


def speedups(
    dense: Mapping[Workload, Sequence[Laps]], pruned: Mapping[Workload, Sequence[Laps]], work: tuple[Work, Work]
) -> list[Speedup]:
    """Compare two models phase by phase.

    Args:
        dense: the laps of each workload, one a turn.
        pruned: the same of the pruned model, measured in the same turns.
        work: of the dense model, and of the pruned one.
    """
    return [
        _speedup(phase, load, dense[load], pruned[load], work)
        for phase in PHASES
        for load in dense
        if phase == "decode" or not load.cuda_graphs  # prompts are read without graphs
    ]


def _speedup(
    phase: str, load: Workload, dense: Sequence[Laps], pruned: Sequence[Laps], work: tuple[Work, Work]
) -> Speedup:
    turns = [getattr(slow, phase) / getattr(fast, phase) for slow, fast in zip(dense, pruned, strict=True)]
    middle = median(turns)
    low, _, high = quantiles(turns, n=4, method="inclusive") if len(turns) > 1 else turns * 3
    large, small = work
    if phase == "decode":
        flops = large.decode_flops / small.decode_flops
        read = large.step_bytes(load.batch_size) / small.step_bytes(load.batch_size)
    else:
        flops = large.prefill_flops / small.prefill_flops
        read = large.weight_bytes / small.weight_bytes
    return Speedup(
        phase=phase,
        batch_size=load.batch_size,
        cuda_graphs=load.cuda_graphs,
        speedup=middle,
        low=low,
        high=high,
        turns=tuple(turns),
        ideal_flops=flops,
        ideal_bytes=read,
        of_ideal=middle / (read if phase == "decode" else flops),
    )
