"""Merging against a slow reference that goes entry by entry."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur import Decoder, RequestError
from secateur.surgery.merge import merge_layers_, merge_targets, top_entries

NAMES = ["self_attn.q_proj.weight", "mlp.up_proj.weight"]


class Given:
    """Evidence that is simply given."""

    def __init__(self, matrices: dict[tuple[int, str], torch.Tensor]) -> None:
        self.matrices = matrices

    def names(self, layer: int) -> list[str]:
        return [name for other, name in self.matrices if other == layer]

    def matrix(self, layer: int, name: str, device: Any = "cpu") -> torch.Tensor:
        return self.matrices[layer, name].to(device)


def evidence(model: Any, layers: Any = range(6), names: Any = NAMES) -> Given:
    generator = torch.Generator().manual_seed(1)
    matrices = {}
    for layer in layers:
        for name in names:
            shape = model.model.layers[layer].get_parameter(name).shape
            matrices[layer, name] = torch.rand(shape, generator=generator).square()
    return Given(matrices)


def slowly(model: Any, merges: dict[int, int], given: Given, keep: float, merge: str) -> None:
    """The same, entry by entry, as the docstring says it."""
    original = copy.deepcopy(model).model.layers
    for layer, into in sorted(merges.items()):
        for name in NAMES:
            pruned = original[layer].get_parameter(name)
            before, target = original[into].get_parameter(name), model.model.layers[into].get_parameter(name)
            f_pruned, f_kept = given.matrix(layer, name), given.matrix(into, name)
            ranked = sorted(f_pruned.flatten().tolist(), reverse=True)
            threshold = ranked[int(keep * len(ranked) + 0.5) - 1]
            for row in range(pruned.shape[0]):
                for column in range(pruned.shape[1]):
                    here = row, column
                    if f_pruned[here] < threshold or before[here].sign() != pruned[here].sign():
                        continue
                    added = pruned[here]
                    if merge == "sign-igia":
                        added = added * (f_pruned[here] / (f_pruned[here] + f_kept[here]))
                    target.data[here] += added


@pytest.mark.parametrize("merge", ["sign", "sign-igia"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 1.0])
def test_merge_equals_the_slow_reference_exactly(tiny_model, merge, keep):
    merges = {2: 1, 3: 1, 5: 4}
    given, expected = evidence(tiny_model), copy.deepcopy(tiny_model)
    slowly(expected, merges, given, keep, merge)
    report = merge_layers_(Decoder(tiny_model), merges, given, keep=keep, merge=merge)
    for (name, one), other in zip(tiny_model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert [(row["layer"], row["into"]) for row in report] == [(2, 1), (3, 1), (5, 4)]
    entries = sum(tiny_model.model.layers[0].get_parameter(name).numel() for name in NAMES)
    assert all(row["entries"] == entries and 0 < row["added"] <= keep * entries + 2 for row in report)


def test_two_layers_into_one_compare_the_signs_it_had(tiny_model):
    """The first merge flips an entry's sign; the second must not see that."""
    name = NAMES[0]
    layers = tiny_model.model.layers
    with torch.no_grad():
        for layer, value in ((0, 0.1), (1, -5.0), (2, 0.2)):
            layers[layer].get_parameter(name).fill_(value)
    given = evidence(tiny_model, names=[name])
    merge_layers_(Decoder(tiny_model), {1: 0, 2: 0}, given, keep=1.0)
    assert torch.allclose(layers[0].get_parameter(name), torch.tensor(0.1 + 0.2))  # -5 has the other sign: not added


def test_the_order_of_merges_does_not_matter(tiny_model):
    given, other = evidence(tiny_model), copy.deepcopy(tiny_model)
    merge_layers_(Decoder(tiny_model), {2: 1, 3: 1}, given)
    merge_layers_(Decoder(other), {3: 1, 2: 1}, given)
    assert all(torch.equal(a, b) for a, b in zip(tiny_model.parameters(), other.parameters(), strict=True))


def test_none_changes_nothing(tiny_model):
    before = copy.deepcopy(tiny_model.state_dict())
    assert merge_layers_(Decoder(tiny_model), {2: 1}, evidence(tiny_model), merge="none") == []
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())


def test_norms_biases_and_pruned_layers_stay_as_they_are(tiny_model):
    before = copy.deepcopy(tiny_model.state_dict())
    merge_layers_(Decoder(tiny_model), {2: 1}, evidence(tiny_model))
    changed = {name for name, value in tiny_model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"model.layers.1.{name}" for name in NAMES}


def test_weights_of_another_shape_are_skipped_and_said(tiny_model):
    given = evidence(tiny_model)
    wide = tiny_model.model.layers[1].mlp
    wide.up_proj = torch.nn.Linear(32, 96, bias=False)
    before = wide.up_proj.weight.detach().clone()
    (row,) = merge_layers_(Decoder(tiny_model, verify=False), {2: 1}, given)
    assert row["skipped"] == ["mlp.up_proj.weight"]
    assert torch.equal(wide.up_proj.weight, before)


def test_quantised_weights_are_refused_before_anything_changes(tiny_model):
    layer = tiny_model.model.layers[2].self_attn
    before = copy.deepcopy(tiny_model.state_dict())
    layer.q_proj.weight = torch.nn.Parameter(torch.zeros(32, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(RequestError, match="quantised"):
        merge_layers_(Decoder(tiny_model, verify=False), {2: 1}, evidence(tiny_model))
    name = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(tiny_model.state_dict()[name], before[name])


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.01, float("nan")])
def test_keep_is_a_share(tiny_model, keep):
    with pytest.raises(RequestError, match="keep is the share"):
        merge_layers_(Decoder(tiny_model), {2: 1}, evidence(tiny_model), keep=keep)


@pytest.mark.parametrize(
    ("dropped", "merged", "expected"),
    [
        ([2, 3, 5], [2, 3, 5], {2: 1, 3: 1, 5: 4}),
        ([0, 1, 4], [0, 1, 4], {0: 2, 1: 2, 4: 3}),  # nothing before them: the first that stays
        ([2, 3, 5], [3], {3: 1}),
        ([2], [], {}),
    ],
)
def test_targets_are_the_nearest_kept_before(dropped, merged, expected):
    assert merge_targets(dropped, 6, merged) == expected


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(0, 6), min_size=1, max_size=30),
    keep=st.floats(0.01, 1.0),
)
def test_top_entries_are_those_not_below_the_kth_largest(values, keep):
    chosen = top_entries(torch.tensor(values, dtype=torch.float32), keep).tolist()
    count = min(max(int(keep * len(values) + 0.5), 1), len(values))
    threshold = sorted(values, reverse=True)[count - 1]
    assert chosen == [value >= threshold and value > 0 for value in values]
