import copy

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from families.family_models import build as build_any
from secateur.decoder import Decoder, evaluating
from secateur.errors import PlanError, UnsupportedModelError
from tiny_families import FAMILIES, build, logits, token_ids

IDS = token_ids()


class BoomError(Exception):
    pass


def state(model):
    """All that must be given back: forwards, hooks, modes, gradients wanted, weights, random numbers."""
    return {
        "forward": [("forward" in vars(module)) for module in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "mode": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [p.grad is None for p in model.parameters()],
        "weights": [p.detach().clone().numpy().tobytes() for p in model.parameters()],
        "rng": torch.get_rng_state().numpy().tobytes(),
    }


def by_hand(model, layer_of):
    """The tiny Llama's logits, layer by layer; `layer_of(index, layer, hidden)` says what each layer gives."""
    body, seen = model.model, []
    hidden = body.embed_tokens(IDS)
    positions = torch.arange(IDS.shape[1]).unsqueeze(0)
    rotary = body.rotary_emb(hidden, positions)
    for index, layer in enumerate(body.layers):
        before = hidden

        def run(x, layer=layer):
            return layer(x, position_embeddings=rotary, position_ids=positions)

        hidden = layer_of(index, run, hidden)
        seen.append((before, hidden))
    return model.lm_head(body.norm(hidden)), seen


# ---- finding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_found_equal_those_the_family_runs_in_order(family):
    model = build(family)
    before = state(model)
    decoder = Decoder(model)
    assert state(model) == before
    called = []
    for index, layer in enumerate(decoder.layers):
        layer.register_forward_hook(lambda *_, index=index: called.append(index))
    logits(model, IDS)
    assert called == list(range(6))
    assert decoder.num_layers == 6
    assert model.get_submodule(decoder.path) is decoder.layers


def test_an_encoder_decoder_is_refused_as_such():
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=4, decoder_start_token_id=0)
    )
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        Decoder(model)


def test_the_decoder_half_of_an_encoder_decoder_is_found_by_its_own_count():
    config = BartConfig(
        vocab_size=64, d_model=16, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32,
    )  # fmt: skip
    decoder = Decoder(BartForCausalLM(config))
    assert (decoder.path, decoder.num_layers) == ("model.decoder.layers", 3)


def test_a_layer_that_returns_a_list_is_bypassed_as_if_it_were_taken_out():
    config = OpenAIGPTConfig(vocab_size=64, n_embd=16, n_layer=3, n_head=4, n_positions=32, initializer_range=0.3)
    model = OpenAIGPTLMHeadModel(config).eval()
    with Decoder(model).bypass([1]):
        bypassed = logits(model, IDS)
    del model.transformer.h[1]
    assert torch.equal(logits(model, IDS), bypassed)


def test_layers_that_hand_on_more_than_hidden_states_are_refused_with_that_reason():
    with pytest.raises(UnsupportedModelError, match="return ReformerOutput, not hidden states"):
        Decoder(build_any("reformer"))


def test_a_module_without_a_configuration_is_refused():
    with pytest.raises(UnsupportedModelError, match="no transformers configuration"):
        Decoder(nn.Linear(2, 2))


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_count_that_no_list_has_is_refused_with_the_count(tiny_model, count):
    tiny_model.config.num_hidden_layers = count
    with pytest.raises(UnsupportedModelError, match=f"no list of {count} modules"):
        Decoder(tiny_model)


def test_a_model_without_layers_is_refused_and_not_an_index_error(tiny_model):
    tiny_model.config.num_hidden_layers = 0
    tiny_model.model.layers = nn.ModuleList()
    with pytest.raises(UnsupportedModelError, match="no list of 0 modules"):
        Decoder(tiny_model)


def refuse(model, words):
    before = state(model)
    with pytest.raises(UnsupportedModelError, match=words):
        Decoder(model)
    assert state(model) == before


