import io
import math
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from secateur.report import console
from secateur.report.comparison import (
    compared,
    difference_in_words,
    doubt_of_speed,
    format_bytes,
    format_count,
    format_number,
    speed_ups,
)
from secateur.report.console import (
    RichProgress,
    comparison_table,
    generations_table,
    results_console,
    score_bars,
    task_table,
)

METRICS = {
    "dense": {
        "num_layers": 30, "num_parameters": 134_515_008, "perplexity": 20.0, "size_bytes": 538_000_000,
        "prefill_tokens_per_second": 1000.0, "decode_tokens_per_second": 10.0,
    },
    "pruned": {
        "num_layers": 22, "num_parameters": 106_200_000, "perplexity": 2400.0, "size_bytes": 425_000_000,
        "prefill_tokens_per_second": 1300.0, "decode_tokens_per_second": None,
    },
}  # fmt: skip


def drawn(renderable, *, terminal: bool = False, encoding: str = "utf-8", width: int = 100) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="replace")
    color = "standard" if terminal else None
    Console(file=file, width=width, force_terminal=terminal, color_system=color, markup=False).print(renderable)
    file.flush()
    return raw.getvalue().decode(encoding)


def bars_of(text: str) -> list[int]:
    return [line.count("━") + line.count("-") for line in text.splitlines()[1:-1]]


def test_bars_rank_layers_and_say_what_goes_without_colour():
    lines = drawn(score_bars([1.0, 3.0, 2.0], dropped=[0], width=20)).splitlines()
    assert len(lines) == 5  # head, three layers, caption
    assert bars_of("\n".join(lines)) == [0, 20, 10]
    assert [("dropped" in line, "kept" in line) for line in lines[1:4]] == [(True, False), (False, True), (False, True)]
    assert "bars from 1 to 3" in lines[4]


def test_negative_and_missing_scores_are_drawn():
    text = drawn(score_bars([-2.0, -1.0, math.nan, -math.inf, math.inf], width=10))
    assert bars_of(text.replace("-2", "2").replace("-1", "1").replace("-inf", "inf")) == [0, 10, 0, 0, 0]
    assert "–" in text


@pytest.mark.parametrize("scores", [[], [math.nan], [0.5, 0.5, 0.5], [0.0]])
def test_odd_sets_of_scores_are_drawn(scores):
    assert "score" in drawn(score_bars(scores, dropped=[0]))


def test_a_far_higher_score_does_not_flatten_the_rest():
    text = drawn(score_bars([1e6, *[20.0 + layer for layer in range(9)]], width=40))
    assert max(bars_of(text)[1:]) > 10
    assert "»1e+06" in text
    assert "» goes beyond" in text


def test_colour_only_in_a_terminal():
    assert "\x1b[" in drawn(score_bars([1.0, 2.0], dropped=[0]), terminal=True)
    assert "\x1b[" not in drawn(score_bars([1.0, 2.0], dropped=[0]))


def test_a_terminal_without_unicode_gets_ascii_bars():
    text = drawn(score_bars([1.0, 2.0], width=8), encoding="ascii")
    assert "--------" in text


def with_speeds(layers, parameters, prefill, decode):
    speeds = [("prefill_tokens_per_second", prefill), ("decode_tokens_per_second", decode)]
    return {
        "dense": {"num_layers": 30, "num_parameters": 100.0, **dict.fromkeys(dict(speeds), 10.0)},
        "pruned": {"num_layers": layers, "num_parameters": parameters, **dict(speeds)},
    }


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (with_speeds(24, 80.0, 12.5, 12.5), None),  # the ideal
        (with_speeds(24, 80.0, 12.5, 13.7), None),  # 1.1 times that
        (with_speeds(24, 80.0, 12.5, 13.8), "1.38 times as fast was measured, where the smaller model explains 1.25 times by"),
        (with_speeds(24, 80.0, 24.0, 12.5), "2.40 times as fast was measured, where the smaller model explains 1.25 times by"),
        (with_speeds(24, 80.0, 12.5, 9.2), "writing, the smaller model was measured at 0.92 times the speed"),
        (with_speeds(30, 100.0, 9.9, 9.9), None),  # as large
        (with_speeds(20, 80.0, 12.5, 24.0), "where the smaller model explains 1.50 times by its layers"),
        (with_speeds(15, 80.0, 20.0, 20.0), None),  # where starting a layer takes the time
        (with_speeds(24, 80.0, None, None), None),
        (with_speeds(None, None, 90.0, 90.0), None),  # nothing to hold it to
        ({}, None),
        (METRICS, None),
    ],
)  # fmt: skip
def test_a_speed_that_the_smaller_model_does_not_explain_is_in_doubt(metrics, said):
    doubt = doubt_of_speed(metrics)
    assert (doubt is None) if said is None else (said in doubt)


