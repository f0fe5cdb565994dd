"""IGIA against its definition in float64, in every set-up that changes where gradients come from."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from secateur import IGIA, Decoder, IGIACallback, RequestError, RunError, merge_layers_
from secateur.surgery.merge import merge_targets
from secateur.training.igia import rank_correlation
from secateur.training.lora import attach_lora, gradient_checkpointing_quietly
from secateur.training.trainer_options import options_as_named_here

STEPS, RANK = 5, 3


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=3, n_head=2, n_positions=64)).eval()


def mixtral() -> Any:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


def tokens(seed: int, batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(3, 60, (batch, length), generator=torch.Generator().manual_seed(seed))


def walk(model: Any, igia: IGIA, steps: int = STEPS, each: Any = None) -> None:
    """A training loop of one's own: `each` looks at the model when its gradients are there."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for step in range(steps):
        ids = tokens(step)
        model(input_ids=ids, labels=ids).loss.backward()
        if each is not None:
            each()
        igia.add_step()
        optimizer.step()
        optimizer.zero_grad()


class Dense:
    """The published manner: a dense product a weight and a step, squared and added up in float64."""

    def __init__(self, layers: Any, experts: int = 1) -> None:
        self.layers, self.sums, self.norms, self.steps = layers, {}, {}, 0

    def __call__(self) -> None:
        self.steps += 1
        for layer, module in enumerate(self.layers):
            for path, part in module.named_modules():
                if hasattr(part, "lora_A") and len(part.lora_A):
                    up = part.lora_B["default"].weight.grad.double()
                    down = part.lora_A["default"].weight.grad.double()
                    product = up @ down
                    key = layer, path
                    self.sums[key] = self.sums.get(key, 0) + product**2
                    self.norms[key] = self.norms.get(key, 0) + product.norm()

    def score(self, layer: int) -> float:
        return sum(float(total.sum()) for (other, _), total in self.sums.items() if other == layer) / self.steps

    def norm_score(self, layer: int) -> float:
        return sum(float(total) for (other, _), total in self.norms.items() if other == layer) / self.steps


def adapted(model: Any) -> Any:
    return attach_lora(Decoder(model), rank=RANK, alpha=6, seed=0)


def test_matrices_and_scores_equal_the_dense_definition_in_float64(tiny_model):
    model = adapted(tiny_model)
    igia = IGIA(model)
    dense = Dense(Decoder(tiny_model, verify=False).layers)
    walk(model, igia, each=dense)
    assert igia.names(0) == [f"{path}.weight" for (layer, path) in dense.sums if layer == 0]
    assert len(igia.names(0)) == 7
    for (layer, path), total in dense.sums.items():
        expected = total / STEPS
        found = igia.matrix(layer, f"{path}.weight").double()
        assert (found - expected).norm() / expected.norm() < 1e-6
    for layer in range(6):
        assert igia.scores()[layer] == pytest.approx(dense.score(layer), rel=1e-9)
        assert igia.scores("norm")[layer] == pytest.approx(dense.norm_score(layer), rel=1e-9)
    assert igia.scores().method == "gradpruner"


def test_scores_are_the_sums_of_the_matrices(tiny_model):
    model = adapted(tiny_model)
    igia = IGIA(model)
    walk(model, igia)
    for layer, score in enumerate(igia.scores()):
        total = sum(igia.matrix(layer, name).double().sum().item() for name in igia.names(layer))
        assert score == pytest.approx(total, rel=1e-6)


