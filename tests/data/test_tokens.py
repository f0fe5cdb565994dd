from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import WORDS, byte_tokenizer, word_tokenizer
from transformers import PreTrainedTokenizerFast

from secateur.data import TokenBatches, calibration_and_held_out, evaluation_windows, tokenize
from secateur.data.tokens import calibration_alone
from secateur.errors import DataError

TOKENIZER = word_tokenizer()
Split = tuple[TokenBatches, TokenBatches]


def different_words(lengths: list[int]) -> list[str]:
    """Documents of the given numbers of words, no word twice: equal tokens are then the same place of the text."""
    numbers = iter(range(WORDS))
    return [" ".join(f"w{next(numbers)}" for _ in range(length)) for length in lengths]


def split_of(documents: list[str], scored: list[str] | None = None, **options: Any) -> Split:
    """What `calibration_and_held_out` makes of these documents."""
    settings = {"sequence_length": 8, "num_sequences": 4, "num_eval_sequences": 2} | options
    texts = {"data": documents, "scored": scored}
    with patch("secateur.data.tokens.load_documents", lambda spec, *, split: texts[spec]):
        return calibration_and_held_out("data", TOKENIZER, eval_data=None if scored is None else "scored", **settings)


def alone_of(documents: list[str], scored: list[str] | None = None, **options: Any) -> TokenBatches:
    """What `calibration_alone` makes of them."""
    settings = {"sequence_length": 8, "num_sequences": 4, "num_eval_sequences": 2} | options
    texts = {"data": documents, "scored": scored}
    with patch("secateur.data.tokens.load_documents", lambda spec, *, split: texts[spec]):
        return calibration_alone("data", TOKENIZER, eval_data=None if scored is None else "scored", **settings)


def tokens_of(batches: TokenBatches) -> list[int]:
    return batches.input_ids.flatten().tolist()


