"""The search for the number of layers, against trying them all."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from secateur import budget, pipeline
from secateur.budget import largest_count, plan_within_budget, search_cost
from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.errors import PlanError, RequestError
from secateur.evaluation.perplexity import perplexity
from secateur.methods import METHODS, Method, Run
from secateur.methods.elder import Elder
from secateur.methods.gradpruner import GradPruner
from secateur.methods.replaceme import ReplaceMe
from secateur.methods.tail import Tail
from secateur.request import Target, TextSettings, num_to_drop

NESTED = {
    "elder-published", "gradpruner", "shortgpt", "sleb", "shortened-ppl", "shortened-taylor", "tail", "magnitude", "random",
}  # fmt: skip
FEW = {"first_steps": 2, "round_steps": 1, "joint_steps": 3, "gate_sequences": 3, "sequences": 3, "scoring_steps": 3}


def quick(name: str) -> Method:
    known = METHODS[name].__dataclass_fields__
    return METHODS[name](**{key: value for key, value in FEW.items() if key in known})


@pytest.fixture
def decoder(tiny_model: Any) -> Decoder:
    """Six layers of unequal weight and sure predictions, so that dropping more of them costs more and more."""
    with torch.no_grad():
        for layer, scale in zip(tiny_model.model.layers, (0.4, 0.05, 0.2, 0.1, 0.02, 0.3), strict=True):
            layer.self_attn.o_proj.weight.mul_(scale)
            layer.mlp.down_proj.weight.mul_(scale)
        tiny_model.lm_head.weight.mul_(3)
    return Decoder(tiny_model)


@pytest.fixture
def windows(decoder: Decoder) -> TokenBatches:
    """What that model writes itself, which no other predicts as well."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = torch.arange(3, 11).unsqueeze(1)
        written = decoder.model.generate(
            start, max_new_tokens=23, min_new_tokens=23, do_sample=True, pad_token_id=0, eos_token_id=None
        )
    return TokenBatches(written, 4, "its own")


def asked_for(decoder: Decoder, method: Method, target: Target, windows: TokenBatches) -> tuple[Any, dict[str, Any]]:
    dense = perplexity(decoder.model, windows).perplexity
    return plan_within_budget(method, decoder, windows, windows, target=target, dense_perplexity=dense, run=Run(seed=4))


# ---- the search ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 5, 8])
def test_search_equals_trying_all_where_answers_are_monotone_and_asks_once_per_halving(most: int) -> None:
    for limit in range(most + 1):
        asked: list[int] = []

        def holds(count: int, limit: int = limit, asked: list[int] = asked) -> bool:
            asked.append(count)
            return count <= limit

        assert largest_count(holds, most) == limit
        assert all(1 <= count <= most for count in asked)
        assert len(set(asked)) <= math.ceil(math.log2(most + 1)) + 1  # and the neighbour


def test_answer_always_holds_and_two_in_a_row_beyond_it_do_not() -> None:
    """Every pattern of answers for up to six numbers."""
    for pattern in itertools.product((True, False), repeat=6):
        answers = dict(enumerate(pattern, 1))
        found = largest_count(lambda count, answers=answers: answers[count], 6)
        assert found == 0 or answers[found]
        assert not any(answers.get(found + step, False) for step in (1, 2))


def test_a_dip_of_one_is_stepped_over() -> None:
    assert largest_count(lambda count: count in (1, 2, 4, 5), 8) == 5


# ---- perplexity ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shortgpt", "angular"])
@pytest.mark.parametrize("bound", [0.01, 0.2, 0.5, 1.0, 10.0])
def test_perplexity_budget_takes_the_number_that_trying_all_would(
    decoder: Decoder, windows: TokenBatches, name: str, bound: float
) -> None:
    method, dense = quick(name), perplexity(decoder.model, windows).perplexity
    increases = {}
    for count in range(1, 6):
        plan = method.plan(decoder, windows, drop=count, run=Run(seed=4))
        with decoder.bypass(plan.dropped):
            increases[count] = perplexity(decoder.model, windows).perplexity / dense - 1
    within = [count for count, increase in increases.items() if increase <= bound]
    if not within:
        with pytest.raises(PlanError, match="one layer fewer already takes the perplexity"):
            asked_for(decoder, method, Target(max_ppl_increase=bound), windows)
        return
    plan, found = asked_for(decoder, method, Target(max_ppl_increase=bound), windows)
    assert found["chosen"] == len(plan.order) == max(within)
    assert plan.order == method.plan(decoder, windows, drop=len(plan.order), run=Run(seed=4)).order
    for trial in found["trials"]:
        assert trial["increase"] == pytest.approx(increases[trial["num_dropped"]], abs=1e-9)
    numbers = [trial["num_dropped"] for trial in found["trials"]]
    assert numbers == sorted(set(numbers))
    assert found["planned_for"] == ([5] if method.nested else numbers)