def test_matrix_of_conv1d_has_the_stored_shape():
    base = gpt2()
    model = adapted(base)
    igia = IGIA(model)
    dense = Dense(base.transformer.h)
    walk(model, igia, each=dense)
    assert set(igia.names(0)) == {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"}
    plain = model.unload()
    for layer in range(3):
        for name in igia.names(layer):
            stored = plain.transformer.h[layer].get_parameter(name)
            expected = (dense.sums[layer, name.removesuffix(".weight")] / STEPS).T  # Conv1D stores (in, out)
            found = igia.matrix(layer, name)
            assert found.shape == stored.shape
            assert (found - expected).norm() / expected.norm() < 1e-6


def test_matrix_of_stacked_experts_is_the_product_of_each_expert():
    """The oracle is peft's own delta weight: with A and B set to the gradients, it is their product by expert."""
    base = mixtral()
    model = adapted(base)
    igia = IGIA(model)
    layer = 1
    part = next(m for m in base.model.layers[layer].modules() if getattr(m, "parameter_name", "") == "down_proj")
    products = []

    def look() -> None:
        twin = copy.deepcopy(part)
        with torch.no_grad():
            for name in ("lora_A", "lora_B"):
                getattr(twin, name)["default"].weight.copy_(getattr(part, name)["default"].weight.grad)
        products.append(twin.get_delta_weight("default") / twin.scaling["default"])

    walk(model, igia, each=look)
    name = next(name for name in igia.names(layer) if name.endswith("down_proj"))
    plain = model.unload()
    expected = torch.stack(products).double().square().mean(dim=0)
    found = igia.matrix(layer, name)
    assert found.shape == plain.model.layers[layer].get_parameter(name).shape
    assert (found - expected).norm() / expected.norm() < 1e-6
    total = sum(igia.matrix(layer, name).double().sum().item() for name in igia.names(layer))
    assert igia.scores()[layer] == pytest.approx(total, rel=1e-6)
    assert any("gate_up_proj" in name for name in igia.names(layer))


def test_full_gradients_are_squared_themselves(tiny_model):
    igia = IGIA(tiny_model, gradients="full")
    sums: dict[tuple[int, str], Any] = {}

    def look() -> None:
        for layer, module in enumerate(tiny_model.model.layers):
            for name, parameter in module.named_parameters():
                if parameter.dim() == 2:
                    sums[layer, name] = sums.get((layer, name), 0) + parameter.grad.double() ** 2

    walk(tiny_model, igia, each=look)
    assert set(igia.names(2)) == {name for layer, name in sums if layer == 2}
    for (layer, name), total in sums.items():
        assert torch.allclose(igia.matrix(layer, name).double(), total / STEPS, rtol=1e-5, atol=1e-30)
    for layer in range(6):
        expected = sum(total.sum().item() for (other, _), total in sums.items() if other == layer) / STEPS
        assert igia.scores()[layer] == pytest.approx(expected, rel=1e-6)


def test_first_step_is_zero_because_b_is(tiny_model):
    model = adapted(tiny_model)
    igia = IGIA(model)
    walk(model, igia, steps=1)
    assert igia.history() == [[0.0] * 6]
    with pytest.raises(RunError, match="2 steps or more"):
        igia.scores()


def test_only_the_factors_are_kept(tiny_model):
    """t·r·(m+n) numbers a weight, and never an m x n matrix."""
    model = adapted(tiny_model)
    igia = IGIA(model)
    walk(model, igia)
    held = 0
    for weight in igia._weights.values():
        held += sum(up.numel() + down.numel() for up, down in weight.factors)
    shapes = [part.weight.shape for part in model.unload().model.layers.modules() if isinstance(part, torch.nn.Linear)]
    assert held == STEPS * RANK * sum(m + n for m, n in shapes)


def test_without_factors_scores_are_the_same_and_matrices_are_refused(tiny_model):
    model = adapted(tiny_model)
    kept, lean = IGIA(model), IGIA(model, keep_factors=False)
    walk(model, kept, each=lean.add_step)
    assert list(lean.scores()) == list(kept.scores())
    with pytest.raises(RequestError, match="keep_factors"):
        lean.matrix(0, "self_attn.q_proj.weight")


def test_a_step_that_is_not_finite_does_not_count(tiny_model):
    model = adapted(tiny_model)
    igia = IGIA(model)
    walk(model, igia, steps=3)
    before = list(igia.scores())
    ids = tokens(9)
    model(input_ids=ids, labels=ids).loss.backward()
    next(p for p in model.parameters() if p.grad is not None).grad.fill_(math.inf)
    assert not igia.add_step()
    assert list(igia.scores()) == before
    assert (igia.num_steps, igia.num_skipped) == (3, 1)
    assert igia.matrix(0, "mlp.up_proj.weight").isfinite().all()


def test_a_layer_without_lora_is_named(tiny_model):
    config = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[0, 1, 2, 4, 5], task_type="CAUSAL_LM")
    with gradient_checkpointing_quietly():
        model = get_peft_model(tiny_model, config)
    with pytest.raises(RequestError, match=r"layer 3 has no LoRA.*all-linear"):
        IGIA(model)


