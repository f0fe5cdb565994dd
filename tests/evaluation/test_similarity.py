"""What a model writes: against a greedy loop without cache or batch, and scores as published."""

import copy
import logging
import sys
from types import ModuleType

import pytest
import torch
from made_up_tasks import COMPLETIONS, example, state, task

from secateur.errors import RequestError
from secateur.evaluation import similarity
from secateur.evaluation.similarity import generation_scores


def greedy(model, tokenizer, prompt, count):
    """Without a cache, without `generate`, without a batch."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        for _ in range(count):
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    return ids[start:]


@pytest.mark.parametrize("batch_size", [1, 2, 50])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rouge_is_of_greedy_continuations_whatever_the_batches_and_the_padding_side(
    tiny_model, tiny_tokenizer, monkeypatch, batch_size, side
):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.padding_side = side
    tiny_model.generation_config.eos_token_id = None
    texts = []
    monkeypatch.setattr(similarity, "_bert_scores", lambda written, wanted: texts.extend(written))
    expected = [tokenizer.decode(greedy(tiny_model, tokenizer, item.prompt, 7)) for item in COMPLETIONS]
    tiny_model.train()
    tiny_model.generation_config.do_sample = True
    before = state(tiny_model)
    score = generation_scores(tiny_model, tokenizer, COMPLETIONS, max_new_tokens=7, batch_size=batch_size)
    assert texts == expected
    assert state(tiny_model) == before
    assert (score.metric, score.num_items, score.greater_is_better) == ("rouge_l", 3, True)


def test_the_end_of_a_text_ends_it_for_that_prompt_alone(tiny_model, tiny_tokenizer, monkeypatch):
    written = [greedy(tiny_model, tiny_tokenizer, item.prompt, 7) for item in COMPLETIONS]
    end = written[0][3]
    expected = [tiny_tokenizer.decode(ids[: ids.index(end)] if end in ids else ids) for ids in written]
    assert len({len(text) for text in expected}) > 1
    texts = []
    monkeypatch.setattr(similarity, "_bert_scores", lambda written, wanted: texts.extend(written))
    tiny_model.generation_config.eos_token_id = [end]
    generation_scores(tiny_model, tiny_tokenizer, COMPLETIONS, max_new_tokens=7)
    assert texts == expected


@pytest.mark.parametrize(
    ("text", "f1"),
    [
        ("police kill the gunman", 3 / 4),
        ("the gunman kill police", 2 / 4),
        ("Police killed the gunman, at last.", 2 * (4 / 6) * 1 / (4 / 6 + 1)),
        ("", 0.0),
    ],
)
def test_rouge_l_is_as_published(monkeypatch, tiny_tokenizer, text, f1):
    """The first two: Lin 2004, "ROUGE", section 3.1; the third has 4 of its 6 words, and all 4 wanted, in order."""
    monkeypatch.setattr(similarity, "continuations", lambda *args, **kwargs: ([text, text], 0))
    monkeypatch.setattr(similarity, "_bert_scores", lambda *_: None)
    item = example((("Then", " police killed the gunman"),))
    score = generation_scores(None, tiny_tokenizer, task((item, item), "completion"))
    assert score.value == score.further["rouge_l"] == pytest.approx(f1)
    assert score.further["bertscore"] is None
    assert score.interval == pytest.approx((f1, f1))


def test_the_special_token_that_ends_an_answer_is_not_a_word_of_it(monkeypatch, tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    monkeypatch.setattr(similarity, "continuations", lambda *args, **kwargs: (["an answer"], 0))
    monkeypatch.setattr(similarity, "_bert_scores", lambda *_: None)
    assert generation_scores(None, tokenizer, task((example((("p", "an answer<|im_end|>\n"),)),))).value == 1


def test_with_bertscore_the_value_is_the_mean_of_the_two(monkeypatch, tiny_tokenizer):
    class BERTScorer:
        def __init__(self, lang):
            assert lang == "en"

        def score(self, texts, references):
            torch.rand(3)  # a model that is being loaded draws
            assert (texts, references) == (["police kill the gunman", ""], [" police killed the gunman"] * 2)
            return torch.zeros(2), torch.zeros(2), torch.tensor([0.95, 0.5])

    library = ModuleType("bert_score")
    library.BERTScorer = BERTScorer
    monkeypatch.setitem(sys.modules, "bert_score", library)
    monkeypatch.setattr(similarity, "continuations", lambda *args, **kwargs: (["police kill the gunman", ""], 0))
    item = example((("Then", " police killed the gunman"),))
    before = torch.get_rng_state().tolist()
    score = generation_scores(None, tiny_tokenizer, task((item, item), "completion"))
    assert torch.get_rng_state().tolist() == before
    assert score.metric == "rouge_l_bertscore"
    assert score.outcomes == pytest.approx((0.85, 0.25))
    assert score.value == pytest.approx(0.55)
    assert (score.further["rouge_l"], score.further["bertscore"]) == pytest.approx((0.375, 0.725))


def test_without_bertscore_one_line_says_why_and_only_once(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "bert_score", None)
    similarity._say_without_bert_score.cache_clear()
    caplog.set_level(logging.WARNING)
    assert similarity._bert_scores(["a"], ["b"]) is None
    assert similarity._bert_scores(["a"], ["b"]) is None
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("BERTScore is left out")
    assert "bert_score" in caplog.messages[0]


def test_without_rouge_score_the_remedy_is_said_before_anything_is_written(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(RequestError, match="pip install rouge-score"):
        generation_scores(None, None, COMPLETIONS)


def test_prompts_are_cut_to_leave_room_to_write(tiny_model, tiny_tokenizer, monkeypatch):
    tiny_model.generation_config.eos_token_id = None
    texts = []
    monkeypatch.setattr(similarity, "_bert_scores", lambda written, wanted: texts.extend(written))
    items = task((example((("abcdefgh", " x"),)),), "completion")
    score = generation_scores(tiny_model, tiny_tokenizer, items, max_new_tokens=4, max_length=7)
    assert texts == [tiny_tokenizer.decode(greedy(tiny_model, tiny_tokenizer, "fgh", 4))]
    assert score.further["num_cut"] == 1
