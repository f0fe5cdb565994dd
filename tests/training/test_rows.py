"""Rows of tokens: by hand, and against what evaluation scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from secateur.data import TokenBatches
from secateur.data.chat import ChatTemplate
from secateur.data.examples import Example, Examples
from secateur.errors import DataError
from secateur.evaluation.likelihood import log_likelihoods
from secateur.training.rows import rows_of, rows_of_windows
from tiny_families import build

BOS, EOS, TURN = 0, 1, 2


def words(*, before: bool = False) -> PreTrainedTokenizerFast:
    """`w7` is token 7 + 4; <s> and </s> are 0 and 1, <|turn|> is 2; on demand <s> comes before every text."""
    vocabulary = {"<s>": BOS, "</s>": EOS, "<|turn|>": TURN, "<unk>": 3} | {
        f"w{index}": index + 4 for index in range(90)
    }
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 (a token of text)
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A" if before else "$A", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")  # noqa: S106


def examples_of(*pairs: tuple[str, str], kind: Any = "completion") -> Examples:
    return Examples(items=tuple(Example(options=(pair,)) for pair in pairs), kind=kind, spec="made up")


def row_of(tokenizer: Any, prompt: str, completion: str, *, model: Any, max_length: int = 64, **kind: Any) -> Any:
    (row,) = rows_of(examples_of((prompt, completion), **kind), model, tokenizer, max_length=max_length)
    return row["input_ids"], row["labels"]


@pytest.mark.parametrize("before", [False, True])
def test_labels_are_the_completion_and_the_end_of_text_and_nothing_of_the_prompt(tiny_model: Any, before: bool) -> None:
    ids, labels = row_of(words(before=before), "w1 w2", " w3 w4", model=tiny_model)
    assert ids == [*[BOS] * before, 5, 6, 7, 8, EOS]
    assert labels == [*[-100] * (before + 2), 7, 8, EOS]


@pytest.mark.parametrize(
    ("template", "ids"),
    [
        # what ends a turn is the end of text: it is there already, and what follows it stays
        ("{% for m in messages %}{{ m.content }} </s> {% endfor %}{% if add_generation_prompt %}{% endif %}", [5, EOS, 6, EOS]),
        # the template writes the BOS itself, and ends its turns by a token that is not the end of text
        ("<s> {% for m in messages %}{{ m.content }} <|turn|> {% endfor %}", [BOS, 5, TURN, 6, TURN, EOS]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", [False, True])
def test_text_of_a_chat_template_gets_no_second_bos_or_eos(
    tiny_model: Any, template: str, ids: list[int], before: bool
) -> None:
    tokenizer = words(before=before)
    tokenizer.chat_template = template
    pair = ChatTemplate(tokenizer=tokenizer).pair(
        [{"role": "user", "content": "w1"}], [{"role": "assistant", "content": "w2"}]
    )
    found, labels = row_of(tokenizer, *pair, model=tiny_model)
    expected = ids if ids[0] == BOS or not before else [BOS, *ids]  # once, whoever writes it
    assert found == expected
    learnt = expected.index(6)
    assert labels == [-100] * learnt + expected[learnt:]


def test_prompt_is_cut_from_the_left_and_the_completion_never(tiny_model: Any) -> None:
    ids, labels = row_of(words(), "w1 w2 w3 w4", " w5 w6", model=tiny_model, max_length=5)
    assert ids == [7, 8, 9, 10, EOS]  # two of four tokens of the prompt
    assert labels == [-100, -100, 9, 10, EOS]
    assert row_of(words(), "w1 w2", " w5 w6", model=tiny_model, max_length=5)[0] == [5, 6, 9, 10, EOS]
    assert row_of(words(), "w1 w2", " w5 w6 w7", model=tiny_model, max_length=5)[0] == [6, 9, 10, 11, EOS]
    with pytest.raises(DataError, match=r"completion ' w5 w6 w7 w8' has 4 tokens"):
        row_of(words(), "w1", " w5 w6 w7 w8", model=tiny_model, max_length=5)


def test_plain_text_is_cut_at_its_end_and_all_of_it_is_learnt_after_the_token_before(tiny_model: Any) -> None:
    whole = row_of(words(), "", "w1 w2 w3 w4", model=tiny_model, kind="text")
    assert whole == ([BOS, 5, 6, 7, 8, EOS], [-100, 5, 6, 7, 8, EOS])
    cut = row_of(words(), "", "w1 w2 w3 w4", model=tiny_model, kind="text", max_length=4)
    assert cut == ([BOS, 5, 6, 7], [-100, 5, 6, 7])


def test_no_row_is_longer_than_the_context_of_the_model() -> None:
    model = build("gpt2", n_positions=8, vocab_size=128)
    text = " ".join(f"w{index}" for index in range(20))
    tokenizer = words()
    rows = [
        *rows_of(examples_of(("", text), kind="text"), model, tokenizer, max_length=1024),
        *rows_of(examples_of((text, " w21 w22")), model, tokenizer, max_length=1024),
    ]
    assert [len(row["input_ids"]) for row in rows] == [8, 8]
    assert rows[1]["labels"][-3:] == [25, 26, EOS]
    for row in rows:
        model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]]))


def test_without_an_end_of_text_the_completion_ends_the_row(tiny_model: Any, tiny_tokenizer: Any) -> None:
    assert tiny_tokenizer.eos_token_id is None
    ids, labels = row_of(tiny_tokenizer, "ab", " c", model=tiny_model)
    assert ids == tiny_tokenizer("ab c")["input_ids"]
    assert labels == [-100, -100, *ids[2:]]


def test_loss_of_a_row_is_on_the_tokens_that_are_scored(tiny_model: Any, tiny_tokenizer: Any) -> None:
    """Σ ln p over a row's labels is what `evaluation` gives for the completion, and the cut prompt's too."""
    pairs = [("One and two make", " three"), ("Is it? ", "no"), ("", "text"), ("A longer prompt than fits", " it")]
    long = 14
    rows = rows_of(examples_of(*pairs), tiny_model, tiny_tokenizer, max_length=long)
    # two tokens of the prompt fewer than scoring leaves, for the end of text and the last token, which training reads
    scored = log_likelihoods(tiny_model, tiny_tokenizer, pairs, max_length=long - 2)
    assert [len(row["input_ids"]) for row in rows] == [13, 9, 5, 13]
    for row, item in zip(rows, scored, strict=True):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.no_grad():
            logs = tiny_model(input_ids=ids).logits[0].double().log_softmax(-1)
        places = (labels != -100).nonzero().flatten()
        assert len(places) == item.num_tokens
        assert sum(logs[place - 1, labels[place]].item() for place in places) == pytest.approx(item.nats, rel=1e-5)


def test_rows_of_choices_are_of_the_right_option(tiny_model: Any) -> None:
    item = Example(options=(("w1", " w2"), ("w1", " w3")), label=1)
    examples = Examples(items=(item,), kind="choice", spec="made up")
    (row,) = rows_of(examples, tiny_model, words(), max_length=9)
    assert row == {"input_ids": [5, 7, EOS], "labels": [-100, 7, EOS]}


def test_rows_of_windows_learn_every_token() -> None:
    windows = TokenBatches(torch.arange(6).view(2, 3), 2, "made up")
    assert rows_of_windows(windows) == [
        {"input_ids": [0, 1, 2], "labels": [0, 1, 2]},
        {"input_ids": [3, 4, 5], "labels": [3, 4, 5]},
    ]
