from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import byte_tokenizer
from transformers import PreTrainedTokenizerFast

from secateur.data import Example, Examples, load_examples
from secateur.errors import DataError

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Written by hand: the user's "hi", asked for an answer; and what CHATML adds once "yo" is the answer.
ASKED, ANSWERED = "<|user|>hi<|end|>\n<|assistant|>", "yo<|end|>\n"


def chat_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def loaded(folder: Path, *rows: dict[str, Any], **options: Any) -> Examples:
    return load_examples(write(folder / "data.jsonl", *rows), **options)


def message_of(spec: str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_examples(spec, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def said_of(folder: Path, *rows: dict[str, Any], **options: Any) -> str:
    return message_of(write(folder / "data.jsonl", *rows), **options)


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": content} for place, content in enumerate(contents)]


# How prompts look: what a row of the columns' names gives


@pytest.mark.parametrize(
    ("row", "options", "prompt"),
    [
        ({"text": "secret", "label_text": "x"}, {"labels": ["x", "y"]}, "{text}\nLabel:"),
        ({"text": "secret", "label": 1}, {"labels": ["x", "y"], "template": "{text} Label:"}, "{text} Label:"),
        ({"question": "secret", "choices": ["a", "b"], "answer": 1}, {}, "Question: {question}\nAnswer:"),
        ({"question": "secret", "option1": "a", "option2": "b", "answer": 2}, {}, "Question: {question}\nAnswer:"),
        ({"ctx": "secret", "endings": ["a", "b"], "label": 0}, {}, "{ctx}"),
        ({"instruction": "secret", "input": "x", "output": "y"}, {}, "Instruction: {instruction}\nInput: {input}\nResponse:"),
        ({"prompt": "secret", "completion": " y"}, {}, "{prompt}"),
        ({"prompt": "secret", "completion": " y", "n": 3}, {"template": "{n}: {prompt}"}, "{n}: {prompt}"),
        ({"article": "secret", "summary": "y"}, {}, "{article}\n\nSummary:"),
        ({"messages": turns("secret", "y")}, {"tokenizer": chat_tokenizer()}, "<|user|>{messages}<|end|>\n<|assistant|>"),
        ({"prompt": turns("secret"), "completion": [{"role": "assistant", "content": "y"}]},
         {"tokenizer": chat_tokenizer()}, "<|user|>{prompt}<|end|>\n<|assistant|>"),
        ({"sentence": "secret _ .", "option1": "a", "option2": "b", "answer": 2}, {}, None),
        ({"text": "secret"}, {}, None),
    ],
)  # fmt: skip
def test_the_pattern_of_the_prompts_is_that_of_a_row_of_names_and_has_nothing_of_the_data(
    tmp_path: Path, row: dict[str, Any], options: dict[str, Any], prompt: str | None
) -> None:
    pattern = loaded(tmp_path, row, **options).pattern
    assert (pattern and pattern.prompt) == prompt
    if pattern is not None:
        assert "secret" not in pattern.example
        assert "{" not in pattern.example
        assert not pattern.has_bos


def test_the_pattern_says_whether_the_template_writes_the_token_that_begins_a_text(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(f"<s>{CHATML}")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    pattern = loaded(tmp_path, {"text": "a", "summary": "b"}, tokenizer=tokenizer, chat="always").pattern
    assert pattern is not None
    assert pattern.has_bos
    assert pattern.prompt == "<s><|user|>{text}\n\nSummary:<|end|>\n<|assistant|>"


# Formats: each row beside what is written by hand


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"prompt": "The sky is", "completion": " blue."}, "The sky is", " blue."),
        ({"prompt": "f(", "completion": "x)"}, "f(", "x)"),  # parted where the user chose
        ({"prompt": "Q:  ", "completion": "yes "}, "Q:", "  yes "),
        ({"prompt": "", "completion": "all of it"}, "", "all of it"),
        ({"prompt": "2 + 2 =", "completion": 4}, "2 + 2 =", "4"),
        ({"prompt": "Say hi.", "response": "Hi!"}, "Say hi.", " Hi!"),
        ({"prompt": "Say hi.\n", "response": "Hi!"}, "Say hi.\n", "Hi!"),
        ({"prompt": "Say hi. ", "response": "Hi!"}, "Say hi.", " Hi!"),
        ({"instruction": "Add.", "output": "3"}, "Instruction: Add.\nResponse:", " 3"),
        (
            {"instruction": " Add. ", "input": "1, 2\n", "output": "3\n", "text": "no"},
            "Instruction: Add.\nInput: 1, 2\nResponse:",
            " 3\n",
        ),
        ({"instruction": "Add.", "input": "", "output": "3"}, "Instruction: Add.\nResponse:", " 3"),
        ({"text": "Long.\n", "summary": "Short."}, "Long.\n\nSummary:", " Short."),
        ({"title": "On", "document": "Long.", "summary": " Short. "}, "On\n\nLong.\n\nSummary:", " Short."),
        ({"article": "Long.", "summary": "Short.", "id": 1}, "Long.\n\nSummary:", " Short."),
    ],
)
def test_row_of_a_completion_is_the_prompt_and_the_completion_written_by_hand(
    tmp_path: Path, row: dict[str, Any], prompt: str, completion: str
) -> None:
    examples = loaded(tmp_path, row)
    assert examples.kind == "completion"
    assert examples.items == (Example(options=((prompt, completion),)),)
    assert (examples[0].prompt, examples[0].completion, examples[0].is_choice) == (prompt, completion, False)
    assert examples.texts() == [prompt + completion]