def test_layers_run_in_another_order_are_refused_with_the_order(tiny_model):
    layers = list(tiny_model.model.layers)
    tiny_model.model.layers = nn.ModuleList([layers[1], layers[0], *layers[2:]])
    real = tiny_model.model.forward
    decoy = tiny_model.model.layers

    def forward(*args, **kwargs):
        tiny_model.model.layers = nn.ModuleList(layers)
        try:
            return real(*args, **kwargs)
        finally:
            tiny_model.model.layers = decoy

    tiny_model.model.forward = forward
    refuse(tiny_model, r"not called once each in order but as \[1, 0, 2")


def test_a_layer_that_is_not_fed_by_the_one_before_is_refused(tiny_model):
    tiny_model.model.layers[3].register_forward_pre_hook(lambda _, args: (args[0] * 2, *args[1:]))
    refuse(tiny_model, "input of layer 3 is not the output of the layer before")


def test_a_list_that_is_never_called_is_refused(tiny_model):
    tiny_model.model.forward = lambda input_ids, **_: type(
        "Out", (), {"last_hidden_state": tiny_model.model.embed_tokens(input_ids), "past_key_values": None,
                    "hidden_states": None, "attentions": None}
    )()  # fmt: skip
    refuse(tiny_model, "does not call it")


def test_a_probe_that_fails_is_refused_with_its_own_reason(tiny_model):
    def fail(*_):
        raise BoomError("out of ink")

    tiny_model.model.layers[2].register_forward_pre_hook(fail)
    refuse(tiny_model, "failed with BoomError: out of ink")


def test_a_second_list_of_the_same_length_is_passed_over_for_the_one_that_runs(tiny_model):
    decoy = nn.ModuleList([nn.Linear(2, 2) for _ in range(6)])
    real = tiny_model.model.layers
    del tiny_model.model.layers
    tiny_model.model.decoy, tiny_model.model.layers = decoy, real
    assert Decoder(tiny_model).layers is real


# ---- bypass -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropped", [[0], [5], [1, 2], [0, 3, 5], range(6)])
def test_bypass_equals_the_loop_by_hand_without_those_layers_bit_for_bit(tiny_model, dropped):
    expected, _ = by_hand(tiny_model, lambda index, run, hidden: hidden if index in dropped else run(hidden))
    decoder = Decoder(tiny_model)
    with decoder.bypass(dropped):
        assert torch.equal(logits(tiny_model, IDS), expected)
    whole, _ = by_hand(tiny_model, lambda _, run, hidden: run(hidden))
    assert not torch.allclose(whole, expected, atol=1e-2)


def test_nested_bypasses_equal_their_union_bit_for_bit(tiny_model):
    decoder = Decoder(tiny_model)
    dense = logits(tiny_model, IDS)
    with decoder.bypass([1]):
        outer = logits(tiny_model, IDS)
        with decoder.bypass([1, 4]):
            both = logits(tiny_model, IDS)
        assert torch.equal(logits(tiny_model, IDS), outer)
    with decoder.bypass([4, 1, 1]):
        assert torch.equal(logits(tiny_model, IDS), both)
    assert torch.equal(logits(tiny_model, IDS), dense)
    assert not torch.equal(outer, both)


@pytest.mark.parametrize("layer", [-1, 6])
@pytest.mark.parametrize("enter", ["bypass", "capture", "gate", "start_at"])
def test_a_layer_that_does_not_exist_is_refused_and_nothing_is_changed(tiny_model, layer, enter):
    decoder = Decoder(tiny_model)
    before = state(tiny_model)
    manager = {
        "bypass": lambda: decoder.bypass([0, layer]),
        "capture": lambda: decoder.capture([0, layer]),
        "gate": lambda: decoder.gate(torch.ones(6), layers=[0, layer]),
        "start_at": lambda: decoder.start_at(layer, torch.zeros(1, 1, 32)),
    }[enter]
    with pytest.raises(PlanError, match=f"no layer {layer}"), manager():
        pass
    assert state(tiny_model) == before


