"""The manners of the command line: help at once, quiet and verbose, no colour where none is wanted, what is next."""

from __future__ import annotations

import io
import json
import logging
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM

from secateur import PruningPlan, cli
from secateur.cli import main
from secateur.cli.words import with_underscores
from secateur.methods import METHODS
from secateur.report.console import message_console, results_console
from secateur.surgery.files import cut_checkpoint

HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate")


def heavy_after(statement: str) -> list[str]:
    """The heavy packages that a fresh Python has imported once it has run `statement`."""
    code = f"{statement}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ran.stderr.split()


# ---- heavy imports -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], *([command, "--help"] for command in cli.COMMANDS)], ids=" ".join
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    assert heavy_after(f"from secateur.cli import main\nassert main({words!r}) == 0") == []


WRONG = (
    "prune --dorp 2",
    "tune M --data=x --out=y --epochs=x",
    *(
        f"{command} M --data=python-docs --out=y {wrong}"
        for command in ("prune", "tune")
        for wrong in (
            "--drop=twenty", "--layers=5-3", "--target-params=2", "--drop=2 --layers=3", "", "--drop=2 --method=shortgtp",
            "--drop=2 --data=nofile.txt", "--drop=2 --out=/", "--drop=2 --resume --checkpoint-minutes=-1",
        )
    ),
    "prune M --data=python-docs --out=y --drop=2 --num-sequences=0",
    "tune M --data=python-docs --out=y --drop=2 --labels=one",
    "score M --data=nofile.txt",
    "score M --data=python-docs --drop=twenty",
    "score M --data=python-docs --num-sequences=0",
    "score M --data=python-docs --method=shortgtp",
    "estimate M --drop=twenty",
    "estimate M --drop=2 --method=shortgtp",
    "estimate M --drop=2 --num-train=0",
    "demo --out=/",
)  # fmt: skip


def test_wrong_values_are_refused_before_anything_heavy_is_imported() -> None:
    refused = f"for words in {WRONG!r}:\n    with redirect_stderr(StringIO()): assert main(words.split()) == 2, words"
    imports = "from contextlib import redirect_stderr\nfrom io import StringIO\nfrom secateur.cli import main"
    assert heavy_after(f"{imports}\n{refused}") == []


def test_the_package_imports_each_name_when_it_is_first_used() -> None:
    assert heavy_after("import secateur; dir(secateur); secateur.PruningPlan; secateur.RequestError") == []
    assert (
        heavy_after("import secateur; secateur.METHODS, secateur.Target, secateur.FineTuning, secateur.TaskSettings")
        == []
    )
    assert "torch" in heavy_after("import secateur; secateur.Decoder")
    assert heavy_after("import secateur.data; dir(secateur.data)") == []


# ---- quiet, verbose, colour --------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    cut_checkpoint(tiny_checkpoint, tmp_path / "cut", [3])
    return [str(tiny_checkpoint), str(tmp_path / "cut")]