def test_gradients_that_are_not_there_are_an_error(tiny_model):
    with pytest.raises(RunError, match=r"before optimizer\.step"):
        IGIA(adapted(tiny_model)).add_step()


@pytest.mark.parametrize(
    ("first", "second", "tau"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4, 5], [1, 3, 2, 5, 4], 0.6),  # 8 concordant, 2 discordant pairs of 10
        ([1, 1, 2, 3], [1, 2, 2, 3], 0.8),  # 4 concordant, one tie each: 4 / sqrt(5 · 5)
        ([1, 1, 1], [1, 2, 3], 0.0),
    ],
)
def test_rank_correlation_is_kendalls_tau_b(first, second, tau):
    assert rank_correlation(first, second) == pytest.approx(tau)


# ---- in trainers -------------------------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = tokens(index, batch=1)[0]
        return {"input_ids": ids, "labels": ids}


class Spy(TrainerCallback):
    """The gradients as they are at the optimiser's step, in the dense manner."""

    def __init__(self, layers: Any) -> None:
        self.dense = Dense(layers)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.dense()


def train(model: Any, callbacks: list[Any], tmp_path: Any, **arguments: Any) -> Trainer:
    settings = {
        "max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "report_to": "none", "use_cpu": True,
        "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), **{**settings, **arguments}),
        train_dataset=Rows(),
        callbacks=callbacks,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {"max_grad_norm": 0.01},
        {"bf16": True},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}},
    ],
    ids=["plain", "accumulation", "clipped", "bf16", "checkpointing"],
)
def test_callback_sees_what_the_optimiser_sees(tiny_model, tmp_path, arguments):
    model = adapted(tiny_model)
    spy = Spy(tiny_model.model.layers)
    callback = IGIACallback(steps=4)
    with gradient_checkpointing_quietly():
        train(model, [spy, callback], tmp_path, **{"max_steps": 4, **options_as_named_here(arguments)})
    for layer, score in enumerate(callback.layer_scores()):
        assert score == pytest.approx(spy.dense.score(layer), rel=1e-6)
    assert len(callback.layer_scores()) == 6


def test_clipping_comes_before_reading(tiny_model, tmp_path):
    scores = []
    for limit in (1e-3, 1e-2):
        model = adapted(copy.deepcopy(tiny_model))
        callback = IGIACallback(steps=2)
        train(model, [callback], tmp_path, max_steps=2, max_grad_norm=limit)
        scores.append(list(callback.layer_scores()))
    # ‖(∇B, ∇A)‖ is clipped to the limit, and G is a product of two gradients: ten times the limit, 10⁴ times ‖G‖²
    assert sum(scores[1]) / sum(scores[0]) == pytest.approx(1e4, rel=0.5)


def test_callback_counts_steps_and_can_stop(tiny_model, tmp_path):
    callback = IGIACallback(steps=3, stop=True)
    trainer = train(adapted(tiny_model), [callback], tmp_path)
    assert trainer.state.global_step == 3
    assert callback.igia.num_steps == 3


def test_callback_leaves_the_training_alone(tiny_model, tmp_path):
    plain, watched = adapted(copy.deepcopy(tiny_model)), adapted(tiny_model)
    train(plain, [], tmp_path)
    train(watched, [IGIACallback(steps=3)], tmp_path)
    for one, other in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)


def test_share_of_the_steps_rounds_up(tiny_model, tmp_path):
    callback = IGIACallback(steps=0.4)
    train(adapted(tiny_model), [callback], tmp_path)
    assert callback.igia.num_steps == 3  # 0.4 · 6 is 2.4


def test_plan_carries_scores_stability_and_evidence(tiny_model, tmp_path):
    callback = IGIACallback(steps=6)
    train(adapted(tiny_model), [callback], tmp_path)
    plan = callback.plan(drop=2)
    assert plan.order == callback.layer_scores().lowest(2)
    assert plan.method == "gradpruner"
    assert -1 <= plan.provenance["stability"] <= 1
    assert plan.evidence is callback.igia
    plan.save(tmp_path / "plan.json")
    assert type(plan).load(tmp_path / "plan.json") == plan