# ---- gate ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["residual", "output"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_gates_at_one_equal_the_plain_model_bit_for_bit(family, kind, dtype):
    model = build(family).to(dtype)
    decoder = Decoder(model)
    dense = logits(model, IDS)
    with decoder.gate(torch.ones(6), kind=kind):
        assert torch.equal(logits(model, IDS), dense)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_a_residual_gate_at_zero_equals_the_bypass_bit_for_bit(family, dtype):
    model = build(family).to(dtype)
    decoder = Decoder(model)
    gates = torch.ones(6)
    gates[[0, 2, 5]] = 0
    with decoder.bypass([0, 2, 5]):
        bypassed = logits(model, IDS)
    with decoder.gate(gates, kind="residual"):
        assert torch.equal(logits(model, IDS), bypassed)


@pytest.mark.parametrize("kind", ["residual", "output"])
def test_gates_equal_the_formula_in_float64(tiny_model, kind):
    model = tiny_model.double()
    gates = torch.tensor([0.9, 0.1, -0.5, 1.3, 0.0, 0.7], dtype=torch.float64)

    def formula(index, run, hidden):
        s = gates[index]
        return s * run(hidden) if kind == "output" else hidden + s * (run(hidden) - hidden)

    expected, _ = by_hand(model, formula)
    with Decoder(model).gate(gates, kind=kind):
        torch.testing.assert_close(logits(model, IDS), expected, rtol=1e-12, atol=1e-12)


def test_gates_of_some_layers_leave_the_others_alone_bit_for_bit(tiny_model):
    expected, _ = by_hand(tiny_model, lambda index, run, hidden: 0.5 * run(hidden) if index == 2 else run(hidden))
    with Decoder(tiny_model).gate(torch.full((6,), 0.5), kind="output", layers=[2]):
        assert torch.equal(logits(tiny_model, IDS), expected)