def test_every_number_is_measured_and_planned_for_at_most_once(
    decoder: Decoder, windows: TokenBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    planned: list[int] = []
    method = quick("angular")
    original = type(method).plan

    def watch(self: Method, *args: Any, drop: int, **rest: Any) -> Any:
        planned.append(drop)
        return original(self, *args, drop=drop, **rest)

    def count(*args: Any, description: str = "", **rest: Any) -> Any:
        measured.append(description)
        return perplexity(*args, **rest)

    monkeypatch.setattr(type(method), "plan", watch)
    monkeypatch.setattr(budget, "perplexity", count)
    _, found = asked_for(decoder, method, Target(max_ppl_increase=0.5), windows)
    assert len(measured) == len(set(measured)) == len(found["trials"])
    assert sorted(planned) == sorted(set(planned)) == found["planned_for"]


def test_perplexity_budget_that_one_layer_breaks_is_refused_with_the_numbers(
    decoder: Decoder, windows: TokenBatches
) -> None:
    with pytest.raises(
        PlanError,
        match=r"perplexity from \d+\.\d+ to \d+\.\d+ \(\+\d+\.\d %\), beyond --max-ppl-increase 0\.01%; choose",
    ) as caught:
        asked_for(decoder, quick("random"), Target(max_ppl_increase=1e-4), windows)
    assert "\n" not in str(caught.value)


def test_loss_that_is_not_finite_is_beyond_every_bound(
    decoder: Decoder, windows: TokenBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nothing:
        perplexity = math.nan

    monkeypatch.setattr(budget, "perplexity", lambda *_, **__: Nothing)
    with pytest.raises(PlanError, match="one layer fewer"):
        asked_for(decoder, quick("random"), Target(max_ppl_increase=100.0), windows)


# ---- speed -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ideal_speed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Prefill takes a time proportional to the layers, decoding has as much again besides; the layers that were measured."""
    measured: list[int] = []

    def speed(dense: dict[str, float], pruned: dict[str, float], model: Any, cut: Any, _: Any) -> None:
        for metrics, measures in ((dense, model), (pruned, cut)):
            layers = len(measures.model.layers)
            assert measures.config.num_hidden_layers == layers
            metrics |= {"prefill_tokens_per_second": 60 / layers, "decode_tokens_per_second": 60 / (layers + 6)}
        measured.append(len(cut.model.layers))

    monkeypatch.setattr(budget, "add_speed", speed)
    return measured


@pytest.mark.parametrize("ratio", [1.05, 1.2, 12 / 9, 1.5, 1.7])
def test_speed_budget_takes_the_fewest_layers_whose_slower_ratio_reaches_it(
    decoder: Decoder, windows: TokenBatches, ideal_speed: list[int], ratio: float
) -> None:
    expected = next(gone for gone in range(1, 6) if 12 / (12 - gone) >= ratio - 1e-9)
    plan, found = asked_for(decoder, quick("shortgpt"), Target(target_speedup=ratio), windows)
    assert found["chosen"] == len(plan.order) == expected
    assert len(ideal_speed) == len(set(ideal_speed)) == len(found["trials"])
    for trial in found["trials"]:
        left = 6 - trial["num_dropped"]
        assert trial["prefill"] == pytest.approx(6 / left)
        assert trial["decode"] == trial["speedup"] == pytest.approx(12 / (left + 6))
    assert decoder.num_layers == decoder.config.num_hidden_layers == 6


def test_speed_budget_out_of_reach_is_refused_with_the_numbers(
    decoder: Decoder, windows: TokenBatches, ideal_speed: list[int]
) -> None:
    with pytest.raises(
        PlanError, match=r"with 1 of 6 layers left .* 1\.71 times as fast, short of --target-speedup 1\.8; choose less"
    ):
        asked_for(decoder, quick("random"), Target(target_speedup=1.8), windows)


# ---- what methods say of their choices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [*map(quick, sorted(NESTED)), ReplaceMe(layers_by="sleb"), Tail(keep_last=1), Elder(selection="greedy", **{
        name: FEW[name] for name in ("first_steps", "round_steps", "gate_sequences")})],
    ids=lambda method: method.name,
)  # fmt: skip
def test_nested_plan_for_more_layers_begins_with_the_plan_for_fewer(
    decoder: Decoder, windows: TokenBatches, method: Method
) -> None:
    assert method.nested
    whole = method.plan(decoder, windows, drop=5, run=Run(seed=4))
    for count in (1, 3):
        fewer = method.plan(decoder, windows, drop=count, run=Run(seed=4))
        shortened = method.shortened(whole, count)
        assert shortened.order == fewer.order
        assert shortened.merges == fewer.merges
        assert (shortened.evidence is None) == (fewer.evidence is None)


