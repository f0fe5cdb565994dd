"""LoRA is on every linear weight of every decoder layer, and nowhere else: against an enumeration by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.pytorch_utils import Conv1D

from secateur.decoder import Decoder
from secateur.errors import RequestError
from secateur.training.lora import attach_lora, gradient_checkpointing_quietly, linear_weights, lora_config
from tiny_families import FAMILIES, build, token_ids

EXPERTS = ("llama4_text", "qwen2_moe", "deepseek_v3", "jamba")


def expected_of(decoder: Decoder) -> set[str]:
    """Weights of linear maps and stacks of such, by their full names in the plain model; Llama 4's router returns a pair."""
    names = set()
    for layer, module in enumerate(decoder.layers):
        for path, part in module.named_modules():
            if isinstance(part, (nn.Linear, Conv1D)) and "Router" not in type(part).__name__:
                names.add(f"{decoder.path}.{layer}.{path}.weight")
        for name, weight in module.named_parameters():
            if ".experts." in name and weight.dim() == 3:
                names.add(f"{decoder.path}.{layer}.{name}")
    return names


def adapted(model: Any) -> set[str]:
    """Weights that have an adapter, by their names in the plain model; peft nests several of one module."""
    found = set()
    for path, part in model.get_base_model().named_modules():
        if isinstance(part, LoraLayer) and len(part.lora_A):
            place = ".".join(piece for piece in path.split(".") if piece != "base_layer")
            found.add(f"{place}.{getattr(part, 'parameter_name', 'weight')}")
    return found


@pytest.mark.parametrize("family", [*FAMILIES, "jamba"])
def test_adapters_are_on_every_linear_weight_of_the_layers_and_on_nothing_else(family: str) -> None:
    model = build(family)
    decoder = Decoder(model)
    expected = expected_of(decoder)
    names = {name for name, _ in model.named_parameters()}
    tuned = attach_lora(decoder, rank=2, alpha=4)
    assert adapted(tuned) == expected
    assert expected <= names
    stacked = {name for name in expected if not name.endswith(".weight")}
    assert bool(stacked) == (family in EXPERTS)
    plain = Decoder(tuned.unload())
    named = {
        f"{plain.path}.{number}.{name}" for number, layer in enumerate(plain.layers) for name in linear_weights(layer)
    }
    assert named - expected == {
        f"model.layers.{n}.feed_forward.router.weight" for n in (1, 3, 5) if family == "llama4_text"
    }
    assert named >= expected


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2_moe"])
def test_every_adapter_has_a_gradient_and_takes_part_in_the_output(family: str) -> None:
    model = build(family)
    with torch.no_grad():
        before = model(input_ids=token_ids()).logits
    tuned = attach_lora(Decoder(model), rank=2, alpha=4, seed=1)
    with torch.no_grad():
        assert torch.allclose(tuned(input_ids=token_ids()).logits, before, atol=1e-5)  # B is 0
    tuned(input_ids=token_ids(), labels=token_ids()).loss.backward()
    trained = {name: weight for name, weight in tuned.named_parameters() if weight.requires_grad}
    assert all("lora_" in name for name in trained)
    assert len(trained) == 2 * len(expected_of(Decoder(build(family))))
    assert all(
        weight.grad is not None and bool(weight.grad.any()) for name, weight in trained.items() if "lora_B" in name
    )


@pytest.mark.parametrize("family", ["gpt2", *EXPERTS])
def test_saved_adapter_loads_onto_the_same_weights_and_gives_the_same_logits(family: str, tmp_path: Path) -> None:
    """Peft renames the parts of some families' experts on the way; it must come to the same."""
    model, base = build(family), build(family)
    tuned = attach_lora(Decoder(model), rank=2, alpha=4)
    draw = torch.Generator().manual_seed(0)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1, generator=draw)
    tuned.save_pretrained(tmp_path)
    with gradient_checkpointing_quietly():
        loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    assert adapted(loaded) == adapted(tuned)
    with torch.no_grad():
        expected, plain = tuned(input_ids=token_ids()).logits, build(family)(input_ids=token_ids()).logits
        assert torch.allclose(loaded(input_ids=token_ids()).logits, expected, atol=1e-4)
    assert (expected - plain).abs().max() > 0.1


def test_dropout_before_stacked_experts_is_refused_and_nothing_is_changed() -> None:
    model = build("qwen2_moe")
    names = list(dict(model.named_modules()))
    with pytest.raises(RequestError, match=r"choose lora_dropout=0, not 0\.1"):
        attach_lora(Decoder(model), rank=2, alpha=4, dropout=0.1)
    assert list(dict(model.named_modules())) == names


def gemma3() -> Any:
    """An image encoder whose layers have the decoder's sub-layers by the same names, and as many of them."""
    settings = {"vocab_size": 64, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    both = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        "gemma3", text_config=both | settings, vision_config=both | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4, image_token_index=63,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForImageTextToText.from_config(config).eval()


def test_composite_model_gets_no_adapter_in_its_image_encoder() -> None:
    model = gemma3()
    decoder = Decoder(model)
    assert "vision" not in decoder.path
    expected = expected_of(decoder)
    vision = {name for name, part in model.named_modules() if isinstance(part, nn.Linear) and "vision" in name}
    assert {name.rpartition(".")[2] for name in vision} & {name.split(".")[-2] for name in expected}  # the same names
    assert adapted(attach_lora(decoder, rank=2, alpha=4)) == expected


def test_names_are_short_where_nothing_outside_the_layers_is_called_so() -> None:
    short = lora_config(Decoder(build("llama")), rank=2, alpha=4)
    assert short.target_modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert short.target_parameters is None
    model = build("llama")
    model.model.q_proj = nn.Linear(2, 2)
    named = lora_config(Decoder(model), rank=2, alpha=4)
    assert "model.layers.0.self_attn.q_proj" in named.target_modules
    assert len(named.target_modules) == 6 * 7


def test_settings_are_handed_on_and_the_same_seed_gives_the_same_adapters(tiny_model: Any) -> None:
    config = lora_config(Decoder(build("gpt2")), rank=3, alpha=12, dropout=0.1)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.fan_in_fan_out) == (3, 12, 0.1, True)
    assert not lora_config(Decoder(tiny_model), rank=3, alpha=12).fan_in_fan_out
    drawn = []
    for run, seed in enumerate((5, 5, 6)):
        torch.manual_seed(run)
        tuned = attach_lora(Decoder(tiny_model), rank=2, alpha=4, seed=seed)
        drawn.append({name: weight.clone() for name, weight in tuned.named_parameters() if "lora_A" in name})
        tuned.unload()
    assert all(torch.equal(weight, drawn[1][name]) for name, weight in drawn[0].items())
    assert not any(torch.equal(weight, drawn[2][name]) for name, weight in drawn[0].items())
