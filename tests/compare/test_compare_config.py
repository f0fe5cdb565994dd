"""What a config means, and one line for every one that cannot be meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from secateur.compare.cells import Cell, cells_of, chosen, differing, lacks, largest_drops, plan_id, request_of
from secateur.compare.config import read_comparison, slug
from secateur.compare.reading import with_environment
from secateur.errors import RequestError
from secateur.methods import METHODS

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"method": ["sleb"]}, "has no 'method'", "did you mean 'methods'?"),
    ({"models": ...}, "lacks 'models'", "give it"),
    ({"text": ...}, "lacks 'text'", "give it"),
    ({"text": {"sequence_length": 8}}, "text lacks 'data'", "give it"),
    ({"text": {"data": "x", "num_sequence": 3}}, "text has no 'num_sequence'", "did you mean 'num_sequences'?"),
    ({"text": {"data": "x", "num_sequences": "many"}}, "num_sequences: expects int", "not 'many'"),
    ({"text": {"data": "x", "num_sequences": 0}}, "num_sequences must be 1 or more", "not 0"),
    ({"text": {"data": "${NOWHERE}/x.txt"}}, "the environment variable NOWHERE", "set it"),
    ({"models": ["${NOWHERE}"]}, "the environment variable NOWHERE", "set it"),
    ({"models": []}, "models is empty", "name at least one"),
    ({"models": ["a/x", "b/x"]}, "two different ones are called 'x'", "give one of them a title"),
    ({"models": [{"model": "a", "dtyp": "auto"}]}, "models has no 'dtyp'", "did you mean 'dtype'?"),
    ({"models": [{"model": "a", "dtype": "fp8"}]}, "dtype", "fp8"),
    ({"methods": []}, "methods is empty", "name at least one"),
    ({"methods": ...}, "lacks 'methods'", "name at least one"),
    ({"methods": ["slb"]}, "unknown method 'slb'", "did you mean 'sleb'?"),
    ({"methods": [{"method": "sleb", "settings": {"sequence": 3}}]}, "sleb has no 'sequence'", "'sequences'?"),
    ({"methods": [{"method": "sleb", "settings": {"sequences": "x"}}]}, "settings of sleb: sequences: expects int", "'x'"),
    ({"methods": [{"method": "sleb", "settings": {"sequences": 0}}]}, "sequences must be above 0", "not 0"),
    ({"methods": ["sleb", {"method": "sleb", "settings": {"sequences": 3}}]}, "are called 'sleb'", "a title"),
    ({"methods": [{"method": "shortgpt", "settings": {"a": 1}}]}, "shortgpt has no 'a'", "; there are none, leave it out"),
    ({"methods": [{"method": "shortgpt", "settings": 3}]}, "settings of shortgpt must be left out: there are none", "not 3"),
    ({"methods": [3]}, "methods must be a mapping", "not 3"),
    ({"methods": [{"method": "sleb", "title": "!"}]}, "'!' has neither letters nor digits", "give another"),
    ({"drops": []}, "drops is empty", "name at least one"),
    ({"drops": [0]}, "cannot drop 0 layers", "choose 1 or more"),
    ({"drops": [-3]}, "cannot drop -3 layers", "choose 1 or more"),
    ({"drops": [1.5]}, "a share of 1.5", "between 0 and 1"),
    ({"drops": ["150%"]}, "a share of 1.5", "between 0 and 1"),
    ({"drops": ["some"]}, "'some' is neither a count", "a share such as 25%"),
    ({"drops": [True]}, "True is neither a count", "a share such as 25%"),
    ({"recovery": []}, "recovery is empty", "name at least one"),
    ({"recovery": ["lorra"]}, "recovery: kind", "lorra"),
    ({"recovery": [{"kind": "lora", "token": 5}]}, "recovery has no 'token'", "did you mean 'tokens'?"),
    ({"recovery": [{"kind": "lora", "tokens": 0}]}, "recovery: tokens must be 1 or more", "not 0"),
    ({"recovery": [{"kind": "none", "tokens": 3}]}, "recovery: tokens has no effect with kind none", "choose kind lora or"),
    ({"recovery": [{"tokens": 3}]}, "recovery: tokens has no effect with kind none", "or leave it out"),
    ({"recovery": [{"kind": "full", "rank": 3}]}, "recovery: rank has no effect with kind full", "choose kind lora, or"),
    ({"recovery": ["lora", {"kind": "lora", "tokens": 5}]}, "are called 'lora'", "give one of them a title"),
    ({"seeds": []}, "seeds is empty", "name at least one"),
    ({"seeds": ["a"]}, "seeds must be a whole number of 0 or more", "not 'a'"),
    ({"seeds": [-1]}, "seeds must be a whole number of 0 or more", "not -1"),
    ({"tasks": [3]}, "tasks must be text", "not 3"),
    ({"task_limit": 0}, "task_limit must be a whole number of 1 or more", "not 0"),
    ({"speed": "fast"}, "speed must be true or false", "not 'fast'"),
    ({"precision": "fp8"}, "precision must be one of auto, fp32, bf16", "not 'fp8'"),
    ({"blocks": []}, "blocks is empty", "name at least one"),
    ({"blocks": [{"drop": [3]}]}, "blocks has no 'drop'", "did you mean 'drops'?"),
    ({"blocks": [{}, {"drop": [3]}]}, "blocks[1] has no 'drop'", "did you mean 'drops'?"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "value", "remedy"), WRONG, ids=[f"{given}" for given, _, _ in WRONG])
def test_wrong_config_is_refused_in_one_line_that_names_value_and_remedy(config: Any, given, value, remedy) -> None:
    with pytest.raises(RequestError) as refused:
        read_comparison(config(**given))
    assert value in str(refused.value)
    assert remedy in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "cannot read"), (b"a: [1\n", "is not YAML"), (b"- a\n", "no 'name: value' lines"), (b"\xff\xfe", "not UTF-8")],
)  # fmt: skip
def test_a_file_that_is_no_config_is_refused_in_one_line(tmp_path: Path, content, says) -> None:
    if content is not None:
        (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(RequestError, match=says) as refused:
        read_comparison(tmp_path / "c.yaml")
    assert "\n" not in str(refused.value)


def ids(config: Path, **num_layers: int) -> list[str]:
    return [cell.id for cell in cells_of(read_comparison(config), {"tiny-llama": 6, **num_layers})]


def test_ids_are_every_combination_once_in_readable_parts(config: Any) -> None:
    path = config(
        models=[{"model": "x", "title": "Tiny Llama"}],
        methods=["sleb", {"method": "elder", "title": "ELDeR (few steps)", "settings": {"steps": 10}}],
        drops=[1, "50%", 0.5, 3],
        recovery=["none", {"kind": "lora", "tokens": 64, "title": "LoRA 64"}],
        seeds=[0, 7, 0],
    )
    assert ids(path, **{"Tiny Llama": 6}) == [
        f"tiny-llama--{method}--drop{drop}--{recovery}--seed{seed}"
        for drop in (1, 3)
        for recovery in ("none", "lora-64")
        for method in ("sleb", "elder-few-steps")
        for seed in (0, 7)
    ]


def test_blocks_have_what_stands_above_them_but_for_what_they_name_and_share_cells(config: Any) -> None:
    path = config(
        methods=["sleb", "random"], drops=[1], blocks=[{}, {"drops": [2], "seeds": [1]}, {"methods": ["sleb"], "tasks": ["a"]}]
    )  # fmt: skip
    cells = cells_of(read_comparison(path), {"tiny-llama": 6})
    assert [cell.id.removeprefix("tiny-llama--") for cell in cells] == [
        "sleb--drop1--none--seed0", "random--drop1--none--seed0", "sleb--drop2--none--seed1", "random--drop2--none--seed1",
    ]  # fmt: skip
    assert [cell.tasks for cell in cells] == [("a",), (), (), ()]


def test_all_methods_are_those_of_the_registry(config: Any) -> None:
    methods = [choice.title for choice in read_comparison(config(methods="all")).blocks[0].methods]
    assert methods == list(METHODS)


def test_numbers_with_an_exponent_are_numbers(config: Any, tmp_path: Path) -> None:
    path = config()
    path.write_text(
        path.read_text().replace("- magnitude", "- {method: elder, settings: {learning_rate: 1e-4, steps: null}}")
    )
    (choice,) = read_comparison(path).blocks[0].methods
    assert choice.method == METHODS["elder"](learning_rate=1e-4, steps=None)


@pytest.mark.parametrize(
    ("title", "part"), [("SmolLM2-135M", "smollm2-135m"), ("a  (b)/c", "a-b-c"), ("v1.5", "v1.5"), ("../x", "x")]
)
def test_a_slug_is_a_safe_part_of_a_files_name(title, part) -> None:
    assert slug(title) == part


def test_only_takes_the_cells_of_a_pattern_and_refuses_one_that_fits_none(config: Any) -> None:
    cells = cells_of(read_comparison(config(methods=["sleb", "random"], drops=[1, 2])), {"tiny-llama": 6})
    assert [cell.id for cell in chosen(cells, "*--sleb--*")] == [cell.id for cell in cells if "--sleb--" in cell.id]
    assert chosen(cells, None) == cells
    with pytest.raises(RequestError, match=r"no cell is called 'slb'; the first is called tiny-llama--sleb--drop1"):
        chosen(cells, "slb")


def test_cells_of_a_nested_method_share_one_plan_for_the_most_layers_and_others_have_one_each(config: Any) -> None:
    cells = cells_of(read_comparison(config(methods=["sleb", "angular"], drops=[3, 1])), {"tiny-llama": 6})
    assert largest_drops(cells) == {
        "tiny-llama--sleb--seed0": 3, "tiny-llama--angular--drop3--seed0": 3, "tiny-llama--angular--drop1--seed0": 1,
    }  # fmt: skip
    assert {plan_id(cell) for cell in cells} == set(largest_drops(cells))


def requested(path: Path) -> dict[str, Any]:
    comparison = read_comparison(path)
    (cell,) = cells_of(comparison, {"tiny-llama": 6})
    assert isinstance(cell, Cell)
    return request_of(cell, comparison, {"calibration": "c", "held_out": "h", "config": "m"})


def test_a_request_names_no_place_of_this_machine_and_differs_where_a_setting_does(
    config: Any, text_file: Path
) -> None:
    first = requested(config())
    assert str(text_file.parent) not in str(first)
    assert first["text"]["data"] == "${TEXT}"
    assert differing(first, requested(config(methods=[{"method": "magnitude", "title": "other"}]))) is None
    assert differing(requested(config(precision="fp32")), first) == "precision: 'fp32', was 'auto'"
    longer = config(text={"data": "${TEXT}", "sequence_length": 32, "num_sequences": 9, "num_eval_sequences": 4})
    assert differing(requested(longer), first) == "text.num_sequences: 9, was 8"
    l2 = config(methods=[{"method": "magnitude", "settings": {"norm": "l2"}}])
    assert differing(requested(l2), first) == "options.norm: 'l2', was 'l1'"
    assert differing({"a": 1}, {"a": 1, "b": 2}) == "b: None, was 2"


def test_a_result_lacks_tasks_of_another_limit_and_speed_but_not_what_it_has_beyond() -> None:
    made = {"measures": {"tasks": {"a": 5, "b": None}, "speed": False}}
    for tasks, speed, lacking in (
        ({}, False, False), ({"a": 5}, False, False), ({"b": None}, False, False), ({"a": None}, False, True),
        ({"c": None}, False, True), ({}, True, True),
    ):  # fmt: skip
        assert lacks(made, {"tasks": tasks, "speed": speed}) == lacking


def test_variables_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "1")
    monkeypatch.setenv("B", "${A}")
    assert with_environment("${A}/${B}/$A/{A}") == "1/${A}/$A/{A}"
