import copy
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM

import secateur
from families.family_models import build as build_any
from secateur.decoder import Decoder
from secateur.errors import PlanError, UnsupportedModelError
from secateur.surgery.live import remove_layers_
from tiny_families import FAMILIES, build, logits, token_ids

IDS = token_ids()
CUTS = [[0, 5], [1, 2, 4]]


def bypassed(model, dropped):
    with Decoder(model).bypass(dropped):
        return logits(model, IDS)


def generate(model, *, cached):
    return model.generate(
        IDS,
        attention_mask=torch.ones_like(IDS),
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        use_cache=cached,
        pad_token_id=0,
        eos_token_id=None,
    )


@pytest.mark.parametrize("dropped", CUTS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_cut_equals_bypass_and_cached_equals_uncached_and_reload_equals_cut(family, dropped, tmp_path):
    model = build(family)
    dense = logits(model, IDS)
    expected = bypassed(model, dropped)
    assert not torch.allclose(dense, expected, atol=1e-2), "a layer that does nothing would prove nothing"
    remove_layers_(model, dropped)
    assert torch.equal(logits(model, IDS), expected)
    assert model.config.num_hidden_layers == len(Decoder(model).layers) == 6 - len(dropped)
    assert torch.equal(generate(model, cached=True), generate(model, cached=False))
    model.save_pretrained(tmp_path)
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(logits(again.eval(), IDS), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_number_equals_that_of_a_model_built_with_fewer_layers(family):
    """The oracle is transformers: the same attribute, in a model made from the cut configuration."""
    model = build(family)
    dropped = [0, 3]
    remove_layers_(model, dropped)
    fresh = AutoModelForCausalLM.from_config(copy.deepcopy(model.config))
    for (name, ours), (_, theirs) in zip(model.named_modules(), fresh.named_modules(), strict=True):
        numbers = {k: v for k, v in vars(theirs).items() if isinstance(v, int) and not isinstance(v, bool)}
        assert {key: vars(ours)[key] for key in numbers} == numbers, name


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dropped=st.sets(st.integers(0, 5), min_size=1, max_size=5))
def test_any_proper_subset_cut_equals_bypass(tiny_model, dropped):
    model = copy.deepcopy(tiny_model)
    expected = bypassed(model, dropped)
    remove_layers_(model, dropped)
    assert torch.equal(logits(model, IDS), expected)
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(6 - len(dropped)))


def test_two_cuts_in_a_row_equal_one(tiny_model):
    twice, once = copy.deepcopy(tiny_model), tiny_model
    remove_layers_(twice, [1])
    remove_layers_(twice, [3])  # which was 4
    remove_layers_(once, [1, 4])
    assert torch.equal(logits(twice, IDS), logits(once, IDS))
    assert twice.config.to_dict() == once.config.to_dict()


def test_few_layers_kept_far_apart_are_numbered_in_order():
    """A set of small integers is not always walked in order: {0, 2, 9} is walked as 0, 9, 2."""
    model = build("llama", num_hidden_layers=12)
    expected = bypassed(model, set(range(12)) - {0, 2, 9})
    remove_layers_(model, set(range(12)) - {0, 2, 9})
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2]
    assert torch.equal(logits(model, IDS), expected)
    assert torch.equal(generate(model, cached=True), generate(model, cached=False))


def test_order_and_repetition_do_not_matter(tiny_model):
    other = copy.deepcopy(tiny_model)
    remove_layers_(tiny_model, [4, 1, 4])
    remove_layers_(other, (1, 4))
    assert torch.equal(logits(tiny_model, IDS), logits(other, IDS))