@pytest.mark.parametrize("row", [{"text": " Some text.\n"}, {"content": " Some text.\n", "id": 1}])
def test_text_without_a_label_is_a_completion_of_nothing_just_as_it_is(tmp_path: Path, row: dict[str, Any]) -> None:
    examples = loaded(tmp_path, row)
    assert (examples.kind, examples.items) == ("text", (Example(options=(("", " Some text.\n"),)),))


@pytest.mark.parametrize(
    ("row", "options", "label"),
    [
        (
            {"question": "Why? ", "choices": ["yes", " no "], "label": 1},
            (("Question: Why?\nAnswer:", " yes"), ("Question: Why?\nAnswer:", " no")),
            1,
        ),
        (
            {"question": "Why?", "context": "It is.", "choices": ["a", "b"], "answer": "B"},
            (("Context: It is.\nQuestion: Why?\nAnswer:", " a"), ("Context: It is.\nQuestion: Why?\nAnswer:", " b")),
            1,
        ),
        (
            {"sentence": "Ann met Eve so _ smiled.", "option1": "Ann", "option2": "Eve", "answer": "2"},
            (("Ann met Eve so Ann", " smiled."), ("Ann met Eve so Eve", " smiled.")),
            1,
        ),
        (
            {"sentence": "It was _'s.", "choices": ["Ann", "Eve"], "label": 0, "context": "A _ b."},
            (("Context: A _ b.\nIt was Ann", "'s."), ("Context: A _ b.\nIt was Eve", "'s.")),
            0,
        ),
        (
            {"sentence": "It was _", "choices": ["Ann", "Eve"], "label": 0},
            (("It was", " Ann"), ("It was", " Eve")),
            0,
        ),
        (
            {"ctx": "Wash it. [header] Dry [title] Then", "endings": ["stop.", "[step] go  on."], "label": "1"},
            (("Wash it. Dry. Then", " stop."), ("Wash it. Dry. Then", " go on.")),
            1,
        ),
        (
            {"activity_label": "Sport", "ctx": "He runs", "endings": ["on.", "up."], "label": "0"},
            (("Sport: He runs", " on."), ("Sport: He runs", " up.")),
            0,
        ),
    ],
)
def test_row_of_a_choice_is_the_options_written_by_hand(
    tmp_path: Path, row: dict[str, Any], options: tuple[tuple[str, str], ...], label: int
) -> None:
    examples = loaded(tmp_path, row)
    assert (examples.kind, examples.labels) == ("choice", ())
    assert examples.items == (Example(options=options, label=label),)
    assert (examples[0].prompt, examples[0].completion) == options[label]
    assert (examples[0].num_options, examples[0].is_choice) == (2, True)