def test_quiet_turns_the_bars_of_the_hub_off(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    enable_progress_bars()
    try:
        assert main(["check", *pair, "--quiet"]) == 0
        assert are_progress_bars_disabled()
    finally:
        enable_progress_bars()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("options", [[], ["--quiet"], ["--json"]], ids=" ".join)
def test_code_that_is_run_is_warned_of_each_time_whatever_is_quiet(
    options: list[str], pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(["check", *pair, "--files-only", "--trust-remote-code", *options]) == 0
        captured = capsys.readouterr()
        warning = "warning: the Python code that comes with the model is run"
        assert captured.err.count(warning) == 1
        assert warning not in captured.out
    assert main(["check", *pair, "--files-only", *options]) == 0
    assert "Python code" not in capsys.readouterr().err


def test_verbose_says_more_and_quiet_errors_alone(pair: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    levels: dict[str, int] = {}
    for option in ("--verbose", "-v", "--quiet", "-q", "--json"):
        monkeypatch.setattr(logging.root, "handlers", [])
        monkeypatch.setattr(logging.root, "level", logging.WARNING)
        assert main(["check", *pair, "--files-only", option]) == 0
        levels[option] = logging.getLogger("secateur").getEffectiveLevel()
    more, less = logging.INFO, logging.ERROR
    assert levels == {"--verbose": more, "-v": more, "--quiet": less, "-q": less, "--json": logging.WARNING}


class Terminal(io.StringIO):
    """Standard output as a terminal has it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("is_terminal", "variables", "coloured"),
    [(True, {}, True), (False, {}, False), (True, {"NO_COLOR": "1"}, False), (True, {"TERM": "dumb"}, False)],
)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_colour_in_a_terminal_alone_and_not_where_no_color_is_set(
    stream: str, is_terminal: bool, variables: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    file = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, stream, file)
    console: Console = results_console() if stream == "stdout" else message_console()
    console.print("dropped", style="red")
    assert ("\x1b[31m" in file.getvalue()) == coloured
    assert "dropped" in file.getvalue()


# ---- what is next ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "following"),
    [
        (
            "score MODEL --data TEXT --method random --drop 25%",
            "prune MODEL --data TEXT --method random --drop 25% --out DIR",
        ),
        (
            "estimate MODEL --drop 2 --method random --hardware h100",
            "prune MODEL --drop 2 --method random --data SPEC --out DIR",
        ),
        (
            "score MODEL --data=TEXT --method random --seed 3 --sequence-length=16 --out plan.json --num-sequences 4",
            "prune MODEL --data=TEXT --method random --seed 3 --sequence-length=16 --num-sequences 4 --drop 25% --out DIR",
        ),
        (
            "estimate MODEL --hardware=h100 --elder.train lora --devices 2 --sharded --drop 2 --recover distill",
            "prune MODEL --elder.train lora --drop 2 --recover distill --data SPEC --out DIR",
        ),
        (
            "estimate MODEL --drop 2 --num-train 9 --mean-tokens 8 --num-options=2 --batch-size 8 --sharded --max-length 16",
            "tune MODEL --drop 2 --num-train 9 --batch-size 8 --max-length 16 --data SPEC --out DIR",
        ),
        (
            "score MODEL --data TEXT --method tail --drop 2 --device-map auto",
            "cut MODEL --layers 4,5 --out DIR",
        ),
        (
            "score MODEL --data TEXT --method tail --drop 2 --device_map=auto --out plan.json",
            "cut MODEL --plan plan.json --out DIR",
        ),
        ("check MODEL CUT --files-only", "bench MODEL CUT"),
        ("eval MODEL CUT --data TEXT --num-sequences 2", "bench MODEL CUT"),
        ("eval MODEL --data TEXT --num-sequences 2", "prune MODEL --data SPEC --drop 25% --out DIR"),
        ("eval RUN --data TEXT --num-sequences 2", "bench DENSE RUN"),
        (
            "bench MODEL CUT --batch-sizes 1 --prompt-tokens 4 --new-tokens 2 --repeats 1 --no-memory",
            "push CUT OWNER/NAME",
        ),
        (
            "prune MODEL --data TEXT --method random --drop 2 --num-sequences 2 --num-eval-sequences 2 --out new --overwrite",
            "eval MODEL new --data SPEC",
        ),
        ("cut MODEL --layers 1 --out cut-again --overwrite", "eval MODEL cut-again --data SPEC"),
        ("report RUN --out page.html", "eval RUN --data SPEC"),
        ("doctor --no-network", "demo"),
    ],
)
def test_each_command_ends_with_the_next_sensible_one_unless_quiet_or_json(
    request_: str,
    following: str,
    pair: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Sentence {n} says that {n} times {n} is {n * n}.\n\n" for n in range(900)))
    places = {"MODEL": pair[0], "CUT": pair[1], "TEXT": str(text), "--data=TEXT": f"--data={text}", "RUN": "run"}
    monkeypatch.chdir(tmp_path)
    if "RUN" in request_:
        run = ["prune", pair[0], "--data", str(text), "--method=random", "--drop=2", "--num-sequences=2", "--out=run"]
        assert main([*run, "--num-eval-sequences=2", "--quiet"]) == 0
        capsys.readouterr()
    words = [places.get(word, word) for word in request_.split()]
    assert main(words) == 0
    captured = capsys.readouterr()
    expected = " ".join(places.get(word, word) for word in following.split())
    assert captured.err.splitlines()[-1] == f"next: secateur {expected}"
    assert "next:" not in captured.out
    assert main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)
    assert "next:" not in captured.err
    assert main([*words, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out
    assert "next:" not in captured.out
    assert captured.err == ""


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
@pytest.mark.parametrize("quiet", ["--quiet", "-q"])
def test_commands_that_end_otherwise_say_nothing_of_what_is_next_where_they_are_quiet(
    quiet: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), settings).save_pretrained(
        tmp_path / "adapter"
    )
    PruningPlan(num_layers=6, order=(3,)).save(tmp_path / "plan.json")
    carry = ["carry", str(tmp_path / "adapter"), "--plan", str(tmp_path / "plan.json"), "--out"]
    for words in (["completion", "bash"], [*carry, str(tmp_path / "loud")]):
        assert main(words) == 0
        assert capsys.readouterr().err.splitlines()[-1].startswith("next")
    for words in (["completion", "bash"], [*carry, str(tmp_path / "quiet")]):
        assert main([*words, quiet]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        assert "next:" not in captured.out.splitlines()[-1]


def test_what_is_next_asks_prune_for_the_settings_that_were_estimated(
    pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    typed = [
        "--elder.trainer",
        '{"activation_checkpointing": true}',
        "--elder.distil=0.5",
        "--seed",
        "7",
        "--batch-size",
        "2",
    ]
    typed += ["--recover", "lora", "--recover-rank=4", "--num-sequences", "8", "--sequence_length=32"]
    asked = ["estimate", pair[0], "--drop", "2", *typed, "--hardware", "h100", "--devices=2"]
    assert main(asked) == 0
    said = shlex.split(capsys.readouterr().err.splitlines()[-1].removeprefix("next: secateur prune "))
    read = {}
    for command, words in (("estimate", asked[1:]), ("prune", said)):
        parsed = cli._parser(command).parse_args([with_underscores(word, METHODS) for word in words])
        read[command] = dict(vars(parsed))
    same = read["estimate"].keys() & read["prune"].keys() - {"method"}  # which depends on what is estimated
    assert same > {"elder", "recover", "recover_rank", "seed", "batch_size", "sequence_length", "drop", "model"}
    assert {name: read["prune"][name] for name in same} == {name: read["estimate"][name] for name in same}
    assert read["prune"]["elder"]["trainer"] == {"activation_checkpointing": True}


def test_torch_is_there_once_work_is_done() -> None:
    """Else the tests of what is not imported could not fail."""
    assert heavy_after("import secateur; secateur.Decoder")[0] == torch.__name__