def test_plan_names_the_merges_of_the_highest_scores(tiny_model, tmp_path):
    callback = IGIACallback(steps=3)
    train(adapted(tiny_model), [callback], tmp_path)
    plan = callback.plan(drop=4, merge="sign-igia", merged_layers=2, keep=0.1)
    assert plan.merges == merge_targets(plan.dropped, 6, plan.order[-2:])
    assert (plan.options["merge"], plan.options["keep"]) == ("sign-igia", 0.1)
    assert callback.plan(drop=4).merges == callback.plan(drop=4, merge="sign", merged_layers=0).merges == {}
    assert set(callback.plan(drop=4, merge="sign", merged_layers=None).merges) == set(plan.dropped)
    for wrong, words in (
        ({"keep": 0}, "keep is the share"),
        ({"merge": "signs"}, "merge is one of none, sign, sign-igia"),
    ):
        with pytest.raises(RequestError, match=words):
            callback.plan(drop=4, **wrong)


def test_plan_with_merges_without_what_they_need_is_refused(tiny_model, tmp_path):
    callback = IGIACallback(steps=3, keep_factors=False)
    train(adapted(tiny_model), [callback], tmp_path)
    with pytest.raises(RequestError, match="keep_factors=True"):
        callback.plan(drop=2, merge="sign")


def test_unstable_ranking_is_said_in_words(tiny_model, tmp_path, caplog):
    callback = IGIACallback(steps=6)
    train(adapted(tiny_model), [callback], tmp_path)
    by_step = [[0.0] * 6] + [list(range(6))] * 2 + [list(range(5, -1, -1))] * 3
    callback.igia._by_step = lambda _: torch.tensor(by_step, dtype=torch.float64)
    assert callback.igia.stability() == -1.0
    with caplog.at_level(logging.WARNING):
        callback.on_train_end()
    assert "Kendall's tau -1.00" in caplog.text


def test_half_without_a_gradient_says_nothing_of_the_stability(tiny_model, tmp_path):
    callback = IGIACallback(steps=4)
    train(adapted(tiny_model), [callback], tmp_path)
    assert callback.igia.stability() is not None
    zero, ranked = [0.0] * 6, [float(layer) for layer in range(6)]
    callback.igia._by_step = lambda _: torch.tensor([zero, zero, ranked, ranked], dtype=torch.float64)
    assert callback.igia.stability() is None
    assert callback.warnings() == []


def test_scores_of_fewer_steps_than_asked_for_are_said_in_words(tiny_model, tmp_path, caplog):
    callback = IGIACallback(steps=50)
    with caplog.at_level(logging.WARNING):
        train(adapted(tiny_model), [callback], tmp_path)
    steps = callback.igia.num_steps
    assert f"the scores are of {steps} steps, not of 50" in caplog.text
    callback.igia.num_skipped = 2
    assert callback.warnings()[0].endswith("not of 50; 2 more had gradients that are not finite")


@pytest.mark.parametrize("steps", [0, 1, -3, 0.0, 1.0, 1.5])
def test_wrong_numbers_of_steps_are_refused(steps):
    with pytest.raises(RequestError, match="steps is a count"):
        IGIACallback(steps=steps)


def test_fp16_without_clipping_is_refused(tiny_model):
    class Arguments:
        deepspeed, fp16, max_grad_norm = None, True, 0.0

    class State:
        global_step, max_steps = 0, 10

    with pytest.raises(RequestError, match="max_grad_norm"):
        IGIACallback().on_train_begin(Arguments(), State(), None, model=tiny_model)


def test_scores_before_training_are_an_error():
    with pytest.raises(RunError, match="give the callback to a Trainer"):
        IGIACallback().layer_scores()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scores_of_a_4_bit_model_are_those_of_its_adapters(tmp_path):
    pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = LlamaConfig(  # as wide as the blocks that are quantised together
        vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    quantised = AutoModelForCausalLM.from_pretrained(
        tmp_path / "wide", quantization_config=BitsAndBytesConfig(load_in_4bit=True), device_map="cpu"
    )
    model = adapted(quantised)
    spy = Spy(quantised.model.layers)
    callback = IGIACallback(steps=4)
    train(model, [spy, callback], tmp_path, max_steps=4)
    for layer, score in enumerate(callback.layer_scores()):
        assert score == pytest.approx(spy.dense.score(layer), rel=1e-6)
    with pytest.raises(RequestError, match="quantised"):
        merge_layers_(Decoder(model.unload()), {1: 0}, callback.igia)