@pytest.mark.parametrize(
    ("right", "label"),
    [
        ({"label": 2}, 2),
        ({"label": "2"}, 2),
        ({"answer": "C"}, 2),
        ({"answerKey": "a"}, 0),
        ({"label": 0, "answer": "C"}, 0),
        ({"choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}, "answerKey": "C"}, 2),
        ({"choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "3"}, 2),
    ],
)
def test_right_choice_is_told_by_index_digit_letter_or_its_own_name(
    tmp_path: Path, right: dict[str, Any], label: int
) -> None:
    (example,) = loaded(tmp_path, {"question": "q", "choices": ["x", "y", "z"]} | right)
    assert example.label == label
    assert [completion for _, completion in example.options] == [" x", " y", " z"]


def test_labels_of_a_classification_are_those_of_the_data_sorted(tmp_path: Path) -> None:
    rows = [
        {"text": "so so ", "label": 7, "label_text": "neutral"},
        {"text": "bad", "label": 3, "label_text": "negative"},
        {"text": "fine", "label": 1, "label_text": "positive"},
    ]
    examples = loaded(tmp_path, *rows)
    assert (examples.kind, examples.labels) == ("choice", ("negative", "neutral", "positive"))
    assert [example.label for example in examples] == [1, 0, 2]
    prompt = "so so\nLabel:"
    assert examples[0].options == ((prompt, " negative"), (prompt, " neutral"), (prompt, " positive"))


def test_labels_given_are_chosen_among_in_their_order_and_name_integers(tmp_path: Path) -> None:
    train = loaded(tmp_path, {"sentence": "a", "label": "ham"}, {"sentence": "b", "label": "spam"})
    test = loaded(tmp_path, {"sentence": "c", "label": "spam"}, labels=train.labels)
    assert (test.labels, test[0].label, test[0].num_options) == (("ham", "spam"), 1, 2)
    assert loaded(tmp_path, {"text": "c", "label": "ham"}, labels=("spam", "ham"))[0].label == 1
    assert loaded(tmp_path, {"text": "c", "label": 0}, labels=("spam", "ham"))[0].completion == " spam"


def test_names_of_class_labels_are_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["negative", "positive", "unused"])})
    rows = Dataset.from_dict({"sentence": ["a", "b"], "label": [1, 0]}, features=features)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda **source: asked.append(source) or rows)
    examples = load_examples("hub:owner/name/config", split="test")
    assert examples.labels == ("negative", "positive")
    assert [example.completion for example in examples] == [" positive", " negative"]
    assert asked == [{"path": "owner/name", "name": "config", "split": "test", "streaming": False}]


def test_rows_that_hold_no_text_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"prompt": "a", "completion": " b"},
        {"prompt": "a", "completion": " "},
        {"prompt": None, "completion": "c"},
    ]
    with caplog.at_level(logging.INFO, logger="secateur.data.examples"):
        (example,) = loaded(tmp_path, *rows)
    assert example.row == 1
    assert "2 of 3 rows of" in caplog.text
    classes = [{"text": "a", "label": "x"}, {"text": " ", "label": None}, {"text": "b", "label": "y"}]
    assert [example.row for example in loaded(tmp_path, *classes)] == [1, 3]
    blank_choice = {"question": "q", "choices": ["a", ""], "label": 0}
    assert len(loaded(tmp_path, blank_choice, {"question": "q", "choices": ["a", "b"], "label": 0})) == 1


# The user's template


@pytest.mark.parametrize(
    ("row", "template", "options"),
    [
        ({"text": "t", "label": "x"}, "{text}\\nSentiment:", (("t\nSentiment:", " x"), ("t\nSentiment:", " y"))),
        ({"text": "t", "label": "x"}, "{text} =\n", (("t =\n", "x"), ("t =\n", "y"))),
        ({"text": "t", "label": "x"}, "{{{text}}} is  ", (("{t} is", " x"), ("{t} is", " y"))),
        (
            {"question": "q", "choices": ["a", "b"], "label": 0, "n": 3},
            "{n}. {question}",
            (("3. q", " a"), ("3. q", " b")),
        ),
        (
            {"sentence": "A _.", "choices": ["a", "b"], "label": 0},
            "{sentence} _ =",
            (("A _. _ =", " a"), ("A _. _ =", " b")),
        ),
        ({"prompt": "p", "completion": "c", "who": None}, "{who}Q: {prompt}", (("Q: p", " c"),)),
        ({"ctx": "c", "endings": ["a", "b"], "label": 0}, "{ctx} …", (("c …", " a"), ("c …", " b"))),
    ],
)
def test_template_makes_the_prompt_of_every_option(
    tmp_path: Path, row: dict[str, Any], template: str, options: tuple[tuple[str, str], ...]
) -> None:
    labels = ("x", "y") if row.get("label") == "x" else None
    assert loaded(tmp_path, row, template=template, labels=labels)[0].options == options


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{txet}", "names no column with {txet}; did you mean {text}? There are ['text', 'label', 'many']"),
        ("{zzz}", "choose from ['text', 'label', 'many']"),
        ("{text.__class__}", "names no column with {text.__class__}"),
        ("{text[0]}", "names no column with {text[0]}"),
        ("{}", "names no column with {}"),
        ("{text!r}", "write only its name"),
        ("{text:>9}", "write only its name"),
        ("{text:{label.__class__}}", "write only its name"),
        ("{text", "cannot be read"),
        ("text}", "cannot be read"),
        ("a\nb", "names no column, so all prompts would be one"),
        ("", "names no column"),
        ("{many}", "column 'many' holds list; name one of text or numbers"),
    ],
)
def test_template_that_cannot_be_filled_gives_an_error_with_the_columns(
    tmp_path: Path, template: str, said: str
) -> None:
    rows = [{"text": "a", "label": "x", "many": ["b"]}, {"text": "a", "label": "y", "many": ["b"]}]
    assert said in said_of(tmp_path, *rows, template=template)


