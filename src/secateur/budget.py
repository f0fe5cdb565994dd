"""Budgets: the number of layers that a bound on the perplexity or on the speed allows, found by trying the method's own choices.

`max_ppl_increase`: as many layers as possible, such that the perplexity on the evaluation windows, with those layers bypassed and
nothing else changed, is at most that much above the dense model's. What a method prepares or a recovery mends comes after the
choice, and is not in the figure. `target_speedup`: as few layers as possible, such that the cut model is that many times as fast
as the dense one, measured in turn; the smaller of the ratios of prefill and of decoding counts.

Both are searched by bisection on the number of layers; every number is measured at most once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.errors import PlanError
from secateur.evaluation.perplexity import perplexity
from secateur.methods import Cost, Method, Run
from secateur.plan import PruningPlan
from secateur.processes import by_first
from secateur.request import Target
from secateur.stages import add_speed, cut_copy

__all__ = ["largest_count", "plan_within_budget", "search_cost"]


def largest_count(holds: Callable[[int], bool], most: int) -> int:
    """The largest number in 0…most for which `holds`, which 0 does without being asked.

    Bisection, as if everything above a number that does not hold did not hold either. Measurements are only nearly so: where the
    number after the first that fails holds again, the search goes on from there. A wider gap is not looked for.
    """
    found = 0
    while True:
        failing = most + 1
        while failing - found > 1:
            middle = (found + failing) // 2
            if holds(middle):
                found = middle
            else:
                failing = middle
        if failing >= most or not holds(failing + 1):
            return found
        found = failing + 1


def plan_within_budget(
    method: Method,
    decoder: Decoder,
    data: TokenBatches,
    held_out: TokenBatches,
    *,
    target: Target,
    dense_perplexity: float,
    run: Run,
) -> tuple[PruningPlan, dict[str, Any]]:
    """The method's plan for the number of layers that the budget allows, and how it was found.

    Args:
        method: chooses the layers; asked once for all but one layer if its choices are nested, else for each number tried.
        decoder: the dense model's layers; the model is as it was afterwards.
        data: calibration tokens.
        held_out: the windows that perplexity is measured on.
        target: `max_ppl_increase` or `target_speedup`.
        dense_perplexity: of the dense model on `held_out`.
        run: seed, precision, progress.

    Returns:
        The plan, and the budget for the record: `kind`, `bound`, `chosen`, `planned_for` (the numbers the method was asked
        for), `trials` (one a number that was measured).

    Raises:
        PlanError: if one layer fewer is too dear, or all but one are not enough.
    """
    plans = _Plans(method, decoder, data, run)
    most = decoder.num_layers - 1
    if target.max_ppl_increase is not None:
        bound = target.max_ppl_increase
        trials = _Trials(lambda count: _perplexity(decoder, plans.of(count), held_out, dense_perplexity, run))
        chosen = largest_count(lambda count: trials.of(count)["increase"] <= bound, most)
        if not chosen:
            first = trials.of(1)
            raise PlanError(
                f"one layer fewer already takes the perplexity from {dense_perplexity:.2f} to {first['perplexity']:.2f} "
                f"({100 * first['increase']:+.1f} %), beyond --max-ppl-increase {100 * bound:g}%; choose more, or --drop 1"
            )
    else:
        assert target.target_speedup is not None  # noqa: S101  one of the two is given
        bound = target.target_speedup

        def speedup(count: int) -> dict[str, Any]:
            plan = plans.of(count)
            return by_first(lambda: _speedup(decoder, plan, run))  # a measurement: others would find others

        trials = _Trials(speedup)
        chosen = largest_count(lambda count: trials.of(count)["speedup"] < bound, most) + 1
        if chosen > most:
            last = trials.of(most)
            raise PlanError(
                f"with 1 of {decoder.num_layers} layers left the model is {last['speedup']:.2f} times as fast, short of "
                f"--target-speedup {bound:g}; choose less"
            )
    return plans.of(chosen), {
        "kind": target.given,
        "bound": bound,
        "dense_perplexity": dense_perplexity,
        "chosen": chosen,
        "planned_for": sorted(plans.made),
        "trials": [trials.known[count] for count in sorted(trials.known)],
    }


def search_cost(method: Method, num_layers: int, data: TokenBatches, held_out: TokenBatches) -> Cost:
    """What choosing under a budget uses: about as many measurements as there are halvings, and what comes after it at most."""
    tried = math.ceil(math.log2(num_layers)) + 1
    if method.nested:
        choosing = method.cost(num_layers, num_layers - 1, data).choose_tokens
    else:
        choosing = tried * method.cost(num_layers, max(num_layers // 2, 1), data).choose_tokens
    after = method.cost(num_layers, 1, data)  # the fewest layers gone, so the most to prepare
    return replace(after, choose_tokens=choosing + tried * held_out.num_tokens)


# ---- what is known so far ------------------------------------------------------------------------------------------------


@dataclass
class _Plans:
    """The method's plan for each number of layers, made when it is first needed."""

    method: Method
    decoder: Decoder
    data: TokenBatches
    run: Run
    made: dict[int, PruningPlan] = field(default_factory=dict)
    """By the number of layers that the method was asked for."""

    def of(self, count: int) -> PruningPlan:
        asked = self.decoder.num_layers - 1 if self.method.nested else count
        if asked not in self.made:
            self.run.progress.note(f"choosing {asked} of {self.decoder.num_layers} layers")
            self.made[asked] = self.method.plan(self.decoder, self.data, drop=asked, run=self.run)
        return self.method.shortened(self.made[asked], count)


@dataclass
class _Trials:
    """What was measured, once a number of layers."""

    measure: Callable[[int], dict[str, Any]]
    known: dict[int, dict[str, Any]] = field(default_factory=dict)

    def of(self, count: int) -> dict[str, Any]:
        if count not in self.known:
            self.known[count] = {"num_dropped": count, **self.measure(count)}
        return self.known[count]


def _perplexity(
    decoder: Decoder, plan: PruningPlan, held_out: TokenBatches, dense_perplexity: float, run: Run
) -> dict[str, Any]:
    description = f"measuring perplexity with {len(plan.order)} of {plan.num_layers} layers bypassed"
    with decoder.bypass(plan.dropped):
        found = perplexity(decoder.model, held_out, progress=run.progress, description=description).perplexity
    return {"dropped": list(plan.dropped), "perplexity": found, "increase": found / dense_perplexity - 1}


def _speedup(decoder: Decoder, plan: PruningPlan, run: Run) -> dict[str, Any]:
    dense: dict[str, float] = {}
    pruned: dict[str, float] = {}
    add_speed(dense, pruned, decoder.model, cut_copy(decoder, plan.dropped), run.progress)
    if not dense:
        raise PlanError("the model's context is too short to measure its speed; say --drop")
    prefill, decode = (
        pruned[name] / dense[name] for name in (f"{way}_tokens_per_second" for way in ("prefill", "decode"))
    )
    return {"dropped": list(plan.dropped), "prefill": prefill, "decode": decode, "speedup": min(prefill, decode)}
