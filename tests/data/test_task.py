"""Three sets of examples, with nothing in two of them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import byte_tokenizer, word_tokenizer

from secateur.data.examples import Example, Examples
from secateur.data.task import Task, TaskSettings, windows_of
from secateur.errors import DataError, RequestError

NAMES = ("train", "validation", "test")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(*numbers: int) -> list[dict[str, Any]]:
    return [{"text": f"number {number}", "label_text": ("even", "odd")[number % 2]} for number in numbers]


def numbers(examples: Examples) -> list[int]:
    return [int(example.prompt.split()[1]) for example in examples]


def load(seed: int = 0, **settings: Any) -> Task:
    return TaskSettings(**settings).load(byte_tokenizer(), seed)


def sets(task: Task) -> list[set[int]]:
    found = [numbers(getattr(task, name)) for name in NAMES]
    assert all(len(part) == len(set(part)) for part in found)
    return [set(part) for part in found]


@pytest.fixture
def hundred(tmp_path: Path) -> str:
    return write(tmp_path / "hundred.jsonl", rows(*range(100)))


# ---- one file --------------------------------------------------------------------------------------------------------


def test_one_file_is_parted_into_three_disjoint_sets_that_are_all_of_it(hundred: str) -> None:
    train, validation, test = sets(load(data=hundred))
    assert (len(train), len(validation), len(test)) == (81, 9, 10)  # a tenth, and a tenth of what is left
    assert train | validation | test == set(range(100))


def test_copies_of_what_is_held_out_are_not_trained_on(tmp_path: Path) -> None:
    data = write(tmp_path / "twice.jsonl", rows(*range(40), *range(40)))
    task = load(data=data)
    train, validation, test = (set(numbers(getattr(task, name))) for name in NAMES)
    assert not train & (validation | test)
    assert not validation & test


def test_same_seed_gives_the_same_sets_in_the_same_order_and_another_seed_others(hundred: str) -> None:
    one, same, other = (load(seed, data=hundred) for seed in (1, 1, 2))
    assert one == same
    assert one.describe() == same.describe()
    for name in NAMES:
        assert set(numbers(getattr(one, name))) != set(numbers(getattr(other, name))), name
    assert numbers(one.train) != sorted(numbers(one.train))


def test_sizes_are_those_asked_for_or_all_there_are(hundred: str) -> None:
    task = load(data=hundred, num_train=20, num_validation=4, num_test=5)
    assert [len(part) for part in sets(task)] == [20, 4, 5]
    task = load(data=hundred, num_train=1000, num_validation=1000, num_test=1000)
    assert [len(part) for part in sets(task)] == [81, 9, 10]
    # fewer to train on are the first of more, and are tested alike
    few, more = load(data=hundred, num_train=10), load(data=hundred, num_train=30)
    assert numbers(more.train)[:10] == numbers(few.train)
    assert (few.validation, few.test) == (more.validation, more.test)


def test_a_record_says_which_examples_they_were(hundred: str) -> None:
    about = load(data=hundred, num_test=5).describe()
    assert {name: about[name]["examples"] for name in NAMES} == {"train": 81, "validation": 9, "test": 5}
    assert len({about[name]["fingerprint"] for name in NAMES}) == 3
    assert all(about[name]["spec"] == hundred and about[name]["kind"] == "choice" for name in NAMES)
    assert (about["train"]["prompt"], about["train"]["labels"]) == ("{text}\nLabel:", ["even", "odd"])


# ---- several files -----------------------------------------------------------------------------------------------------


def test_what_is_in_two_of_the_files_is_tested_on_before_it_is_validated_on_before_it_is_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = load(
        data=write(tmp_path / "a.jsonl", rows(*range(50))),
        validation_data=write(tmp_path / "b.jsonl", rows(*range(40, 70))),
        test_data=write(tmp_path / "c.jsonl", rows(*range(60, 80), *range(10))),
    )
    assert sets(task) == [set(range(10, 40)), set(range(40, 60)), {*range(60, 80), *range(10)}]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_without_validation_data_it_is_held_out_of_the_training_data(tmp_path: Path) -> None:
    task = load(
        data=write(tmp_path / "a.jsonl", rows(*range(50))), test_data=write(tmp_path / "c.jsonl", rows(*range(45, 60)))
    )
    train, validation, test = sets(task)
    assert test == set(range(45, 60))
    assert len(validation) == 4  # a tenth of the 45 that are left
    assert train | validation == set(range(45))


def test_only_what_is_tested_on_leaves_the_training_data(tmp_path: Path) -> None:
    same = write(tmp_path / "a.jsonl", rows(*range(50)))
    train, validation, test = sets(load(data=same, test_data=same, num_test=10))
    assert (len(train), len(validation), len(test)) == (36, 4, 10)
    assert train | validation | test == set(range(50))


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"train": range(20), "validation": range(20, 25), "test": range(25, 30)}, [20, 5, 5]),
        ({"train": range(20), "test": range(25, 30)}, [18, 2, 5]),  # held out of the training data
        ({"train": range(20), "dev": range(20, 25)}, [18, 2, 5]),  # what others report on is not chosen by
    ],
)
def test_folder_of_splits_is_taken_by_their_names(
    tmp_path: Path, splits: dict[str, range], expected: list[int]
) -> None:
    for name, part in splits.items():
        write(tmp_path / "data" / f"{name}.jsonl", rows(*part))
    train, validation, test = sets(load(data=str(tmp_path / "data")))
    assert [len(train), len(validation), len(test)] == expected
    assert test == set(splits.get("test", splits.get("dev")) or ())
    assert train | validation == set(range(20 if len(splits) < 3 else 25))


def test_own_validation_split_is_used_where_test_data_is_given(tmp_path: Path) -> None:
    for name, part in {"train": range(20), "validation": range(20, 25)}.items():
        write(tmp_path / "data" / f"{name}.jsonl", rows(*part))
    test = write(tmp_path / "test.jsonl", rows(*range(30, 36)))
    task = load(data=str(tmp_path / "data"), test_data=test)
    assert sets(task) == [set(range(20)), set(range(20, 25)), set(range(30, 36))]


def test_of_a_folder_that_is_named_for_validation_its_validation_split_is_read_and_never_its_test(
    tmp_path: Path,
) -> None:
    for name, part in {"train": range(40, 60), "validation": range(20, 25), "test": range(25, 30)}.items():
        write(tmp_path / "other" / f"{name}.jsonl", rows(*part))
    data, other = write(tmp_path / "data.jsonl", rows(*range(20))), str(tmp_path / "other")
    task = load(data=data, validation_data=other, test_data=other)
    assert sets(task) == [set(range(20)), set(range(20, 25)), set(range(25, 30))]
    own = tmp_path / "own"
    write(own / "train.jsonl", rows(*range(10)))
    write(own / "validation.jsonl", rows(*range(10, 15)))
    assert sets(load(data=str(own), test_data=other))[2] == set(range(25, 30))


# ---- what the sets have in common ------------------------------------------------------------------------------------------


def test_labels_of_the_training_data_are_what_test_data_chooses_among(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", [{"text": f"t{n}", "label": ("ham", "junk", "spam")[n % 3]} for n in range(30)])
    test = write(tmp_path / "b.jsonl", [{"text": f"x{n}", "label": ("spam", "ham")[n % 2]} for n in range(4)])
    task = load(data=data, test_data=test)
    assert [getattr(task, name).labels for name in NAMES] == [("ham", "junk", "spam")] * 3
    assert all(len(example.options) == 3 for example in task.test)
    assert {example.completion for example in task.test} == {" spam", " ham"}
    unknown = write(tmp_path / "c.jsonl", [{"text": "x", "label": "eggs"}])
    with pytest.raises(DataError, match=r"the label 'eggs' is none of \['ham', 'junk', 'spam'\]"):
        load(data=data, test_data=unknown)


def test_labels_given_say_what_numbers_stand_for(tmp_path: Path) -> None:
    numbered = [{"text": row["text"], "label": int(row["label_text"] == "odd")} for row in rows(*range(30))]
    file = tmp_path / "a.csv"
    file.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in numbered))
    named = load(data=str(file), labels=("even", "odd"))
    spelt = load(data=write(tmp_path / "b.jsonl", rows(*range(30))))
    for name in NAMES:
        ours, theirs = getattr(named, name), getattr(spelt, name)
        assert [example.completion for example in ours] == [example.completion for example in theirs]
        assert ours.items == theirs.items
        assert ours.labels == ("even", "odd")
    with pytest.raises(DataError, match=r"nothing says what the label 0 means; .*--labels negative,positive"):
        load(data=str(file))
    for labels in ("even",), ("even", "even"):
        with pytest.raises(RequestError, match="give two or more different ones"):
            TaskSettings(data=str(file), labels=labels)


def test_template_makes_the_prompts_of_all_sets(tmp_path: Path, hundred: str) -> None:
    other = write(tmp_path / "b.jsonl", rows(*range(200, 210)))
    task = load(data=hundred, test_data=other, template="A {text}?")
    assert all(example.prompt.startswith("A number ") for name in NAMES for example in getattr(task, name))


def test_chat_writes_every_row_with_the_tokenizers_template(hundred: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    task = TaskSettings(data=hundred, chat="always").load(tokenizer, 0)
    for name in NAMES:
        example = getattr(task, name)[0]
        assert example.prompt.startswith("<user>number ")
        assert example.prompt.endswith("<assistant>")


@pytest.mark.parametrize(
    ("row", "kind"), [({"prompt": "a", "completion": " b"}, "completion"), ({"text": "only text"}, "text")]
)
def test_test_data_of_another_kind_is_refused(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    questions = [{"question": f"q{n}", "choices": ["a", "b"], "label": n % 2} for n in range(20)]
    data, other = write(tmp_path / "a.jsonl", questions), write(tmp_path / "b.jsonl", [row] * 3)
    with pytest.raises(
        DataError, match=rf"b\.jsonl holds {kind} examples, but the training data choice examples; give"
    ):
        load(data=data, test_data=other)
    with pytest.raises(DataError, match=f"holds {kind} examples"):
        load(data=data, validation_data=other)


def test_classification_and_other_choices_do_not_mix(tmp_path: Path, hundred: str) -> None:
    questions = [{"question": f"q{n}", "choices": ["a", "b"], "label": n % 2} for n in range(20)]
    asked = write(tmp_path / "asked.jsonl", questions)
    with pytest.raises(DataError, match=r"asked\.jsonl holds choice examples, but the training data classification ex"):
        load(data=hundred, test_data=asked)
    with pytest.raises(
        DataError, match=r"hundred\.jsonl holds classification examples, but the training data choice ex"
    ):
        load(data=asked, test_data=hundred)
    with pytest.raises(
        DataError, match=r"text\.jsonl holds text examples, but the training data classification examples"
    ):
        load(data=hundred, validation_data=write(tmp_path / "text.jsonl", [{"text": "a"}]))


# ---- what cannot be ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "said"), [(1, r"has 1 example, too"), (2, r"has 2 examples, too")])
def test_too_few_examples_to_part_are_refused(tmp_path: Path, count: int, said: str) -> None:
    data = write(tmp_path / "a.jsonl", rows(*range(10))[:count] if count > 1 else [{"prompt": "a", "completion": "b"}])
    with pytest.raises(
        DataError, match=rf"{said} few to .*; give three or more in all, or name test and validation data"
    ):
        load(data=data)


def test_three_examples_can_be_parted(tmp_path: Path) -> None:
    assert [len(part) for part in sets(load(data=write(tmp_path / "a.jsonl", rows(0, 1, 2))))] == [1, 1, 1]


def test_nothing_left_to_train_on_is_refused(tmp_path: Path) -> None:
    data, same = write(tmp_path / "a.jsonl", rows(*range(5))), write(tmp_path / "b.jsonl", rows(*range(9)))
    with pytest.raises(DataError, match=r"every example of .*a\.jsonl is also in .*b\.jsonl; give different data"):
        load(data=data, test_data=same)


@pytest.mark.parametrize("name", ["num_train", "num_validation", "num_test"])
def test_numbers_below_one_are_refused(hundred: str, name: str) -> None:
    with pytest.raises(RequestError, match=f"{name} must be 1 or more, not 0"):
        TaskSettings(data=hundred, **{name: 0})


# ---- windows -------------------------------------------------------------------------------------------------------------


def text_examples(*texts: str) -> Examples:
    return Examples(items=tuple(Example(options=(("w1", text),)) for text in texts), kind="completion", spec="made up")


def test_windows_are_the_prompts_with_their_completions_in_order() -> None:
    tokenizer = word_tokenizer()
    examples = text_examples(" w2 w3", " w4 w5", " w6 w7")
    windows = windows_of(examples, tokenizer, sequence_length=4, num_sequences=9)
    stream = [4, 5, 6, 4, 7, 8, 4, 9, 10]  # `w1` is token 4
    assert windows.input_ids.tolist() == [stream[:4], stream[4:8]]  # what is left over is left out
    assert windows.spec == "made up"
    assert windows_of(examples, tokenizer, sequence_length=4, num_sequences=1).input_ids.tolist() == [stream[:4]]
    assert windows_of(examples, tokenizer, sequence_length=99, num_sequences=2).input_ids.tolist() == [stream]


def test_window_of_multiple_choice_has_the_right_option() -> None:
    item = Example(options=(("w1", " w2"), ("w1", " w3")), label=1)
    examples = Examples(items=(item,), kind="choice", spec="made up")
    assert windows_of(examples, word_tokenizer(), sequence_length=8, num_sequences=1).input_ids.tolist() == [[4, 6]]


def test_text_of_one_token_makes_no_window() -> None:
    examples = Examples(items=(Example(options=(("", "w1"),)),), kind="text", spec="made up")
    with pytest.raises(DataError, match="made up has 1 tokens in all; give more examples"):
        windows_of(examples, word_tokenizer(), sequence_length=8, num_sequences=1)