# Chat messages


@pytest.mark.parametrize(
    "row",
    [
        {"messages": turns("hi", "yo")},
        {"messages": [{"role": "user", "content": "hi", "name": None}, {"role": "assistant", "content": "yo"}]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
        {"prompt": turns("hi"), "completion": turns("hi", "yo")[1:]},
        {"messages": turns("hi", "yo", "never answered")},
    ],
)
def test_conversation_is_written_out_as_by_hand(tmp_path: Path, row: dict[str, Any]) -> None:
    examples = loaded(tmp_path, row, tokenizer=chat_tokenizer())
    assert (examples.kind, [example.options for example in examples]) == ("completion", [((ASKED, ANSWERED),)])


def test_every_turn_of_the_assistant_is_an_example_with_all_before_it_as_the_prompt(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be kind."}
    examples = loaded(tmp_path, {"messages": [system, *turns("a", "b", "c", "d")]}, tokenizer=chat_tokenizer())
    first = "<|system|>Be kind.<|end|>\n<|user|>a<|end|>\n<|assistant|>"
    assert [example.options[0] for example in examples] == [
        (first, "b<|end|>\n"),
        (f"{first}b<|end|>\n<|user|>c<|end|>\n<|assistant|>", "d<|end|>\n"),
    ]
    assert [example.row for example in examples] == [1, 1]


def test_chat_always_makes_every_option_a_users_turn_and_the_assistants(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    (example,) = loaded(tmp_path, {"prompt": "hi", "response": "yo"}, tokenizer=tokenizer, chat="always")
    assert example.options == ((ASKED, ANSWERED),)
    (choice,) = loaded(
        tmp_path, {"text": "t", "label": "x"}, tokenizer=tokenizer, chat="always", template="{text}?", labels=("x", "y")
    )
    asked = "<|user|>t?<|end|>\n<|assistant|>"
    assert choice.options == ((asked, "x<|end|>\n"), (asked, "y<|end|>\n"))


def test_chat_auto_and_never_leave_text_as_it_is(tmp_path: Path) -> None:
    for chat in ("auto", "never"):
        (example,) = loaded(tmp_path, {"prompt": "hi", "completion": " yo"}, tokenizer=chat_tokenizer(), chat=chat)
        assert example.options == (("hi", " yo"),)


def test_space_at_the_end_of_a_rendered_prompt_is_the_completions(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("{% for m in messages %}[{{ m.content }}] {% endfor %}")
    tokenizer.chat_template += "{% if add_generation_prompt %}{% endif %}"
    assert loaded(tmp_path, {"messages": turns("hi", "yo")}, tokenizer=tokenizer)[0].options == (("[hi]", " [yo] "),)


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        ({"messages": turns("a", "b")}, {}, "row 1 of"),
        (
            {"messages": turns("a", "b")},
            {},
            "there is no tokenizer to write chat messages with; give that of a chat model",
        ),
        ({"messages": turns("a", "b")}, {"tokenizer": chat_tokenizer(None)}, "the tokenizer has no chat template"),
        ({"prompt": "a", "completion": "b"}, {"chat": "always"}, "there is no tokenizer"),
        ({"messages": turns("a", "b")}, {"tokenizer": chat_tokenizer(), "chat": "never"}, "chat is 'never'"),
        ({"prompt": turns("a"), "completion": "b"}, {"tokenizer": chat_tokenizer()}, "give two of a kind"),
        ({"messages": [{"role": "user"}]}, {"tokenizer": chat_tokenizer()}, "message 1 has no role, or no text"),
        ({"messages": "a"}, {"tokenizer": chat_tokenizer()}, "message 1 has no role, or no text"),
        ({"messages": turns("a", "b")}, {"template": "{messages}"}, "no prompt to make; leave the template out"),
        (
            {"messages": turns("a", "b")},
            {"tokenizer": chat_tokenizer("{{ raise_exception('no\nsuch role') }}")},
            "refuses the messages (no such role)",
        ),
        (
            {"messages": turns("a", "b")},
            {"tokenizer": chat_tokenizer(f"{{{{ messages | length }}}}{CHATML}")},
            "writes the conversation otherwise once the answer is in it",
        ),
        ({"text": "plain"}, {"tokenizer": chat_tokenizer(), "chat": "always"}, "no prompt to be the user's turn"),
        (
            {"messages": turns("nobody answers")},
            {"tokenizer": chat_tokenizer()},
            "none of its 1 rows holds an example (a turn of the role 'assistant' after another)",
        ),
    ],
)
def test_messages_that_cannot_be_written_out_give_an_error_of_one_line(
    tmp_path: Path, row: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    assert said in said_of(tmp_path, row, **options)


# Bad rows


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "q", "choices": ["a", "b"], "label": 2}, "the label 2 is none of its 2 choices; give 0..1"),
        ({"question": "q", "choices": ["a", "b"], "label": "C"}, "the label 'C' is none of its 2 choices"),
        ({"question": "q", "choices": ["a", "b"], "label": -2}, "or a letter A..B"),
        ({"question": "q", "choices": ["a", "b"], "label": "both"}, "the label 'both' is none"),
        ({"question": "q", "choices": ["a", "b"], "label": True}, "the label True is none"),
        ({"question": "q", "choices": ["a", "b"], "label": [0]}, "the label [0] is none"),
        ({"question": "q", "choices": ["a", "b"], "label": -1}, "has no label; choose a split whose rows are labelled"),
        ({"question": "q", "choices": ["a", "b"], "answer": ""}, "has no answer; choose a split"),
        ({"question": "q", "choices": ["a"], "label": 0}, "has 1 choices; give two or more"),
        ({"question": "q", "choices": "a, b", "label": 0}, "'choices' holds str, not a list"),
        ({"question": "q", "choices": [["a"], ["b"]], "label": 0}, "'choices' holds list, not text"),
        (
            {"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "0"},
            "'0' is none of its 2 choices; give 1..2",
        ),
        ({"sentence": "no gap", "choices": ["a", "b"], "label": 0}, "the sentence has 0 gaps _; leave one"),
        ({"sentence": "_ and _", "choices": ["a", "b"], "label": 0}, "the sentence has 2 gaps _"),
        ({"text": "a", "label": 1}, "nothing says what the label 1 means; add a column label_text"),
        ({"text": "a", "label": None}, "has no label; choose a split whose rows are labelled"),
        ({"text": "a", "label": 0.5}, "the label 0.5 is float; write it as text"),
        ({"prompt": "p", "completion": 0.5}, "'completion' holds float, not text"),
        ({"text": {"a": 1}}, "'text' holds dict, not text"),
    ],
)
def test_row_that_means_nothing_gives_an_error_with_its_number(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    message = said_of(tmp_path, row)
    assert said in message
    assert message.startswith("row 1 of ")


def test_wrong_row_is_counted_from_one_with_the_empty_ones(tmp_path: Path) -> None:
    good = {"question": "q", "choices": ["a", "b"], "label": 0}
    assert said_of(tmp_path, good, good | {"question": ""}, good | {"label": 9}).startswith("row 3 of '")


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([{"text": "a", "label": "x"}], {}, "are ['x']; give two or more different ones"),
        ([{"text": "a", "label": "x"}], {"labels": ("x", "x")}, "are ['x', 'x']; give two or more different ones"),
        ([{"text": "a", "label": "x"}], {"labels": ("y", "z")}, "the label 'x' is none of ['y', 'z']; add it"),
        ([{"text": "a", "label": 2}], {"labels": ("y", "z")}, "the label 2 is none of 0..1 for ['y', 'z']"),
        ([{"prompt": "a", "completion": "x"}], {"labels": ("y", "z")}, "no label to choose; leave the labels out"),
        ([{"text": "a"}], {"template": "{text}"}, "no prompt to make; leave the template out"),
        ([{"text": " "}], {}, "none of its 1 rows holds an example (text in text|content|document|sentence)"),
        ([{"text": "", "label": "x"}], {}, "none of its 1 rows holds an example"),
        ([{"review": "a", "stars": 1}], {"template": "{reviews}"}, "no column with {reviews}; did you mean {review}?"),
        (
            [{"review": "a", "stars": 1}],
            {"template": "{review}"},
            "if that is among ['stars'], rename it to 'label' and 'review' to 'text'",
        ),
        (
            [{"body": "a", "id": 1}],
            {},
            "from its columns ['body', 'id']; append #column to take one as plain text, or name them as in",
        ),
    ],
)
def test_data_that_fits_no_task_or_lacks_labels_gives_an_error_of_one_line(
    tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, Any], said: str
) -> None:
    assert said in said_of(tmp_path, *rows, **options)


