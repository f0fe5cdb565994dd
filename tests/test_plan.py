import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import PlanError
from secateur.plan import LayerScores, PruningPlan, count_to_drop
from secateur.values import finite, read_sealed, write_json, write_sealed


@given(percent=st.integers(1, 99), num_layers=st.integers(2, 200))
def test_a_share_equals_rounding_half_up_in_exact_fractions(percent, num_layers):
    expected = min(max(math.floor(Fraction(percent, 100) * num_layers + Fraction(1, 2)), 1), num_layers - 1)
    assert count_to_drop(percent / 100, num_layers) == expected


@pytest.mark.parametrize(("drop", "num_layers", "count"), [(0.25, 32, 8), (0.25, 30, 8), (0.25, 10, 3), (0.29, 50, 15)])
def test_a_share_equals_the_count_by_hand(drop, num_layers, count):
    assert count_to_drop(drop, num_layers) == count


@given(share=st.floats(0, 1, exclude_min=True, exclude_max=True), num_layers=st.integers(2, 100))
def test_a_share_never_drops_none_or_all(share, num_layers):
    assert 1 <= count_to_drop(share, num_layers) < num_layers


@pytest.mark.parametrize("drop", [0, -1, 30, 31, 0.0, 1.0, -0.5, 2.5, math.nan, math.inf])
def test_a_drop_out_of_bounds_is_refused_with_value_and_remedy(drop):
    with pytest.raises(PlanError, match=r"cannot drop .*choose") as caught:
        count_to_drop(drop, 30)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("drop", [1, 0.5])
def test_a_model_of_one_layer_has_none_to_spare(drop):
    with pytest.raises(PlanError, match="none to spare"):
        count_to_drop(drop, 1)


def test_the_bounds_themselves_are_counts():
    assert (count_to_drop(1, 30), count_to_drop(29, 30)) == (1, 29)


@given(values=st.lists(st.floats(-5, 5), min_size=2, max_size=12), data=st.data())
def test_lowest_equals_a_stable_sort(values, data):
    count = data.draw(st.integers(1, len(values) - 1))
    order = sorted(range(len(values)), key=values.__getitem__)[:count]
    scores = LayerScores(tuple(values), "m")
    assert scores.lowest(count) == tuple(order)
    plan = scores.plan(count)
    assert plan.order == tuple(order)
    assert plan.dropped == tuple(sorted(order))
    assert sorted((*plan.kept, *plan.dropped)) == list(range(len(values)))


def test_layers_without_a_score_are_dropped_last():
    nan = math.nan
    assert LayerScores((nan, 3.0, nan, 1.0, 2.0)).lowest(4) == (3, 4, 1, 0)


