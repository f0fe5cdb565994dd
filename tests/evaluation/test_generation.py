import logging

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from secateur.errors import RequestError
from secateur.evaluation.generation import generations

TEMPLATE = "{% for m in messages %}{{ 'w1 ' + m['content'] }}{% endfor %}{% if add_generation_prompt %} w2{% endif %}"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({f"w{index}": index for index in range(128)}))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def greedy(model, ids, count):
    """Without a cache, without `generate`."""
    ids = list(ids)
    with torch.no_grad():
        for _ in range(count):
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    return " ".join(f"w{index}" for index in ids[-count:])


def test_continuations_are_greedy_whatever_the_model_would_like(model, tokenizer, caplog, recwarn):
    model.generation_config.eos_token_id = None
    expected = [greedy(model, [3, 4, 5], 6), greedy(model, [9], 6)]
    own = model.generation_config
    own.do_sample, own.temperature, own.top_p, own.top_k, own.repetition_penalty, own.num_beams = (
        True,
        3.0,
        0.5,
        7,
        9.0,
        3,
    )
    model.train()
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        texts = generations(model, tokenizer, ["w3 w4 w5", "w9"], max_new_tokens=6)
    finally:
        logger.removeHandler(caplog.handler)
    assert texts == expected
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not recwarn.list
    assert model.generation_config is own
    assert model.training


def test_the_end_of_text_ends_the_continuation(model, tokenizer):
    model.generation_config.eos_token_id = None
    first = greedy(model, [3], 4).split()
    model.generation_config.eos_token_id = [int(first[1][1:]), 127]
    assert generations(model, tokenizer, ["w3"], max_new_tokens=4)[0].split() == first[:2]


def test_the_chat_template_is_used_when_asked_for(model, tokenizer):
    model.generation_config.eos_token_id = None
    tokenizer.chat_template = TEMPLATE
    assert generations(model, tokenizer, ["w7"], max_new_tokens=3) == [greedy(model, [7], 3)]
    assert generations(model, tokenizer, ["w7"], max_new_tokens=3, chat=True) == [greedy(model, [1, 7, 2], 3)]


def test_chat_without_a_template_is_refused(model, tokenizer):
    with pytest.raises(RequestError, match="no chat template"):
        generations(model, tokenizer, ["w7"], chat=True)


def test_an_empty_prompt_is_refused(model, tokenizer):
    with pytest.raises(RequestError, match="has no tokens"):
        generations(model, tokenizer, [""])