@pytest.mark.parametrize(
    ("turns", "said"), [((12.0, 12.5, 14.0), None), ((10.5, 12.5, 14.0), "1.05 to 1.40 times as fast")]
)
def test_turns_that_differ_by_more_than_a_quarter_are_in_doubt(turns, said):
    metrics = with_speeds(24, 80.0, 12.5, 12.5)
    metrics["dense"]["decode_tokens_per_second_by_turn"] = [10.0, 10.0, 10.0]
    metrics["pruned"]["decode_tokens_per_second_by_turn"] = list(turns)
    doubt = doubt_of_speed(metrics)
    assert (doubt is None) if said is None else (f"writing was {said}, from one turn to the next" in doubt)
    reading, writing = speed_ups(metrics)
    assert reading.in_words() == "1.25×"
    assert writing.in_words() == f"1.25× ({turns[0] / 10:.2f} to 1.40)"


def test_speeds_in_doubt_are_marked_in_their_rows_and_nothing_else_is():
    def marked(metrics):
        return {row.metric: row.change.endswith(" (in doubt)") for row in compared(metrics)}

    doubted = with_speeds(24, 80.0, 12.5, 13.8)
    speeds = {"prefill tokens/s": True, "decode tokens/s": True}
    assert marked(doubted) == {"layers": False, "parameters": False, **speeds}
    assert not any(marked(with_speeds(24, 80.0, 12.5, 12.5)).values())
    doubted["pruned"]["prefill_tokens_per_second"] = None
    assert marked(doubted)["prefill tokens/s"] is False  # nothing to doubt
    text = drawn(comparison_table(with_speeds(24, 80.0, 12.5, 13.8)))
    assert text.count("(in doubt)") == 2


def test_comparison_has_all_rows_and_says_what_is_missing():
    rows = {row.metric: (row.dense, row.pruned, row.change) for row in compared(METRICS)}
    assert rows == {
        "layers": ("30", "22", "−26.7 %"),
        "parameters": ("134.5 M", "106.2 M", "−21.0 %"),
        "perplexity": ("20.00", "2,400", "×120"),
        "size on disk": ("538 MB", "425 MB", "−21.0 %"),
        "prefill tokens/s": ("1,000", "1,300", "+30.0 %"),
        "decode tokens/s": ("10.00", "not measured", "–"),
    }
    text = drawn(comparison_table(METRICS))
    assert all(metric in text for metric in rows)


@pytest.mark.parametrize("metrics", [{}, {"dense": {}}, {"dense": None, "pruned": {"perplexity": math.inf}}])
def test_comparison_has_no_row_that_neither_model_has(metrics):
    assert [row.metric for row in compared(metrics)] == ["perplexity"] * ("inf" in str(metrics))
    assert "change" in drawn(comparison_table(metrics))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_number(21.434), "21.43"),
        (format_number(1204.4), "1,204"),
        (format_number(3.14e7), "3.1e+07"),
        (format_number(math.inf), "inf"),
        (format_count(960), "960"),
        (format_count(7.241e9), "7.241 B"),
        (format_bytes(1_080_000_000), "1.08 GB"),
        (format_bytes(1_623_000_000_000), "1.62 TB"),
    ],
)
def test_numbers_are_written_for_people(text, expected):
    assert text == expected


def test_generations_are_side_by_side_and_cannot_steer_the_terminal():
    text = drawn(generations_table(["[bold]once"], ["upon\x1b[31m a\rtime"], [":smile: [/x]"]))
    assert "[bold]once" in text
    assert ":smile: [/x]" in text
    assert "\x1b" not in text


def test_generations_take_no_more_lines_than_they_have_words():
    assert len(drawn(generations_table(["a"], ["b"], ["\n\n.\n\n.\n"])).rstrip().splitlines()) <= 6


def plain(**options) -> tuple[RichProgress, io.StringIO]:
    file = io.StringIO()
    return RichProgress(console=Console(file=file, force_terminal=False, width=80), **options), file


def test_elsewhere_a_step_is_a_line_at_its_start_and_one_at_its_end():
    progress, file = plain()
    with progress.track("scoring [layers]", 3) as advance:
        advance(3)
        progress.note("found " + 100 * "x")
    lines = file.getvalue().splitlines()
    assert lines[0] == "scoring [layers] …"
    assert lines[1] == "found " + 100 * "x"
    assert re.fullmatch(r"scoring \[layers\]: done after \d+\.\d s", lines[2])


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """What the time is, for the console alone; a test moves it on."""
    now = [100.0]
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def said_of_units(clock, seconds: list[float], total: int, **options) -> list[str]:
    """What is said between the first line and the last of a step, whose units take so long."""
    progress, file = plain(**options)
    with progress.track("scoring", total) as advance:
        for each in seconds:
            clock[0] += each
            advance(1)
    return file.getvalue().splitlines()[1:-1]