def test_the_kept_weights_equal_the_old_ones_byte_for_byte_and_are_the_same_tensors(tiny_model):
    layers = list(tiny_model.model.layers)
    before = [copy.deepcopy(layer.state_dict()) for layer in layers]
    remove_layers_(tiny_model, [2])
    assert list(tiny_model.model.layers) == [layers[0], layers[1], *layers[3:]]
    for layer, old in zip(layers, before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_stay_tied_and_reload_equals_cut(tied, tmp_path):
    model = build("llama", tie_word_embeddings=tied)
    expected = bypassed(model, [1])
    remove_layers_(model, [1])
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for each in (model, again):
        assert (each.lm_head.weight is each.model.embed_tokens.weight) == tied
        assert torch.equal(logits(each, IDS), expected)


def snapshot(model):
    return (
        json.dumps(model.config.to_dict(), default=str, sort_keys=True),
        [id(module) for module in model.modules()],
        [
            (name, {k: v for k, v in vars(module).items() if isinstance(v, int)})
            for name, module in model.named_modules()
        ],
        {name: value.numpy().tobytes() for name, value in model.state_dict().items()},
    )


@pytest.mark.parametrize("dropped", [[], [6], [-1], [0, 9], range(6), range(7)], ids=str)
def test_an_impossible_cut_is_refused_and_the_model_equals_what_it_was(tiny_model, dropped):
    before = snapshot(tiny_model)
    with pytest.raises(PlanError) as caught:
        remove_layers_(tiny_model, dropped)
    assert "\n" not in str(caught.value)
    assert snapshot(tiny_model) == before


@pytest.mark.parametrize("dropped", [[2, 3], [0, 2, 3]], ids=str)
def test_a_broken_period_is_refused_and_the_model_equals_what_it_was(dropped):
    model = build("jamba")
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match="attn_layer_period=3"):
        remove_layers_(model, dropped)
    assert snapshot(model) == before


def test_a_whole_period_cut_equals_bypass_and_cached_equals_uncached():
    model = build("jamba")
    expected = bypassed(model, [3, 4, 5])
    remove_layers_(model, [3, 4, 5])
    assert torch.equal(logits(model, IDS), expected)
    assert torch.equal(generate(model, cached=True), generate(model, cached=False))


@pytest.mark.parametrize(
    ("family", "fields", "dropped", "reason"),
    [
        ("diffllama", {}, [1], r"layer 2 would not be read again as it is: its self_attn.lambda_init would be 0\.3"),
        ("beam", {}, [1], "computes other logits .* than with these layers bypassed"),
        ("gemma3n_text", {}, [2], "a kept layer needs what one of them computes"),
        ("bamba", {}, [1, 3, 5], "cannot use its cache, as it could before"),
        ("zamba", {}, [3, 5], "cannot be built from the configuration of the layers that are kept"),
    ],
    ids=["built from its number", "computed with its number", "read by a later layer", "cache", "not built"],
)
def test_a_cut_that_would_be_wrong_is_refused_and_the_model_equals_what_it_was(family, fields, dropped, reason):
    model = build_any(family, **fields)
    before, dense = snapshot(model), logits(model, IDS)
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        remove_layers_(model, dropped)
    assert "\n" not in str(caught.value)
    assert snapshot(model) == before
    assert torch.equal(logits(model, IDS), dense)


def test_a_table_with_a_part_for_each_layer_keeps_the_parts_of_the_kept_layers():
    model = build_any("gemma3n_text")
    tables = ("embed_tokens_per_layer.weight", "per_layer_model_projection.weight")
    dense = {name: model.model.get_parameter(name) for name in tables}
    before = {name: table.detach().clone() for name, table in dense.items()}
    remove_layers_(model, [0])
    embedding, projection = (model.model.get_parameter(name) for name in tables)
    assert torch.equal(embedding, before[tables[0]][:, 8:])
    assert torch.equal(projection, before[tables[1]][8:])
    assert (
        model.model.embed_tokens_per_layer.embedding_dim == model.model.per_layer_model_projection.out_features == 5 * 8
    )


def test_modules_that_replaced_others_after_building_are_renumbered_as_well():
    """BigBird puts in another attention, with a number of its own, when a text is short."""
    model = build_any("big_bird")
    logits(model, IDS)
    remove_layers_(model, [0, 2])
    assert [layer.attention.self.layer_idx for layer in model.bert.encoder.layer] == [0, 1, 2, 3]


def test_a_companion_list_is_refused_and_the_model_equals_what_it_was(tiny_model):
    tiny_model.model.adapters = nn.ModuleList([nn.Linear(2, 2) for _ in range(6)])
    before = snapshot(tiny_model)
    with pytest.raises(UnsupportedModelError, match="second list 'adapters'"):
        remove_layers_(tiny_model, [1])
    assert snapshot(tiny_model) == before


def test_an_interrupt_while_the_configuration_changes_leaves_the_model_as_it_was(tiny_model, monkeypatch):
    def half_way(config, dropped):
        config.num_hidden_layers = 1
        raise KeyboardInterrupt

    monkeypatch.setattr("secateur.surgery.live.remove_layers_from_config_", half_way)
    before = snapshot(tiny_model)
    with pytest.raises(KeyboardInterrupt):
        remove_layers_(tiny_model, [1])
    assert snapshot(tiny_model) == before


def test_the_public_name_is_this_function():
    assert secateur.remove_layers_ is remove_layers_
