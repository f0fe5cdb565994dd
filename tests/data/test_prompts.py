import logging

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from secateur.data.prompts import context_length, encode_pairs, encode_prompts, padded
from secateur.errors import DataError, RequestError
from tiny_families import build

LAST = {"eos_token": "</s>"}
BOTH = {"bos_token": "<s>"} | LAST


def words(*, before=False, after=False, **special):
    """`w7` is token 7 + 2; on demand <s> (0) comes before and </s> (1) after every text."""
    core = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1} | {f"w{index}": index + 2 for index in range(100)}))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = f"{'<s> ' if before else ''}$A{' </s>' if after else ''}"
    core.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def pair(model, tokenizer, prompt, completion, limit=64):
    encoded = encode_pairs(model, tokenizer, [(prompt, completion)], limit=limit)[0]
    return encoded.context, encoded.completion


@pytest.mark.parametrize(
    ("before", "after", "context"), [(False, False, (3, 4)), (True, False, (0, 3, 4)), (True, True, (0, 3, 4))]
)
def test_special_tokens_come_once_before_the_prompt_and_not_after_either(model, before, after, context):
    tokenizer = words(before=before, after=after, **BOTH)
    assert pair(model, tokenizer, "w1 w2", " w3 w4") == (context, (5, 6))
    assert encode_prompts(model, tokenizer, ["w1 w2"], limit=64)[0].context == context


def test_what_a_chat_template_has_put_before_is_not_put_twice(model):
    tokenizer = words(before=True, **BOTH)
    assert pair(model, tokenizer, "<s> w1", " w2 </s>") == ((0, 3), (4, 1))


def test_space_at_the_end_of_a_prompt_belongs_to_the_completion(model, tiny_tokenizer):
    letters = {text: tuple(tiny_tokenizer(text)["input_ids"]) for text in ("ab", " c", "\nc")}
    for prompt, completion, scored in (("ab ", "c", " c"), ("ab", " c", " c"), ("ab\n", "c", "\nc")):
        assert pair(model, tiny_tokenizer, prompt, completion) == (letters["ab"], letters[scored])


def test_the_completion_has_the_tokens_beyond_as_many_as_the_prompt_has(model):
    """Where the two grow together at the seam, as lm-evaluation-harness has it."""
    core = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2, "bc": 3}, [("b", "c")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    assert pair(model, tokenizer, "ab", "ca") == ((0, 1), (0,))  # a b, and of "a bc a" what follows two tokens
    with pytest.raises(DataError, match=r"completion 'c' has no token of its own; begin it with a space"):
        pair(model, tokenizer, "ab", "c")


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt_is_the_first_token_of_a_text(model, prompt):
    model.config.bos_token_id, model.config.eos_token_id = None, [77, 78]
    assert pair(model, words(before=True, after=True, **BOTH), prompt, "w1") == ((0,), (3,))
    assert pair(model, words(**BOTH), prompt, "w1") == ((0,), (3,))
    assert pair(model, words(**LAST), prompt, "w1") == ((1,), (3,))
    assert pair(model, words(), prompt, "w1") == ((77,), (3,))
    assert encode_prompts(model, words(**BOTH), [prompt], limit=9)[0].context == (0,)
    model.config.eos_token_id = None
    with pytest.raises(DataError, match="no BOS or EOS token"):
        pair(model, words(), prompt, "w1")


def test_the_prompt_is_cut_from_the_left_and_the_completion_never(model, caplog):
    """The model reads context + completion − 1 tokens."""
    caplog.set_level(logging.WARNING)
    pairs = [("w1 w2 w3", " w4 w5"), ("w3", " w4 w5")]
    whole = encode_pairs(model, words(), pairs, limit=4)
    assert [(item.context, item.cut) for item in whole] == [((3, 4, 5), False), ((5,), False)]
    assert not caplog.messages
    cut = encode_pairs(model, words(), pairs, limit=3)
    assert [(item.context, item.completion, item.cut) for item in cut] == [
        ((4, 5), (6, 7), True),
        ((5,), (6, 7), False),
    ]
    assert caplog.messages == ["1 of 2 prompts lose their beginning to fit 3 tokens"]
    assert encode_prompts(model, words(), ["w1 w2 w3"], limit=2)[0].context == (4, 5)


def test_a_completion_too_long_by_itself_is_refused(model):
    assert pair(model, words(), "w1", " w2 w3", limit=2) == ((3,), (4, 5))
    with pytest.raises(DataError, match=r"completion ' w2 w3 w4' has 3 tokens, more than the 2 that can be read"):
        pair(model, words(), "w1", " w2 w3 w4", limit=2)


def test_no_more_is_read_than_the_context(model):
    assert context_length(model) == 64
    assert context_length(model, 10) == 10
    assert context_length(model, 1000) == 64
    endless = build("bloom")  # positions are distances
    assert context_length(endless, 1000) == 1000
    assert context_length(endless) > 10**9
    with pytest.raises(RequestError, match="max_length is 0"):
        context_length(model, 0)


def test_padding_is_masked_on_either_side():
    input_ids, mask = padded([(5, 6, 7), (8,)], left=True)
    assert input_ids[mask.bool()].tolist() == [5, 6, 7, 8]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert padded([(5, 6, 7), (8,)], left=False)[1].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert input_ids.dtype == mask.dtype == torch.int64