def test_elsewhere_a_long_step_says_after_ten_seconds_how_long_it_will_take_and_later_again(clock):
    assert said_of_units(clock, [1.0] * 80, 80) == [
        "scoring: 10 of 80 after 10 s, about 70 s left",
        "scoring: 40 of 80 after 40 s, about 40 s left",
    ]
    assert said_of_units(clock, [100.0] * 100, 100)[:2] == [
        "scoring: 1 of 100 after 2 min, about 2.8 h left",
        "scoring: 4 of 100 after 7 min, about 2.7 h left",
    ]


def test_the_time_left_is_by_the_speed_after_what_was_set_up_or_done_before(clock):
    assert said_of_units(clock, [9.0, *[0.125] * 200], 201) == ["scoring: 9 of 201 after 10 s, about 24 s left"]
    progress, file = plain()
    with progress.track("copying", 1000) as advance:
        advance(800)
        clock[0] += 10
        advance(10)
    assert "copying: 810 of 1,000 after 10 s, about 3 min left" in file.getvalue()  # 190 s


def test_nothing_is_said_of_a_step_that_is_short_or_nearly_done_or_of_which_little_is_known(clock):
    assert said_of_units(clock, [1.0] * 9, 9) == []
    assert said_of_units(clock, [1.0] * 14, 14) == []
    assert said_of_units(clock, [30.0], 1) == []
    assert said_of_units(clock, [5.0] * 9, 1000) == []


def test_a_failed_step_does_not_say_done():
    progress, file = plain()
    with pytest.raises(KeyError), progress.track("scoring", 3):
        raise KeyError
    assert "scoring: stopped after" in file.getvalue()


def test_quiet_shows_nothing():
    progress, file = plain(quiet=True)
    with progress.track("scoring", 3) as advance:
        advance(1)
        progress.note("found")
    assert file.getvalue() == ""


def terminal() -> tuple[RichProgress, io.StringIO]:
    file = io.StringIO()
    return RichProgress(console=Console(file=file, force_terminal=True, width=100)), file


def test_a_terminal_shows_how_far_it_is_also_for_a_step_within_a_step():
    progress, file = terminal()
    with progress.track("rounds", 2) as outer:
        with progress.track("steps [of a round]", 5) as inner:
            inner(5)
        outer(2)
    with progress.track("again", 1) as advance:
        advance(1)
    assert "rounds" in file.getvalue()
    assert "2/2" in file.getvalue()
    assert "again" in file.getvalue()


def test_a_step_that_failed_within_a_step_leaves_no_bar():
    progress, _ = terminal()
    with progress.track("rounds", 1):
        with pytest.raises(KeyError), progress.track("inner", 2):
            raise KeyError
        assert [task.description for task in progress._bars.tasks] == ["rounds"]


def test_a_terminal_is_given_back_on_error():
    progress, file = terminal()
    for _ in range(2):
        with pytest.raises(KeyError), progress.track("outer", 2), progress.track("inner", 2):
            raise KeyError
    assert file.getvalue().count("\x1b[?25h") == file.getvalue().count("\x1b[?25l") == 2  # cursor shown, hidden


