"""Held against one pass a pair, without padding, in float64."""

import copy
import math
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model

from secateur.errors import DataError, RequestError
from secateur.evaluation.likelihood import log_likelihoods, num_sequences
from tiny_families import FAMILIES, build

PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " a small town on the coast"),
    ("Two and two make ", "4"),
    ("Two and two make ", "5"),
    ("Q: is it?\nA:", " yes"),
    ("x", "y"),
    ("x", "y"),
    ("A much longer prompt, so that a batch has to be padded a good deal. Again:", " no"),
]


def by_hand(model, tokenizer, pairs, dtype=torch.float64):
    """Σ ln p a pair, one pass each; the model is copied."""
    model = copy.deepcopy(model).to(dtype).eval()
    sums = []
    for prompt, completion in pairs:
        start = len(tokenizer(prompt.rstrip())["input_ids"])
        ids = torch.tensor([tokenizer(prompt + completion)["input_ids"]])
        with torch.no_grad():
            predictions = model(ids).logits[0].double().log_softmax(-1)
        sums.append(sum(predictions[place - 1, ids[0, place]].item() for place in range(start, ids.shape[1])))
    return sums


def nats(model, tokenizer, pairs, **options):
    return [item.nats for item in log_likelihoods(model, tokenizer, pairs, **options)]


@contextmanager
def counted(model):
    """The shapes of the batches that the model reads."""
    shapes = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    yield shapes
    handle.remove()


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("side", ["left", "right"])
def test_equals_one_float64_pass_a_pair_whatever_the_batches_and_the_padding_side(
    tiny_model, tiny_tokenizer, batch_size, side
):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.padding_side = side
    assert tokenizer.pad_token is None
    expected = by_hand(tiny_model, tokenizer, PAIRS)
    scored = log_likelihoods(tiny_model, tokenizer, PAIRS, batch_size=batch_size)
    assert [item.nats for item in scored] == pytest.approx(expected, rel=1e-5)
    assert [item.num_tokens for item in scored] == [6, 26, 2, 2, 4, 1, 1, 3]
    assert not any(item.cut for item in scored)


@pytest.mark.parametrize("family", [*FAMILIES, "jamba"])
def test_equals_one_pass_a_pair_in_every_family(family, tiny_tokenizer):
    """Their logits' scales and caps, windows and experts; with and without `logits_to_keep`."""
    model = build(family, vocab_size=128)
    pairs = [("ab", " cd"), ("a", "bcdef"), ("some more of it", " x"), ("some more of it", " y")]
    expected = by_hand(model, tiny_tokenizer, pairs, torch.float32)
    assert nats(model, tiny_tokenizer, pairs) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_model_that_always_gives_all_logits_scores_the_same(tiny_model, tiny_tokenizer, monkeypatch):
    expected = nats(tiny_model, tiny_tokenizer, PAIRS)
    plain = tiny_model.forward
    monkeypatch.setattr(
        tiny_model,
        "forward",
        lambda input_ids, attention_mask, use_cache: plain(input_ids, attention_mask=attention_mask),
    )
    assert nats(tiny_model, tiny_tokenizer, PAIRS) == pytest.approx(expected, rel=1e-6)


def test_options_of_one_token_share_one_pass(tiny_model, tiny_tokenizer):
    pairs = [(prompt, letter) for prompt in ("is it a or b? ", "or c or d?") for letter in "abcd"]
    with counted(tiny_model) as shapes:
        shared = nats(tiny_model, tiny_tokenizer, pairs)
    assert shapes == [(2, 14)]  # "is it a or b?" and the space, which are read, and of eight letters none
    assert num_sequences(tiny_model, tiny_tokenizer, pairs) == 2
    assert shared == pytest.approx(by_hand(tiny_model, tiny_tokenizer, pairs), rel=1e-5)
    alone = [nats(tiny_model, tiny_tokenizer, [pair])[0] for pair in pairs]
    assert shared == pytest.approx(alone, rel=1e-6)


def test_only_the_logits_needed_are_made(tiny_model, tiny_tokenizer):
    kept = []
    tiny_model.lm_head.register_forward_hook(lambda module, args, output: kept.append(output.shape[1]))
    log_likelihoods(tiny_model, tiny_tokenizer, [("a long prompt", " ab"), ("a longer prompt", " ab")])
    assert kept == [5]  # of 17 positions: 3 tokens, and 2 by which the prompts differ


def test_the_prompt_is_cut_to_what_fits(tiny_model, tiny_tokenizer):
    cut = log_likelihoods(tiny_model, tiny_tokenizer, [("abcdefgh", " xy")], max_length=6)[0]
    assert cut.cut
    assert cut.nats == pytest.approx(by_hand(tiny_model, tiny_tokenizer, [("efgh", " xy")])[0], rel=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # peft asks for it
def test_lora_is_part_of_the_model(tiny_model, tiny_tokenizer):
    plain = nats(tiny_model, tiny_tokenizer, PAIRS)
    wrapped = get_peft_model(tiny_model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert nats(wrapped, tiny_tokenizer, PAIRS) == pytest.approx(plain, rel=1e-6)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    assert nats(wrapped, tiny_tokenizer, PAIRS) != pytest.approx(plain, rel=1e-2)
    expected = by_hand(wrapped, tiny_tokenizer, PAIRS)
    assert nats(wrapped, tiny_tokenizer, PAIRS) == pytest.approx(expected, rel=1e-4)


def test_precision_is_that_of_autocast_and_the_losses_stay_float32(tiny_model, tiny_tokenizer):
    exact = nats(tiny_model, tiny_tokenizer, PAIRS)
    half = nats(tiny_model, tiny_tokenizer, PAIRS, precision=torch.bfloat16)
    assert half != exact
    assert half == pytest.approx(exact, rel=0.05)


def test_the_model_is_given_back_as_it_was_also_on_error(tiny_model, tiny_tokenizer):
    tiny_model.train()
    tiny_model.model.layers[1].eval()
    before = [part.training for part in tiny_model.modules()], torch.get_rng_state().tolist()
    log_likelihoods(tiny_model, tiny_tokenizer, PAIRS)
    tiny_model.lm_head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        log_likelihoods(tiny_model, tiny_tokenizer, PAIRS)
    assert ([part.training for part in tiny_model.modules()], torch.get_rng_state().tolist()) == before
    assert torch.is_grad_enabled()


def test_a_broken_model_gives_nan_and_no_crash(tiny_model, tiny_tokenizer):
    torch.nn.init.constant_(tiny_model.model.norm.weight, math.nan)
    assert all(map(math.isnan, nats(tiny_model, tiny_tokenizer, PAIRS)))


def test_progress_counts_sequences(tiny_model, tiny_tokenizer):
    seen = []

    class Listener:
        @contextmanager
        def track(self, description, total):
            seen.append((description, total))
            yield seen.append

        def note(self, message): ...

    log_likelihoods(tiny_model, tiny_tokenizer, PAIRS, batch_size=4, progress=Listener(), description="test items")
    assert seen == [("test items", 6), 4, 2]  # the last two and the two sums share a sequence each


def test_wrong_requests_are_refused(tiny_model, tiny_tokenizer):
    with pytest.raises(RequestError, match="the batch size is 0; choose 1 or more"):
        log_likelihoods(tiny_model, tiny_tokenizer, PAIRS, batch_size=0)
    with pytest.raises(DataError, match=r"'x{40}…' has 600 tokens, more than the 512 that can be read"):
        log_likelihoods(tiny_model, tiny_tokenizer, [("a", "x" * 600)])
    assert log_likelihoods(tiny_model, tiny_tokenizer, []) == []