# Files, folders and the Hub


def test_csv_json_and_parquet_give_the_examples_of_jsonl(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"text": 'say "so", he', "label": "NA"}, {"text": "戦\nb", "label": "ham"}]
    expected = loaded(tmp_path, *rows).items
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text('text,label\n"say ""so"", he",NA\n"戦\nb",ham\n', encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.json", "a.csv", "a.parquet"):
        assert load_examples(str(tmp_path / name)).items == expected


@pytest.mark.parametrize(
    ("split", "names", "taken"),
    [
        ("train", ("train.jsonl", "test.jsonl"), "train"),
        ("test", ("train.jsonl", "test.jsonl", "validation.jsonl"), "test"),
        ("test", ("train.jsonl", "dev.jsonl"), "dev"),
        ("validation", ("train.jsonl", "val-00000-of-00001.jsonl"), "val-00000-of-00001"),
        ("extra", ("train.jsonl", "extra.jsonl"), "extra"),
        ("test", ("testimony.jsonl",), "testimony"),  # no file is named after a split
        ("train", ("train.jsonl", "notes.txt", "README.md"), "train"),
    ],
)
def test_split_chooses_the_file_of_a_folder(tmp_path: Path, split: str, names: tuple[str, ...], taken: str) -> None:
    for name in names:
        write(tmp_path / name, {"prompt": "p", "completion": Path(name).stem})
    examples = load_examples(str(tmp_path), split=split)
    assert [example.completion for example in examples] == [taken]
    assert examples.spec == str(tmp_path)


def test_files_of_one_split_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number in (2, 1):
        write(tmp_path / f"train-{number}.jsonl", {"prompt": "p", "completion": str(number)})
    assert [example.completion for example in load_examples(str(tmp_path))] == ["1", "2"]


def test_folder_without_the_split_or_without_data_gives_an_error(tmp_path: Path) -> None:
    assert "holds no .txt .json" in message_of(str(tmp_path))
    write(tmp_path / "train.jsonl", {"text": "a"})
    assert "has no split 'test'; choose one of ['train']" in message_of(str(tmp_path), split="test")
    (tmp_path / "train.csv").write_text("text\na\n")
    assert "mixes csv and json files" in message_of(str(tmp_path))


def test_text_files_and_named_columns_are_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.\n\nTwo.")
    spec = write(tmp_path / "a.jsonl", {"question": "Why?", "choices": ["a", "b"], "label": 0})
    for name, text in ((str(tmp_path / "a.txt"), "One.\n\nTwo."), (f"{spec}#question", "Why?")):
        examples = load_examples(name)
        assert (examples.kind, examples.texts()) == ("text", [text])
    assert len(load_examples("python-docs")) > 50


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "give a file"),
        ("nowhere.jsonl", "no such file or folder: 'nowhere.jsonl'"),
        ("nowhere.jsonl#text", "no such file or folder: 'nowhere.jsonl'"),
        ("hub:nobody", "write hub:owner/name"),
        ("wikitext", "did you mean 'wikitext2'?"),
        ("a\0b", "no such file or folder"),
    ],
)
def test_spec_that_means_nothing_gives_the_error_of_documents(spec: str, said: str) -> None:
    assert said in message_of(spec)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"no json\n", "one JSON object a line"),
        ("a.csv", b"text,label\n\xff\xfe,x\n", "not UTF-8"),
        ("a.docx", b"x", "unknown ending '.docx'"),
    ],
)
def test_bad_file_gives_an_error_of_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert said in message_of(str(tmp_path / name))