def message_of(error: pytest.ExceptionInfo[DataError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# TokenBatches


def test_batches_in_order_are_the_windows_and_the_last_may_be_smaller() -> None:
    ids = torch.arange(35).view(7, 5)
    batches = TokenBatches(ids, batch_size=3, spec="x")
    assert [batch.shape for batch in batches] == [(3, 5), (3, 5), (1, 5)]
    assert len(batches) == 3
    assert torch.equal(torch.cat(list(batches)), ids)


def test_description_counts_what_is_there() -> None:
    batches = TokenBatches(torch.arange(10).view(2, 5), batch_size=2, spec="x")
    described = batches.describe()
    fingerprint = described.pop("fingerprint")
    assert described == {"spec": "x", "sequences": 2, "tokens": 10, "sequence_length": 5}
    assert fingerprint == batches.fingerprint
    assert len(fingerprint) == 16
    assert int(fingerprint, 16) >= 0


def test_fingerprint_depends_on_tokens_and_shape_and_on_nothing_else() -> None:
    batches = TokenBatches(torch.arange(12).view(3, 4), batch_size=2, spec="x")
    same = TokenBatches(batches.input_ids.clone(), batch_size=1, spec="y")
    strided = TokenBatches(batches.input_ids.t().contiguous().t(), batch_size=2, spec="x")
    reshaped = TokenBatches(torch.arange(12).view(4, 3), batch_size=2, spec="x")
    changed = TokenBatches(batches.input_ids.flip(0), batch_size=2, spec="x")
    assert batches.fingerprint == same.fingerprint == strided.fingerprint == batches.rebatch(1).fingerprint
    assert len({batches.fingerprint, reshaped.fingerprint, changed.fingerprint}) == 3


def test_take_and_rebatch_give_the_first_windows_in_the_batches_asked_for() -> None:
    batches = TokenBatches(torch.arange(12).view(6, 2), batch_size=4, spec="x")
    assert torch.equal(batches.take(2).input_ids, batches.input_ids[:2])
    assert batches.take(99).num_sequences == 6
    assert [len(batch) for batch in batches.rebatch(5)] == [5, 1]
    for wrong in (lambda: batches.take(0), lambda: batches.rebatch(0)):
        with pytest.raises(DataError, match="choose 1 or more") as caught:
            wrong()
        message_of(caught)


@pytest.mark.parametrize("ids", [torch.arange(4), torch.zeros(2, 2), torch.zeros(0, 4, dtype=torch.int64)])
def test_windows_of_another_shape_or_type_give_an_error(ids: torch.Tensor) -> None:
    with pytest.raises(DataError, match="give int64") as caught:
        TokenBatches(ids, batch_size=1, spec="x")
    message_of(caught)


# tokenize


def test_stream_decodes_to_the_documents_joined_with_an_empty_line(byte_level: PreTrainedTokenizerFast) -> None:
    documents = ["one\n two ", "", "戦場 three"]
    assert byte_level.decode(tokenize(documents, byte_level)) == "\n\n".join(documents)
    assert byte_level.decode(tokenize(documents[:1], byte_level)) == documents[0]


def test_special_tokens_come_once_at_the_start_and_never_at_the_end(
    words_with_both_ends: PreTrainedTokenizerFast,
) -> None:
    assert words_with_both_ends("w0 w1")["input_ids"] == [0, 3, 4, 1]  # the tokenizer itself adds both
    assert tokenize(["w0 w1", "w2"], words_with_both_ends).tolist() == [0, 3, 4, 5]
    assert tokenize([""], words_with_both_ends).tolist() == []


def test_special_token_written_at_the_end_of_the_text_stays(words_with_both_ends: PreTrainedTokenizerFast) -> None:
    assert tokenize(["w0 </s>"], words_with_both_ends).tolist() == [0, 3, 1]


def test_text_longer_than_the_model_is_tokenized_whole_and_without_a_warning(
    words: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    assert words.model_max_length == 16
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error")
        stream = tokenize(different_words([1000]), words)
    assert stream.tolist() == list(range(3, 1003))
    assert stream.dtype == torch.int64
    captured = capfd.readouterr()
    assert caplog.text + captured.out + captured.err == ""


# evaluation_windows


def test_evaluation_windows_are_the_first_ones_of_the_stream(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    (tmp_path / "a.txt").write_text("\n".join(different_words([30, 30])))
    batches = evaluation_windows(str(tmp_path / "a.txt"), words, sequence_length=7, num_sequences=5, batch_size=2)
    assert batches.input_ids.tolist() == torch.arange(3, 38).view(5, 7).tolist()
    assert (batches.batch_size, batches.spec) == (2, str(tmp_path / "a.txt"))


def test_fewer_windows_than_asked_for_are_all_used_and_a_warning_says_so(
    tmp_path: Path, words: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text(different_words([30])[0])
    batches = evaluation_windows(str(tmp_path / "a.txt"), words, sequence_length=7, num_sequences=50)
    assert batches.num_sequences == 4
    assert "has only 4 held-out windows of 7 tokens, not 50; all are used" in caplog.text


def test_text_of_less_than_one_window_gives_an_error_with_both_numbers(
    tmp_path: Path, words: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "a.txt").write_text(different_words([97])[0])
    with pytest.raises(DataError) as caught:
        evaluation_windows(str(tmp_path / "a.txt"), words, sequence_length=256, num_sequences=1)
    assert message_of(caught).endswith(
        "has 97 tokens, fewer than one window of 256; choose a smaller --sequence-length or give more text"
    )


@pytest.mark.parametrize(
    "options",
    [
        {"sequence_length": 1},
        {"num_sequences": 0},
        {"eval_sequence_length": 0},
        {"num_eval_sequences": -1},
        {"batch_size": 0},
        {"eval_batch_size": 0},
    ],
)
def test_numbers_that_make_no_sense_give_an_error_with_the_value(options: dict[str, int]) -> None:
    with pytest.raises(DataError, match=f"is {next(iter(options.values()))}; choose [12] or more") as caught:
        split_of(different_words([200]), **options)
    message_of(caught)


# calibration_and_held_out


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=30),
    sequence_length=st.integers(2, 16),
    eval_sequence_length=st.integers(2, 16),
    num_sequences=st.integers(1, 12),
    num_eval_sequences=st.integers(1, 12),
    seed=st.integers(0, 9),
)
def test_no_place_of_the_text_is_in_two_windows(lengths: list[int], **options: int) -> None:
    documents = different_words(lengths)
    try:
        calibration, held_out = split_of(documents, **options)
    except DataError:
        assert sum(lengths) < options["sequence_length"] + options["eval_sequence_length"]
        return
    tokens = tokens_of(calibration) + tokens_of(held_out)
    assert len(tokens) == len(set(tokens))
    assert set(tokens) <= set(tokenize(documents, TOKENIZER).tolist())
    assert 1 <= calibration.num_sequences <= options["num_sequences"]
    assert 1 <= held_out.num_sequences <= options["num_eval_sequences"]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_same_seed_gives_the_same_windows_and_another_seed_others(seed: int, one_document: bool) -> None:
    documents = different_words([3000] if one_document else [150] * 20)
    first, again, other = (split_of(documents, num_sequences=32, seed=s) for s in (seed, seed, seed + 1))
    assert first[0].fingerprint == again[0].fingerprint != other[0].fingerprint
    assert first[1].fingerprint == again[1].fingerprint == other[1].fingerprint  # what is scored has no seed


def test_calibration_windows_are_windows_of_the_stream_not_in_text_order() -> None:
    calibration, held_out = split_of(different_words([400]), num_sequences=20)
    starts = calibration.input_ids[:, 0].sub(3)
    assert torch.equal(calibration.input_ids, calibration.input_ids[:, :1] + torch.arange(8))
    assert not starts.remainder(8).any()
    assert starts.tolist() != sorted(starts.tolist())
    assert min(tokens_of(held_out)) > max(tokens_of(calibration))  # the end of the text


@pytest.mark.parametrize("scored", [None, ["w7 w8"]])
@pytest.mark.parametrize("documents", [different_words([50]), different_words([9] * 12), different_words([16])])
@pytest.mark.parametrize("num_held", [1, 64])
def test_calibration_alone_is_that_beside_held_out_text_without_a_word_of_it(
    documents: list[str], scored: list[str] | None, num_held: int, caplog: pytest.LogCaptureFixture
) -> None:
    scored = scored and scored * 8
    options = {"num_sequences": 1, "num_eval_sequences": num_held, "seed": 3}
    with caplog.at_level(logging.WARNING):
        alone = alone_of(documents, scored, **options)
    assert not caplog.records
    assert torch.equal(alone.input_ids, split_of(documents, scored, **options)[0].input_ids)


def test_calibration_alone_takes_a_text_whole_that_is_too_short_to_hold_some_out() -> None:
    documents = different_words([11])
    with pytest.raises(DataError, match="to calibrate on and one of 8 held out"):
        split_of(documents, num_sequences=1)
    assert torch.equal(alone_of(documents, num_sequences=1).input_ids, tokenize(documents, TOKENIZER)[None, :8])
    with pytest.raises(DataError, match="fewer than one window of 8"):
        alone_of(different_words([5]), num_sequences=1)


def test_about_a_fifth_of_ten_documents_or_more_is_held_out_whole() -> None:
    calibration, held_out = split_of(different_words([40] * 20), num_sequences=999, num_eval_sequences=20)
    documents = torch.tensor(tokens_of(held_out)).sub(3).div(40, rounding_mode="floor").unique()
    assert len(documents) == 4
    assert calibration.num_tokens + held_out.num_tokens == 800


@pytest.mark.parametrize("documents", [different_words([40] * 20), different_words([800])])
def test_at_most_half_is_held_out_however_much_is_asked_for(documents: list[str]) -> None:
    calibration, held_out = split_of(documents, num_sequences=999, num_eval_sequences=999)
    assert calibration.num_tokens == held_out.num_tokens == 400


def test_order_of_the_documents_does_not_change_which_are_held_out() -> None:
    documents = different_words([40] * 20)
    forward, backward = (split_of(order, num_eval_sequences=20)[1] for order in (documents, documents[::-1]))
    assert set(tokens_of(forward)) == set(tokens_of(backward))


def test_copies_of_a_held_out_document_are_never_calibrated_on() -> None:
    documents = different_words([40] * 20)
    calibration, held_out = split_of(documents * 3, num_sequences=999, num_eval_sequences=20)
    assert not set(tokens_of(calibration)) & set(tokens_of(held_out))


def test_paragraphs_that_two_documents_share_are_not_calibrated_on_when_one_is_held_out() -> None:
    *documents, shared = different_words([40] * 20 + [30])
    wrapped = shared.replace(" ", "\n   ", 9)
    documents = [f"{text}\n\n{shared if number % 2 else wrapped}" for number, text in enumerate(documents)]
    calibration, held_out = split_of(documents, num_sequences=999, num_eval_sequences=99)
    assert not set(tokens_of(calibration)) & set(tokens_of(held_out))
    assert tokens_of(calibration)


def test_documents_too_uneven_to_hold_out_fall_back_to_the_end_of_the_text() -> None:
    documents = ["w0", "w1", "w2", "w3", "w4", "w5", "w6", "w7", "w8", "w9"]
    calibration, held_out = split_of(documents, sequence_length=5, num_eval_sequences=1)
    assert (tokens_of(calibration), tokens_of(held_out)) == ([3, 4, 5, 6, 7], [8, 9, 10, 11, 12])


def test_text_too_short_to_hold_some_out_gives_an_error_with_the_numbers() -> None:
    with pytest.raises(DataError) as caught:
        split_of(different_words([97]), sequence_length=64)
    assert "has 97 tokens, fewer than one window of 64 to calibrate on and one of 64 held out" in message_of(caught)


def test_lines_of_the_scored_text_are_removed_from_calibration_with_a_warning_that_counts_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = different_words([40] * 10)
    short = "w3999 w3998"
    scored = ["\n".join([short, *lines[7:]])]
    calibration, held_out = split_of(["\n".join([*lines, short])], scored, num_sequences=999, num_eval_sequences=99)
    assert sorted(tokens_of(calibration)) == list(range(3, 283))  # seven lines; the short one is no whole window
    assert held_out.input_ids[0].tolist() == [4002, 4001, *range(283, 289)]
    assert "3 paragraphs of data also occur in scored" in caplog.text


def test_separate_texts_without_a_common_paragraph_are_left_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    first, second = different_words([160, 80])
    calibration, held_out = split_of([first], [second], num_sequences=20, num_eval_sequences=10, eval_sequence_length=4)
    assert sorted(tokens_of(calibration)) == list(range(3, 163))
    assert tokens_of(held_out) == list(range(163, 203))
    assert (calibration.spec, held_out.spec) == ("data", "scored")
    assert caplog.text == ""


def test_same_text_given_twice_is_treated_as_given_once() -> None:
    documents = different_words([400])
    once, twice = split_of(documents), split_of(documents, list(documents))
    assert [batches.fingerprint for batches in once] == [batches.fingerprint for batches in twice]


def test_calibration_text_that_is_all_in_the_scored_text_gives_an_error() -> None:
    first, second = different_words([40, 40])
    with pytest.raises(DataError, match="all of 'data' also occurs in 'scored'") as caught:
        split_of([first], [f"{first}\n{second}"])
    message_of(caught)


def test_too_few_calibration_windows_are_all_used_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    calibration, _ = split_of(different_words([100]), num_sequences=999)
    assert calibration.num_sequences == 10
    assert "has only 10 calibration windows of 8 tokens, not 999" in caplog.text


def test_batch_sizes_are_those_asked_for() -> None:
    calibration, held_out = split_of(different_words([400]), batch_size=3)
    assert (calibration.batch_size, held_out.batch_size) == (3, 3)
    calibration, held_out = split_of(different_words([400]), batch_size=3, eval_batch_size=2)
    assert (calibration.batch_size, held_out.batch_size) == (3, 2)


# Real text


@pytest.mark.parametrize("stride", [1, 3, 7])
def test_evaluation_windows_with_a_stride_start_that_far_apart(
    tmp_path: Path, words: PreTrainedTokenizerFast, stride: int
) -> None:
    (tmp_path / "a.txt").write_text(" ".join(f"w{n}" for n in range(30)))
    stream = tokenize([" ".join(f"w{n}" for n in range(30))], words)
    batches = evaluation_windows(str(tmp_path / "a.txt"), words, sequence_length=7, num_sequences=4, stride=stride)
    assert [row.tolist() for row in batches.input_ids] == [
        stream[start : start + 7].tolist() for start in range(0, 4 * stride, stride)
    ]
    assert (batches.stride, batches.overlap) == (stride, 7 - stride)
    assert batches.take(2).stride == batches.rebatch(1).stride == stride


@pytest.mark.parametrize("stride", [-1, 0, 8])
def test_a_stride_beyond_the_window_or_none_is_refused(
    tmp_path: Path, words: PreTrainedTokenizerFast, stride: int
) -> None:
    (tmp_path / "a.txt").write_text("w1 w2 w3 " * 9)
    with pytest.raises(DataError) as error:
        evaluation_windows(str(tmp_path / "a.txt"), words, sequence_length=7, num_sequences=4, stride=stride)
    assert message_of(error) == f"the stride is {stride}; choose 1..7, the tokens of a window"


def test_windows_cannot_overlap_by_all_they_have() -> None:
    with pytest.raises(DataError, match="windows of 5 tokens cannot overlap by 5; choose fewer"):
        TokenBatches(torch.arange(10).view(2, 5), 1, "x", overlap=5)


def test_python_docs_share_no_long_paragraph_between_calibration_and_held_out() -> None:
    tokenizer = byte_tokenizer()
    calibration, held_out = calibration_and_held_out(
        "python-docs", tokenizer, sequence_length=512, num_sequences=9999, num_eval_sequences=9999
    )
    ordered = tokenizer.decode(held_out.input_ids.flatten())
    paragraphs = {" ".join(block.split()) for block in ordered.split("\n\n")}
    for window in calibration.input_ids[::8]:
        blocks = tokenizer.decode(window).split("\n\n")[1:-1]
        assert not {block for block in (" ".join(block.split()) for block in blocks) if len(block) >= 80} & paragraphs


def test_wikitext_from_shared_data_gives_windows_for_both_sides(
    shared_data: Path, byte_level: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shared_data / "wikitext2"
    calibration, held_out = calibration_and_held_out(
        str(folder / "validation_100kb.txt"),
        byte_level,
        eval_data=str(folder / "test.txt"),
        sequence_length=1024,
        num_sequences=64,
        num_eval_sequences=32,
    )
    assert calibration.input_ids.shape == (64, 1024)
    start = (folder / "test.txt").read_bytes().replace(b"\r\n", b"\n")[: 32 * 1024]
    assert byte_level.decode(held_out.input_ids.flatten()) == start.decode(errors="replace")
    assert caplog.text == ""