def test_gradpruner_merges_only_layers_that_go_under_a_budget(decoder: Decoder, windows: TokenBatches) -> None:
    method = GradPruner(merged_layers=1, scoring_steps=3)
    whole = method.plan(decoder, windows, drop=5, run=Run(seed=4))
    shortened = method.shortened(whole, 2)
    assert set(shortened.merges) == {shortened.order[-1]}
    assert set(shortened.merges.values()) <= set(shortened.kept)


@pytest.mark.parametrize("name", ["shortgpt", "laco"])
def test_cost_of_searching_is_above_that_of_one_choice(windows: TokenBatches, name: str) -> None:
    method = quick(name)
    one, search = method.cost(6, 3, windows), search_cost(method, 6, windows, windows)
    assert search.choose_tokens > one.choose_tokens
    assert search.training_tokens == one.training_tokens


# ---- what is asked for ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"max_ppl_increase": 0.0}, "--max-ppl-increase is a share above 0 % such as 10 %, not 0 %"),
        ({"max_ppl_increase": math.inf}, "--max-ppl-increase is a share"),
        ({"target_speedup": 1.0}, "--target-speedup is a ratio above 1 such as 1.3, not 1"),
        ({"target_speedup": math.nan}, "--target-speedup is a ratio"),
        ({"target_speedup": 1.3, "max_ppl_increase": 0.1}, "--max-ppl-increase and --target-speedup"),
    ],
)
def test_budget_that_makes_no_sense_is_refused_with_its_value(given: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=named):
        Target(**given)


def test_budget_is_no_number_without_a_search(decoder: Decoder) -> None:
    with pytest.raises(RequestError, match="--target-speedup is searched for by prune alone; say --drop"):
        num_to_drop(Target(target_speedup=1.3), decoder)


def test_prune_writes_the_number_that_was_found_and_how(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"Sentence {n} says that {n} is {n}.\n\n" for n in range(300)))
    text = TextSettings(data=str(tmp_path / "text.txt"), sequence_length=32, num_sequences=6, num_eval_sequences=4)
    result = pipeline.prune(
        tiny_checkpoint, method="shortgpt", text=text, target=Target(max_ppl_increase=1.5), out=tmp_path / "out",
        speed=False, prompts=(),
    )  # fmt: skip
    record = result.record
    (trial,) = [one for one in record["budget"]["trials"] if one["num_dropped"] == len(record["dropped"])]
    assert record["budget"]["chosen"] == len(record["dropped"])
    assert trial["dropped"] == record["dropped"]
    dense, pruned = (record["metrics"][name]["perplexity"] for name in ("dense", "pruned"))
    assert pruned / dense - 1 == pytest.approx(trial["increase"], rel=1e-5)  # nothing was prepared: measured is chosen
    assert pruned / dense - 1 <= 1.5
    small = AutoModelForCausalLM.from_pretrained(result.path)
    assert small.config.num_hidden_layers == 6 - len(record["dropped"])