def test_hub_split_test_falls_back_to_validation_and_its_own_split_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {name: Dataset.from_list([{"prompt": "p", "completion": name}]) for name in ("train", "validation")}

    def load(path: str, *, split: str, **_: Any) -> Dataset:
        if split not in splits:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(splits)}.')
        return splits[split]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_examples("hub:owner/name", split="test")[0].completion == "validation"
    assert load_examples("hub:owner/name:train", split="test")[0].completion == "train"
    assert "Should be one of" in message_of("hub:owner/name:extra")


# Examples: parts of a whole

ITEMS = st.lists(st.integers(0, 5).map(lambda number: Example(options=(("", f"t{number}"), ("", "x")))), max_size=30)
SEEDS = st.integers(0, 2**31)


def of(items: list[Example]) -> Examples:
    return Examples(items=tuple(items), kind="choice", spec="s", labels=("t", "x"))


@settings(deadline=None)
@given(items=ITEMS.filter(bool), number=st.integers(1, 40), seed=SEEDS)
def test_shuffled_has_the_same_examples_and_a_sample_is_its_beginning(
    items: list[Example], number: int, seed: int
) -> None:
    examples = of(items)
    shuffled = examples.shuffled(seed=seed)
    assert Counter(shuffled) == Counter(items)
    assert list(examples.sample(number, seed=seed)) == list(shuffled)[:number]
    assert list(examples.take(number)) == items[:number]
    assert (shuffled.kind, shuffled.spec, shuffled.labels) == ("choice", "s", ("t", "x"))