@pytest.mark.parametrize("kind", ["residual", "output"])
def test_the_gradient_of_the_gates_equals_that_of_the_formula_in_float64(tiny_model, kind):
    model = tiny_model.double().requires_grad_(False)
    gates = torch.linspace(0.4, 1.1, 6, dtype=torch.float64).requires_grad_()

    def formula(index, run, hidden):
        s = gates[index]
        return s * run(hidden) if kind == "output" else hidden + s * (run(hidden) - hidden)

    def gradient(predicted):
        loss = nn.functional.cross_entropy(predicted[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        return torch.autograd.grad(loss, gates)[0]

    expected = gradient(by_hand(model, formula)[0])
    with Decoder(model).gate(gates, kind=kind):
        found = gradient(model(input_ids=IDS, use_cache=False).logits)
    assert expected[:5].abs().min() > 1e-3  # of the last `output` gate none is left behind the norm
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


# ---- capture ------------------------------------------------------------------------------------------------------------


def test_capture_equals_the_loop_by_hand_bit_for_bit(tiny_model):
    _, seen_by_hand = by_hand(tiny_model, lambda _, run, hidden: run(hidden))
    decoder = Decoder(tiny_model)
    with decoder.capture([0, 3, 5]) as seen:
        logits(tiny_model, IDS)
    assert sorted(seen.inputs) == sorted(seen.outputs) == [0, 3, 5]
    for layer in seen.inputs:
        assert torch.equal(seen.inputs[layer], seen_by_hand[layer][0])
        assert torch.equal(seen.outputs[layer], seen_by_hand[layer][1])


def test_capture_inside_gate_equals_the_gated_output_by_formula(tiny_model):
    decoder = Decoder(tiny_model)
    with decoder.capture([1]) as plain:
        logits(tiny_model, IDS)
    with decoder.gate(torch.full((6,), 0.25), kind="output", layers=[1]), decoder.capture([1]) as gated:
        logits(tiny_model, IDS)
    assert torch.equal(gated.outputs[1], 0.25 * plain.outputs[1])
    assert torch.equal(gated.inputs[1], plain.inputs[1])


def test_capture_of_a_bypassed_layer_gives_output_equal_to_input(tiny_model):
    decoder = Decoder(tiny_model)
    with decoder.bypass([2]), decoder.capture([2]) as seen:
        logits(tiny_model, IDS)
    assert torch.equal(seen.inputs[2], seen.outputs[2])


def test_captured_tensors_carry_gradients_to_the_weights_before_them(tiny_model):
    with Decoder(tiny_model).capture([2]) as seen:
        tiny_model(input_ids=IDS, use_cache=False)
    seen.outputs[2].square().sum().backward()
    assert tiny_model.model.layers[2].mlp.down_proj.weight.grad.abs().sum() > 0
    assert tiny_model.model.layers[3].mlp.down_proj.weight.grad is None


def test_body_gives_capture_the_same_as_the_whole_model_bit_for_bit(tiny_model):
    decoder = Decoder(tiny_model)
    with torch.no_grad(), decoder.capture([4]) as whole:
        logits(tiny_model, IDS)
    with torch.no_grad(), decoder.capture([4]) as body:
        decoder.body(IDS)
    assert torch.equal(body.outputs[4], whole.outputs[4])


# ---- start_at -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1, 3, 5])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "gpt_neox", "opt", "bloom", "qwen2"])
def test_start_at_equals_the_whole_pass_bit_for_bit(family, layer):
    model = build(family)
    decoder = Decoder(model)
    with decoder.capture([layer]) as seen:
        dense = logits(model, IDS)
    with decoder.start_at(layer, seen.inputs[layer]):
        assert torch.equal(logits(model, IDS), dense)
    assert torch.equal(logits(model, IDS), dense)


def test_start_at_costs_nothing_before_the_layer(tiny_model):
    decoder = Decoder(tiny_model)
    called = []
    for index, layer in enumerate(decoder.layers):
        layer.mlp.register_forward_hook(lambda *_, index=index: called.append(index))
    with decoder.start_at(4, torch.zeros(2, IDS.shape[1], 32)):
        logits(tiny_model, IDS)
    assert called == [4, 5]


# ---- giving back --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, BoomError, KeyboardInterrupt])
@pytest.mark.parametrize("enter", ["bypass", "gate", "capture", "start_at", "evaluating", "all"])
def test_everything_equals_what_was_lent_after_an_error(tiny_model, enter, error):
    decoder = Decoder(tiny_model)
    tiny_model.train()
    tiny_model.model.layers[1].eval()
    tiny_model.model.layers[2].requires_grad_(False)
    own = tiny_model.model.layers[3].forward
    tiny_model.model.layers[3].forward = own  # as accelerate does: an attribute of the instance, to be given back
    managers = {
        "bypass": lambda: decoder.bypass([0, 3]),
        "gate": lambda: decoder.gate(torch.ones(6)),
        "capture": lambda: decoder.capture([0, 3]),
        "start_at": lambda: decoder.start_at(4, torch.zeros(2, IDS.shape[1], 32)),
        "evaluating": lambda: evaluating(tiny_model),
    }
    before = state(tiny_model)
    try:
        for manager in managers.values() if enter == "all" else [managers[enter]]:
            with manager():
                logits(tiny_model, IDS)
                if enter == "evaluating":
                    torch.rand(3)
                    assert not any(module.training for module in tiny_model.modules())
                if error is not None:
                    raise error
    except (BoomError, KeyboardInterrupt):
        pass
    assert state(tiny_model) == before
    assert vars(tiny_model.model.layers[3])["forward"] is own


def test_a_copy_made_afterwards_equals_the_model(tiny_model):
    decoder = Decoder(tiny_model)
    with decoder.bypass([1]), decoder.gate(torch.ones(6)):
        pass
    assert torch.equal(logits(copy.deepcopy(tiny_model), IDS), logits(tiny_model, IDS))


def test_the_probe_fits_a_vocabulary_smaller_than_itself(tiny_model):
    tiny_model.resize_token_embeddings(5)
    decoder = Decoder(tiny_model)
    assert decoder.num_layers == 6
    assert decoder.probe_ids().max() < 5
