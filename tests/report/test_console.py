import io
import math
import re
import subprocess
import sys

import pytest
from rich.console import Console

from secateur.report.comparison import compared, format_bytes, format_count, format_number
from secateur.report.console import RichProgress, comparison_table, generations_table, results_console, score_bars

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


def test_comparison_has_all_rows_and_marks_what_is_missing():
    rows = {row.metric: (row.dense, row.pruned, row.change) for row in compared(METRICS)}
    assert rows == {
        "layers": ("30", "22", "−26.7 %"),
        "parameters": ("134.5 M", "106.2 M", "−21.0 %"),
        "perplexity": ("20.00", "2,400", "×120"),
        "size on disk": ("538 MB", "425 MB", "−21.0 %"),
        "prefill tokens/s": ("1,000", "1,300", "+30.0 %"),
        "decode tokens/s": ("10.00", "–", "–"),
    }
    text = drawn(comparison_table(METRICS))
    assert all(metric in text for metric in rows)


@pytest.mark.parametrize("metrics", [{}, {"dense": {}}, {"dense": None, "pruned": {"perplexity": math.inf}}])
def test_comparison_without_values_is_drawn(metrics):
    assert "–" in drawn(comparison_table(metrics))


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