@settings(deadline=None)
@given(texts=st.sets(st.text(), min_size=2, max_size=40), seed=SEEDS, data=st.data())
def test_split_of_different_examples_has_every_one_once_and_as_many_held_out_as_asked_for(
    texts: set[str], seed: int, data: st.DataObject
) -> None:
    items = [Example(options=(("", text),), row=row) for row, text in enumerate(sorted(texts), start=1)]
    number = data.draw(st.integers(1, len(items) - 1))
    train, held_out = of(items).split(number, seed=seed)
    assert len(held_out) == number
    assert [item for item in items if item in set(train)] == list(train)  # in their order
    assert [item for item in items if item in set(held_out)] == list(held_out)
    assert Counter([*train, *held_out]) == Counter(items)
    assert of(items).split(number, seed=seed) == (train, held_out)


@settings(deadline=None)
@given(items=ITEMS.filter(lambda items: len(set(items)) > 1), share=st.floats(0.05, 0.5), seed=SEEDS)
def test_no_copy_of_a_held_out_example_is_trained_on(items: list[Example], share: float, seed: int) -> None:
    try:
        train, held_out = of(items).split(share, seed=seed)
    except DataError as error:
        assert "is left to train on" in str(error)  # noqa: PT017
        return
    assert not set(train) & set(held_out)
    assert len(held_out) == min(max(int(share * len(items) + 0.5), 1), len(items) - 1)
    assert set(train) | set(held_out) == set(items)


def test_turns_of_a_conversation_are_held_out_together() -> None:
    items = [Example(options=((f"{row}", f"{turn}"),), row=row) for row in range(1, 6) for turn in range(3)]
    for seed in range(5):
        train, held_out = of(items).split(4, seed=seed)
        assert (len(train), len(held_out)) == (9, 6)
        assert not {item.row for item in train} & {item.row for item in held_out}


@pytest.mark.parametrize("held_out", [0, 3, -1, 1.0, 0.0, 2.5, float("nan")])
def test_holding_out_none_or_all_gives_an_error(held_out: float) -> None:
    items = [Example(options=(("", text),)) for text in "abc"]
    with pytest.raises(DataError, match=r"cannot hold out .* of 3 examples; choose 1..2, or a share"):
        of(items).split(held_out)
    with pytest.raises(DataError, match="give two or more"):
        of(items[:1]).split(0.5)
    with pytest.raises(DataError, match="nothing of 's' is left"):
        of([items[0]] * 3).split(1)
    with pytest.raises(DataError, match="choose 1 or more"):
        of(items).take(0)