def test_results_go_to_standard_output_and_the_rest_to_standard_error():
    code = (
        "from secateur.report.console import *\n"
        "progress = RichProgress()\n"
        "with progress.track('working', 2) as advance: advance(2); progress.note('noted')\n"
        "results_console().print(score_bars([1.0, 2.0], dropped=[0]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, encoding="utf-8")
    assert "working" in done.stderr
    assert "noted" in done.stderr
    assert "dropped" in done.stdout
    assert "working" not in done.stdout
    assert "dropped" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_the_results_console_follows_a_redirected_standard_output(capsys):
    results_console().print("[bold] :smile: 1.5")
    assert capsys.readouterr().out == "[bold] :smile: 1.5\n"


def of_task(value: float, low: float, high: float, *, metric: str = "accuracy", **more) -> dict:
    better = metric != "perplexity"
    task = {"metric": metric, "value": value, "interval": [low, high], "num_items": 1_200, "greater_is_better": better}
    return {"num_layers": 30, "num_parameters": 134_515_008, "task": task, **more}


def cells(text: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip() and "──" not in line]


def test_task_table_is_a_row_a_model_with_its_figure_interval_and_items():
    metrics = {
        "dense": of_task(0.61234, 0.58, 0.6399, prefill_tokens_per_second=1234.5),
        "dense_tuned": of_task(0.9, 0.88, 0.92),
        "pruned": {**of_task(0.875, 0.85, 0.9), "num_layers": 18, "num_parameters": 92_000_000},
    }
    assert cells(drawn(task_table(metrics), width=160)) == [
        ["model", "layers", "parameters", "accuracy", "95 % interval", "items", "prefill tokens/s"],
        ["dense, as it came", "30", "134.5 M", "0.612", "0.580 to 0.640", "1,200", "1,234"],
        ["dense, fine-tuned", "30", "134.5 M", "0.900", "0.880 to 0.920", "1,200", "–"],
        ["pruned, fine-tuned", "18", "92 M", "0.875", "0.850 to 0.900", "1,200", "–"],
    ]


def test_task_table_marks_a_speed_in_doubt():
    metrics = {
        "dense": of_task(0.6, 0.5, 0.7, prefill_tokens_per_second=1000.0),
        "pruned": {**of_task(0.6, 0.5, 0.7, prefill_tokens_per_second=1400.0), "num_layers": 29},
    }
    _, dense, pruned = cells(drawn(task_table(metrics), width=160))
    assert (dense[-1], pruned[-1]) == ("1,000", "1,400 (in doubt)")


def test_task_table_of_the_widest_figures_has_whole_words_in_80_columns():
    row = of_task(51408.0, 49882.0, 52980.0, metric="perplexity", prefill_tokens_per_second=12789.0)
    shown = drawn(task_table({"dense": row, "dense_tuned": row, "pruned": row}), width=80)
    assert "…" not in shown
    assert all(
        word in shown.split() for word in ("perplexity", "fine-tuned", "tokens/s", "parameters", "51,408", "12,789")
    )


def test_task_table_of_a_large_perplexity_or_without_an_interval_is_drawn():
    metrics = {
        "dense": of_task(15234.6, 14000.2, 16000.0, metric="perplexity"),
        "pruned": of_task(3.14159, math.nan, math.nan, metric="rouge_l_bertscore"),
    }
    head, dense, pruned = cells(drawn(task_table(metrics), width=160))
    assert head[3] == "rouge l bertscore"  # underscores are for files
    assert dense[3:5] == ["15,235", "14,000 to 16,000"]
    assert pruned[3:5] == ["3.142", "–"]


CHANCE, MORE = ", which may be chance", ", more than chance explains"


@pytest.mark.parametrize(
    ("metric", "difference", "low", "high", "said", "interval"),
    [
        ("accuracy", -0.0213, -0.0402, -0.0024, "2.1 points worse than", f"-4.0 to -0.2){MORE}"),
        ("accuracy", 0.01, -0.02, 0.04, "1.0 points better than", f"-2.0 to +4.0){CHANCE}"),
        ("perplexity", 1.25, 0.5, 2.0, "1.2 worse than", f"+0.5 to +2.0){MORE}"),
        ("perplexity", -1.25, -2.0, -0.5, "1.2 better than", f"-2.0 to -0.5){MORE}"),
        ("rouge_l", 0.003, 0.001, 0.005, "0.3 points better than", f"+0.1 to +0.5){MORE}"),
        # equal figures are neither better nor worse, whichever way is better
        ("accuracy", 0.0, -0.01, 0.01, "the same as", "-1.0 to +1.0)"),
        ("perplexity", 0.0, -0.5, 0.5, "the same as", "-0.5 to +0.5)"),
        ("accuracy", 0.0, 0.0, 0.0, "the same as", "+0.0 to +0.0)"),
        # what would be rounded away keeps a figure
        ("perplexity", -0.004, -0.01, 0.002, "0.004 better than", f"-0.01 to +0.002){CHANCE}"),
        # one item says nothing about others
        ("accuracy", -1.0, math.nan, math.nan, "100.0 points worse than", f"– to –){CHANCE}"),
    ],
)
def test_difference_says_which_is_better_by_how_much_and_whether_it_is_chance(
    metric, difference, low, high, said, interval
):
    metrics = {"pruned": of_task(0.5, 0.4, 0.6, metric=metric)}
    words = difference_in_words(metrics, {"difference": difference, "low": low, "high": high}, "X")
    assert words == f"pruned and fine-tuned it is {said} X on the same 1,200 items (95 %: {interval}"


def test_what_is_piped_has_no_blanks_at_the_ends_of_lines_and_all_else(capsys: pytest.CaptureFixture[str]) -> None:
    table = comparison_table({"dense": {"num_layers": 4}, "pruned": {"num_layers": 2}})
    results_console().print(table)
    piped = capsys.readouterr().out
    filled = io.StringIO()
    Console(file=filled, width=80).print(table)
    assert any(line != line.rstrip() for line in filled.getvalue().splitlines())
    assert piped.splitlines() == [line.rstrip() for line in filled.getvalue().splitlines()]