def test_scores_behave_as_a_sequence_of_floats():
    scores = LayerScores((3, 1, 2))  # type: ignore[arg-type]
    assert (scores[1], scores[-1], scores[:2], list(scores), len(scores)) == (1.0, 2.0, (3.0, 1.0), [3.0, 1.0, 2.0], 3)
    assert all(isinstance(score, float) for score in scores)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"order": (1, 1)}, "twice"),
        ({"order": (4,)}, "no layer 4"),
        ({"order": (-1,)}, "no layer -1"),
        ({"order": ()}, "cannot drop 0"),
        ({"order": (0, 1, 2, 3)}, "cannot drop 4 of 4"),
        ({"order": (1,), "scores": LayerScores((1.0, 2.0))}, "2 scores for 4 layers"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(fields, words):
    with pytest.raises(PlanError, match=words):
        PruningPlan(num_layers=4, **fields)


def test_load_equals_what_was_saved(tmp_path: Path):
    plan = PruningPlan(
        num_layers=4,
        order=(2, 0),
        scores=LayerScores((0.1, 1e300, -3.0, 0.2), "m"),
        method="m",
        options={"gate": "residual", "λ": 0.1},
        merges={2: 1},
        provenance={"model": {"id": "x"}, "seed": 0},
    )
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan
    assert json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["dropped"] == [0, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_nan_score_is_null_in_strict_json_and_nan_again_when_read(tmp_path: Path):
    path = tmp_path / "plan.json"
    plan = PruningPlan(num_layers=3, order=(1,), scores=LayerScores((0.5, math.nan, 1.0)), provenance={"x": math.inf})
    plan.save(path)
    body = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert body["scores"] == [0.5, None, 1.0]
    assert body["provenance"] == {"x": None}
    again = PruningPlan.load(path)
    assert again.scores is not None
    assert (again.scores[0], math.isnan(again.scores[1]), again.scores[2]) == (0.5, True, 1.0)
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


GOOD = {
    "num_layers": 4, "order": [1], "scores": None, "method": "m", "options": {}, "merges": {}, "provenance": {},
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "{}",
        "not json\nat all",
        *(json.dumps({key: value for key, value in GOOD.items() if key != left_out}) for left_out in GOOD),
        *(
            json.dumps(GOOD | change)
            for change in (
                {"num_layers": "many"},
                {"num_layers": None},
                {"num_layers": math.inf},
                {"order": None},
                {"order": ["one"]},
                {"order": [9]},
                {"order": [math.inf]},
                {"scores": [1.0]},
                {"scores": ["a", "b", "c", "d"]},
                {"scores": 7},
                {"options": None},
                {"merges": [1]},
                {"merges": {"a": "b"}},
            )
        ),
    ],
)
def test_a_malformed_file_is_a_plan_error_of_one_line(tmp_path: Path, text):
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        PruningPlan.load(path)
    assert "\n" not in str(caught.value)


def test_the_plan_that_the_malformed_ones_were_made_from_loads(tmp_path: Path):
    (tmp_path / "plan.json").write_text(json.dumps(GOOD), encoding="utf-8")
    assert PruningPlan.load(tmp_path / "plan.json").dropped == (1,)


@pytest.mark.parametrize("kind", ["missing", "directory", "binary"])
def test_an_unreadable_file_is_a_plan_error_of_one_line_that_names_it(tmp_path: Path, kind):
    path = tmp_path / "plan.json"
    if kind == "directory":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match=r"plan\.json") as caught:
        PruningPlan.load(path)
    assert "\n" not in str(caught.value)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=8))
def test_finite_equals_the_value_but_for_numbers_json_has_no_word_for(value):
    json.dumps(finite(value), allow_nan=False)
    if "nan" not in repr(value) and "inf" not in repr(value):
        assert finite(value) == value


def test_a_failed_write_leaves_the_old_file_byte_for_byte(tmp_path: Path):
    path = tmp_path / "x.json"
    write_json(path, {"a": (1, 2)})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["x.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_prefix_keeps_the_first_layers_and_nothing_that_was_made_for_all_of_them():
    plan = PruningPlan(num_layers=6, order=(4, 1, 3), method="m", merges={4: 0, 3: 2}, evidence="in memory")
    assert plan.prefix(3) is plan
    shorter = plan.prefix(2)
    assert (shorter.order, shorter.merges, shorter.evidence, shorter.method) == ((4, 1), {}, None, "m")
    for drop in (0, 4):
        with pytest.raises(PlanError, match=rf"cannot take {drop} of a plan's 3 layers; choose 1\.\.3"):
            plan.prefix(drop)


def test_sealed_values_come_back_as_they_were_or_are_said_to_be_damaged(tmp_path):
    file, values = tmp_path / "values.json", {"loss": 0.1 + 0.2, "nothing": None, "pair": (1, 2), "nan": math.nan}
    write_sealed(file, values)
    found = read_sealed(file)
    assert found["loss"] == values["loss"]
    assert found["pair"] == [1, 2]
    assert math.isnan(found["nan"])
    written, refused = file.read_bytes(), 0
    for place in range(len(written)):
        file.write_bytes(written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :])
        refused += is_damaged(file, found)
    assert refused > len(written) - 3


def is_damaged(file, values):
    """Whether it is refused; what is read is the same, as where a digit has changed that no float is fine enough for."""
    try:
        found = read_sealed(file)
    except ValueError:
        return True
    assert repr(found) == repr(values)
    return False
