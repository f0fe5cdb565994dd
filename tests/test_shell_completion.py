"""`secateur completion`, in the shells themselves: keys are pressed in each, and what it completes is looked at."""

from __future__ import annotations

import functools
import io
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from secateur import cli
from secateur.cli import main
from secateur.methods import METHODS
from shells import Shell

SHELLS = ("bash", "zsh", "fish")
FILES = ("with space/notes.txt", "co:lon/run.yaml", "plain/text.txt", "run.yaml", "script.txt")


@functools.cache
def script(shell: str) -> str:
    pytest.importorskip("shtab")
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        assert main(["completion", shell]) == 0
    assert f"secateur completion {shell}" in err.getvalue()
    return out.getvalue()


def skip_without(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shells are: some files."""
    folder = tmp_path_factory.mktemp("shells") / "work"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.fixture(scope="module", params=SHELLS)
def shell(request: pytest.FixtureRequest, folder: Path) -> Iterator[Shell]:
    skip_without(request.param)
    source = folder.parent / f"completion.{request.param}"
    source.write_text(script(request.param))
    with Shell(request.param, folder, f"source {source}\nlook_at secateur") as shell:
        yield shell


def words_after_tab(shell: Shell, typed: str) -> list[str]:
    """The words of the line, without the `=` that zsh sets behind an option, as long as no space is typed."""
    words = shlex.split(shell.after_tab(typed))
    return [*words[:-1], words[-1].removesuffix("=")]


# ---- what is completed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "last"),
    [
        ("pru", "prune"),
        ("help pru", "prune"),
        ("--v", "--version"),
        ("--debug pru", "prune"),
        ("prune M --max-p", "--max-ppl-increase"),
        ("prune -q --max-p", "--max-ppl-increase"),
        ("prune M --method=sleb --max-p", "--max-ppl-increase"),
        ("prune M --data hub:owner/name --max-p", "--max-ppl-increase"),
        ("prune M --print-config --max-p", "--max-ppl-increase"),
        ("prune M --method shortg", "shortgpt"),
        ("prune M --method=shortg", "--method=shortgpt"),
        ("prune M --elder.absorb p", "projection"),
        ("prune M --elder.absorb=p", "--elder.absorb=projection"),
        ("prune M --elder.fixed-batch t", "true"),
        ("tune M --precision b", "bf16"),
        ("completion z", "zsh"),
        ("eval M --data wiki", "wikitext2"),
        ("prune --eval-data=py", "--eval-data=python-docs"),
        ("prune M --config general", "general-small"),
        ("prune M --config=general", "--config=general-small"),
        ("tune M --config general", "general"),  # another command's
        # files, as values
        ("eval M --data scr", "script.txt"),
        ("eval M --data=scr", "--data=script.txt"),
        ("prune M --config=ru", "--config=run.yaml"),
        ("prune M --out=pl", "--out=plain/"),
        ("prune M --out=plain/", "--out=plain/text.txt"),
        ("prune --out wi", "with space/"),
        (r"prune --out=with\ space/", "--out=with space/notes.txt"),
        ("prune M --seed scr", "scr"),  # a number
        # and as words
        ("prune wi", "with space/"),
        (r"prune with\ space/", "with space/notes.txt"),
        ("prune co", "co:lon/"),
        ("prune co:lo", "co:lon/"),
        ("prune co:lon/", "co:lon/run.yaml"),
        (r"prune co\:lon/", "co:lon/run.yaml"),
        ("bench a pl", "plain/"),
        ("bench a b c pl", "plain/"),
        ("eval a b pl", "plain/"),
        ("report a b pl", "plain/"),
        ("check a:b pl", "plain/"),
        ('check "with space" pl', "plain/"),
        ("check a b pl", "pl"),  # a third, where there are two
        ("push plain pl", "pl"),  # an id on the hub
        ("compare ru", "run.yaml"),
    ],
)
def test_the_tab_key_completes(typed: str, last: str, shell: Shell) -> None:
    assert words_after_tab(shell, f"secateur {typed}") == [*shlex.split(f"secateur {typed}")[:-1], last]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("", [*cli.COMMANDS, "help"]),
        ("help ", cli.COMMANDS),
        ("completion ", SHELLS),
        ("prune M --method ", METHODS),
        ("prune M --recover ", ("none", "lora", "partial", "full", "distill")),
        ("tune M --train ", ("full", "lora")),
        ("prune M --method short", ("shortgpt", "shortened-ppl", "shortened-taylor")),
        ("prune M --data p", ("ptb", "python-docs", "plain")),
    ],
)
def test_all_is_offered_that_there_is(typed: str, offered: list[str], shell: Shell) -> None:
    assert {each.rstrip("/") for each in shell.offered(f"secateur {typed}")} == {*offered}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_all_options_of_a_command_are_offered(command: str, shell: Shell) -> None:
    names = {name.replace("_", "-") for action in cli._parser(command)._actions for name in action.option_strings}
    offered = {each.rstrip("=") for each in shell.offered(f"secateur {command} --")}
    assert {name for name in names if name.startswith("--")} == offered


@pytest.mark.parametrize(
    ("name", "file", "found"),
    [
        ("zsh", "_secateur", "fpath=({0} $fpath); compinit -u -D"),
        ("fish", "secateur.fish", "set fish_complete_path {0} $fish_complete_path"),
    ],
)
def test_a_script_where_the_command_says_is_found_and_works_each_time(
    name: str, file: str, found: str, tmp_path: Path
) -> None:
    skip_without(name)
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / file).write_text(script(name))
    with Shell(name, tmp_path, found.format(tmp_path / "found")) as shell:
        for _ in range(3):
            assert words_after_tab(shell, "secateur prune M --max-p")[-1] == "--max-ppl-increase"


# ---- the script --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_has_every_command_its_options_and_the_methods(shell: str) -> None:
    text = script(shell)
    for command in cli.COMMANDS:
        assert command in text
        for action in cli._parser(command)._actions:
            for name in action.option_strings:
                spelt = name.replace("_", "-")
                assert (spelt if shell != "fish" else spelt.lstrip("-")) in text, (command, name)
    assert all(name in text for name in METHODS)
    assert "--elder.joint_steps" not in text


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_that_is_here_finds_nothing_wrong_with_its_script(shell: str, tmp_path: Path) -> None:
    skip_without(shell)
    (tmp_path / "script").write_text(script(shell))
    subprocess.run([shell, "--no-execute" if shell == "fish" else "-n", str(tmp_path / "script")], check=True)


def test_completion_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'secateur[completion]'" in capsys.readouterr().err


def test_an_unknown_shell_is_refused_with_those_that_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "cmd"]) == 2
    assert "one of bash, zsh, fish" in capsys.readouterr().err
