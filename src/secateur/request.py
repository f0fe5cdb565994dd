"""What is asked for: which text, how much is to go; and what is handed over for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.errors import PlanError, RequestError
from secateur.plan import PruningPlan, count_to_drop
from secateur.report.record import count_parameters
from secateur.settings import check_at_least

if TYPE_CHECKING:
    from secateur.data import TokenBatches
    from secateur.decoder import Decoder
    from secateur.surgery.checkpoint import Proof

__all__ = ["PROMPTS", "Pruned", "Target", "TextSettings", "check_target", "num_to_drop"]

PROMPTS = (
    "The three states of matter are",
    "To make a cup of tea, first",
    "Paris is the capital of",
)
"""What dense and pruned model both continue, so that a person can see what the numbers mean."""


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Which text, and how much of it."""

    data: str
    """Calibration text: wikitext2, c4, ptb, python-docs, `hub:owner/name[/config][:split]`, or a local file or folder."""

    eval_data: str | None = None
    """Text to measure perplexity on; a part of the calibration text that is not calibrated on if null."""

    sequence_length: int = 256
    """Tokens per window."""

    num_sequences: int = 128
    """Calibration windows."""

    num_eval_sequences: int = 64
    """Windows to measure perplexity on: the first, in order."""

    batch_size: int = 4
    """Windows per forward pass."""

    def __post_init__(self) -> None:
        check_at_least(self, 2, "sequence_length")
        check_at_least(self, 1, "num_sequences", "num_eval_sequences", "batch_size")

    def load(self, tokenizer: Any, seed: int) -> tuple[TokenBatches, TokenBatches]:
        """Calibration and held-out windows, which never overlap.

        Raises:
            DataError: if a text cannot be read or is too short.
        """
        from secateur.data import calibration_and_held_out

        return calibration_and_held_out(tokenizer=tokenizer, seed=seed, **vars(self))

    def load_calibration(self, tokenizer: Any, seed: int) -> TokenBatches:
        """The same calibration windows, where nothing is measured.

        Raises:
            DataError: if a text cannot be read or is too short.
        """
        from secateur.data.tokens import calibration_alone

        return calibration_alone(tokenizer=tokenizer, seed=seed, **vars(self))


@dataclass(frozen=True, kw_only=True)
class Target:
    """How much is to go; exactly one of them is given."""

    drop: int | float | None = None
    """A count of layers, or a share of them."""

    target_params: float | None = None
    """The share of the parameters that is to be left at most."""

    layers: tuple[int, ...] | None = None
    """The layers themselves."""

    max_ppl_increase: float | None = None
    """How much the perplexity may rise, as a share of the dense model's, with the layers bypassed and nothing else changed; as
    many layers go as that allows. Of `prune` alone, which has text to measure on."""

    target_speedup: float | None = None
    """How many times as fast the pruned model is to be, in prefill and in decoding; as few layers go as that takes. Of
    `prune` alone."""

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        if not given:
            raise RequestError(
                "nothing says how much goes; give --drop 20%, --target-params 80% or --layers 3,7, or to prune "
                "--max-ppl-increase 10% or --target-speedup 1.3"
            )
        if len(given) > 1:
            have = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise RequestError(f"{have} each say how much goes; give one of them")
        if self.target_params is not None and not 0 < self.target_params < 1:
            raise RequestError(f"--target-params is a share between 0 % and 100 %, not {100 * self.target_params:g} %")
        increase, speedup = self.max_ppl_increase, self.target_speedup
        if increase is not None and not (increase > 0 and math.isfinite(increase)):
            raise RequestError(f"--max-ppl-increase is a share above 0 % such as 10 %, not {100 * increase:g} %")
        if speedup is not None and not (speedup > 1 and math.isfinite(speedup)):
            raise RequestError(f"--target-speedup is a ratio above 1 such as 1.3, not {speedup:g}")

    @property
    def given(self) -> str:
        """The name of the one that is given."""
        return next(name for name, value in vars(self).items() if value is not None)

    @property
    def is_budget(self) -> bool:
        """Whether the number of layers has to be searched for."""
        return self.given in ("max_ppl_increase", "target_speedup")


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What `prune` hands over."""

    path: Path
    """The checkpoint directory."""

    plan: PruningPlan
    """Which layers went."""

    proof: Proof
    """How the checkpoint was proven."""

    record: dict[str, Any]
    """`secateur/record.json`."""


def check_target(target: Target, num_layers: int) -> None:
    """Make sure, before any weight is read, that so many layers, or these, can go; of parameters and budgets that shows later.

    Raises:
        PlanError: if a model of `num_layers` layers does not have them to spare.
    """
    if target.layers is not None:
        PruningPlan(num_layers=num_layers, order=target.layers)
    elif target.drop is not None:
        count_to_drop(target.drop, num_layers)


def num_to_drop(target: Target, decoder: Decoder) -> int:
    """The number of layers that `target` means for this model.

    Raises:
        PlanError: if no layer or every layer would have to go.
        RequestError: if it is a budget, which `secateur.budget` searches for.
    """
    if target.is_budget:
        raise RequestError(
            f"--{target.given.replace('_', '-')} is searched for by prune alone; say --drop, --target-params or --layers"
        )
    num_layers = decoder.num_layers
    if target.layers is not None:
        return len(PruningPlan(num_layers=num_layers, order=target.layers).order)
    if target.drop is not None:
        return count_to_drop(target.drop, num_layers)
    assert target.target_params is not None  # noqa: S101  one of the three is given
    total = count_parameters(decoder.model)
    per_layer = count_parameters(decoder.layers) / num_layers
    for count in range(1, num_layers):
        if total - count * per_layer <= target.target_params * total:
            return count
    least = (total - (num_layers - 1) * per_layer) / total
    raise PlanError(
        f"cannot get down to {100 * target.target_params:g} % of the parameters: one layer of {num_layers} alone leaves "
        f"{100 * least:.0f} %; choose more"
    )