def test_sample_of_more_than_there_are_warns_and_gives_all(caplog: pytest.LogCaptureFixture) -> None:
    examples = of([Example(options=(("", text),)) for text in "abc"])
    assert len(examples.sample(9)) == 3
    assert "s has only 3 examples, not 9; all are used" in caplog.text


@given(items=st.lists(st.tuples(st.text(), st.text(), st.integers(0, 1)), max_size=4), data=st.data())
def test_fingerprint_depends_on_options_labels_and_order_and_on_nothing_else(
    items: list[tuple[str, str, int]], data: st.DataObject
) -> None:
    examples = [Example(options=((a, b), ("", "")), label=label) for a, b, label in items]
    other = data.draw(st.permutations(examples))
    same = Examples(items=tuple(examples), kind="completion", spec="elsewhere")
    assert of(examples).fingerprint == same.fingerprint
    assert (of(examples).fingerprint == of(other).fingerprint) == (examples == other)
    assert of(examples).fingerprint != of([*examples, Example(options=(("", ""),))]).fingerprint


def test_description_counts_what_is_there_and_slices_are_examples() -> None:
    examples = of([Example(options=(("a", " b"), ("a", " c")), label=1)] * 3)
    assert examples.describe() == {
        "spec": "s",
        "kind": "choice",
        "examples": 3,
        "fingerprint": examples.fingerprint,
    }
    assert (len(examples.fingerprint), int(examples.fingerprint, 16) >= 0) == (16, True)
    assert (examples[1:], examples[-1]) == (examples.take(2), examples[0])


@pytest.mark.parametrize(("options", "label"), [((), 0), ((("", "a"),), 1), ((("", "a"),), -1)])
def test_label_that_is_no_option_gives_an_error(options: tuple[tuple[str, str], ...], label: int) -> None:
    with pytest.raises(DataError, match="count them from 0"):
        Example(options=options, label=label)


# Real data


@pytest.mark.parametrize(
    ("folder", "split", "kind", "number", "options"),
    [
        ("arc_easy", "test", "choice", 2376, None),
        ("piqa", "test", "choice", 1838, 2),  # it has a validation file
        ("hellaswag", "test", "choice", 2000, 4),
        ("medmcqa", "test", "choice", 1183, 4),
        ("pubmedqa", "test", "choice", 500, 3),
        ("winogrande", "validation", "choice", 1267, 2),
        ("fpb", "test", "choice", 967, 3),
        ("sms_spam", "train", "choice", 4128, 2),
        ("billsum", "train", "completion", 80, 1),
        ("c4", "validation", "text", 200, 1),
    ],
)
def test_shared_data_has_the_rows_that_its_table_says_and_no_prompt_ends_in_a_space(
    shared_data: Path, folder: str, split: str, kind: str, number: int, options: int | None
) -> None:
    examples = load_examples(str(shared_data / folder), split=split)
    assert (examples.kind, len(examples)) == (kind, number)
    assert options is None or {example.num_options for example in examples} == {options}
    assert not any(prompt.endswith(" ") for example in examples for prompt, _ in example.options)
    assert all(completion.strip() for example in examples for _, completion in example.options)


def test_shared_rows_read_as_written_by_hand(shared_data: Path) -> None:
    (winogrande,) = load_examples(str(shared_data / "winogrande"), split="validation").take(1)
    assert winogrande.options[0] == (
        "Sarah was a much better surgeon than Maria so Sarah",
        " always got the easier cases.",
    )
    assert winogrande.prompt == "Sarah was a much better surgeon than Maria so Maria"
    (piqa,) = load_examples(str(shared_data / "piqa")).take(1)
    assert piqa.prompt == "Question: When boiling butter, when it's ready, you can\nAnswer:"
    assert (piqa.options[0][1], piqa.completion) == (" Pour it onto a plate", " Pour it into a jar")
    fpb = load_examples(str(shared_data / "fpb"), split="test")
    assert fpb.labels == ("negative", "neutral", "positive")
    assert fpb[0].prompt.endswith("biggest shareholders in Amanda Capital .\nLabel:")
    assert fpb[0].completion == " neutral"
    hellaswag = load_examples(str(shared_data / "hellaswag"), template="{question}")
    assert hellaswag[0].prompt.endswith("moving in and out of frame. the man")
    assert hellaswag[0].completion.startswith(" uses a lawn mower")
