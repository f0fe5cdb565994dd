"""Every fenced block of the pages is run, on a tiny model where it names one, or is listed with the reason why it is not."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import logging
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import secateur
from documents import PAGES, ROOT, Block, anchors_of, blocks_of, code_in, links_of, prose_of, tables_of
from page_commands import READ_ONLY, ROWS, prepare, run, why_read_only
from secateur import METHODS, cli
from secateur.compare.config import read_comparison
from secateur.data.text import HUB_TEXTS, PYTHON_DOCS
from secateur.evaluation.generation import generations
from tiny_models import ascii_tokenizer, tiny_llama

LANGUAGES = ("python", "bash", "console", "yaml", "text")
"""`text` is what something printed, or a drawing; `console` is commands behind `$` with what they printed."""

NOT_RUN = {
    "python -m venv": "makes an environment; .ci/run does it",
    ". .venv/bin/activate": "the same",
    "pip install": "the same",
    "pytest": "this very run",
    "python convert_hf_to_gguf.py": "a script of llama.cpp's, in an environment of its own",
    "llama-server": "another program",
    "vllm": "another program",
    "benchmarks/gpu/run.sh": "tests/test_gpu_script.py runs it",
}
"""What a command begins with → why it is not run here. All others are run, or read by the parser they are for."""

PYTHON_ELSEWHERE = {"docs/training-scripts.md": "tests/test_training_scripts.py runs each block, with its result"}

HANDED_OVER = 77
"""Exit code of a command of `READ_ONLY` that has read all its options and hands over to what would load a model."""

HANDS_OVER_TO = {
    "cut": "secateur.surgery.gguf_files.cut_gguf",
    "demo": "secateur.demo.demo",
    "estimate": "secateur.forecast.forecast",
    "eval": "secateur.assessment.evaluate",
    "prune": "secateur.pipeline.prune",
}

BEFORE_THE_PARSER = {"--debug", "--version"}
"""Options that `secateur` takes by itself."""

parser_of = functools.cache(cli._parser)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the number of layers of the sample model, and a tokenizer that has what the sample's has."""
    directory = tmp_path_factory.mktemp("docs") / "stand-in"
    tokenizer = ascii_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = tokenizer.unk_token
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tiny_llama(num_layers=30).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def reader(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of someone who follows a page: the clone's folders, and the stand-in where `secateur demo` leaves its model."""
    for name in ("benchmarks", "configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    for module in ("stages", "tuning"):  # a forecast of seconds, with tests of its own
        monkeypatch.setattr(f"secateur.{module}.memory_line", lambda *_: "")
    monkeypatch.setattr("secateur.stages._NEW_TOKENS", 4)  # of the speeds
    monkeypatch.setattr("secateur.text_workbench.generations", functools.partial(generations, max_new_tokens=4))
    monkeypatch.setattr("secateur.data.text.load_hub", lambda *_, **__: [row["text"] for row in ROWS])
    monkeypatch.setenv("MODEL", "secateur-demo")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [*filter(blocks_of, PAGES)], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_a_page_runs_or_is_taken_as_far_as_it_goes(
    page: Path, reader: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, names = page.read_text(encoding="utf-8"), {"__name__": "__main__"}
    prepare(blocks_of(page), reader, stand_in)
    for block in blocks_of(page):
        if block.language == "python" and str(page.relative_to(ROOT)) not in PYTHON_ELSEWHERE:
            exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), names)  # noqa: S102  our own page
        elif block.is_shell:
            for words in block.commands():
                with monkeypatch.context() as patch:
                    take(words, block, patch, capsys)
        elif block.language == "yaml":
            take_settings(block, text, reader)


def take(words: list[str], block: Block, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Hold one command to the parser that it is for."""
    while re.match(r"[A-Z_]+=", words[0]):
        patch.setenv(*words[0].split("=", 1))
        words = words[1:]
    if words[0] in ("torchrun", "accelerate"):
        words = words[words.index("-m") + 1 :]
    if words[0] == "secateur" and why_read_only(words) is None:
        assert run(words) == 0, f"{block}: {capsys.readouterr().err}"
    elif words[0] == "secateur":
        stop(HANDS_OVER_TO[words[1]], patch)
        patch.setattr(
            "secateur.surgery.output.check_output", lambda *_, **__: None
        )  # a page's commands use one place twice
        assert cli.main(words[1:]) == HANDED_OVER, f"{block}: {capsys.readouterr().err}"
    elif words[0] == "python" and words[1].startswith("benchmarks/"):
        assert exit_code_of_script(words[1:], patch) == HANDED_OVER, f"{block}: {capsys.readouterr().err}"
    elif words[0] == "python" and words[1].startswith("examples/"):
        subprocess.run([sys.executable, *words[1:]], check=True)
    else:
        assert any(" ".join(words).startswith(start) for start in NOT_RUN), (
            f"{block}: {words} is neither run nor listed"
        )


def stop(name: str, patch: pytest.MonkeyPatch) -> None:
    """End a command where it hands over, with all options read; the data that it names must be known, or be there."""

    def handed_over(*args: Any, **options: Any) -> None:
        for given in (options.get("data"), *(getattr(value, "data", None) for value in options.values())):
            known = given is None or given in (*HUB_TEXTS, PYTHON_DOCS) or given.startswith("hub:")
            stands_for_any = known or given.isupper()  # SPEC
            assert stands_for_any or Path(given).exists(), f"no data is called {given}"
        raise SystemExit(HANDED_OVER)

    patch.setattr(name, handed_over)
    patch.setattr("secateur.forecast.forecast_tuning", handed_over)
    patch.setattr(cli, "_parser", lambda command, _: parser_of(command))
    patch.setattr("secateur.loading.local_checkpoint", lambda source, **_: Path(source))
    patch.setattr(logging, "basicConfig", lambda **_: None)


def exit_code_of_script(words: list[str], patch: pytest.MonkeyPatch) -> Any:
    """Run a script up to where it has read its options."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, *given: Any) -> None:
        original(self, *given)
        raise SystemExit(HANDED_OVER)

    patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    patch.setattr(sys, "argv", words)
    patch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("a_benchmark", words[0])
    script = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, "a_benchmark", script)  # dataclasses look their module up
    spec.loader.exec_module(script)
    with pytest.raises(SystemExit) as done:
        script.main()
    return done.value.code


def take_settings(block: Block, page: str, folder: Path) -> None:
    """A comparison is read as one; other settings become the file that they name, which a command below reads."""
    name = re.match(r"# (\S+\.yaml)", block.text)
    if name:
        (folder / name[1]).write_text(block.text, encoding="utf-8")
        assert f"--config {name[1]} " in page, f"{block}: no command reads it"
    else:
        (folder / "settings.yaml").write_text(block.text, encoding="utf-8")
        read_comparison(folder / "settings.yaml")


def test_every_block_says_what_it_is() -> None:
    for page in PAGES:
        fences = page.read_text(encoding="utf-8").count("```")
        assert fences == 2 * len(blocks_of(page)), f"{page}: a fence that is not closed, or not at the edge"
        for block in blocks_of(page):
            assert block.language in LANGUAGES, f"{block}: '{block.language}' is not one of {LANGUAGES}"


def test_commands_stand_in_blocks_that_are_tested() -> None:
    command = re.compile(r"^(?:    |\$ )?(?:secateur|python|pip|torchrun|accelerate) \S", re.MULTILINE)
    for page in PAGES:
        assert command.search(re.sub(r"^(?!    ).*", "", prose_of(page), flags=re.MULTILINE)) is None, page
        for block in blocks_of(page):
            assert block.language != "text" or command.search(block.text) is None, block


def test_every_reason_for_not_running_is_needed() -> None:
    shell = [block for page in PAGES for block in blocks_of(page) if block.is_shell]
    commands = [" ".join(words) for block in shell for words in block.commands()]
    for start in NOT_RUN:
        assert any(command.startswith(start) for command in commands), start
    for part in READ_ONLY:
        assert any(why_read_only([command]) == part for command in commands if command.startswith("secateur")), part
    for page in PYTHON_ELSEWHERE:
        assert any(block.language == "python" for block in blocks_of(ROOT / page)), page


def test_every_option_that_prose_names_is_one_of_a_command() -> None:
    known = BEFORE_THE_PARSER.union(*map(options_of, cli.COMMANDS))
    for page in PAGES:
        for code in code_in(prose_of(page)):
            ours = re.match(r"(secateur .*)?--", code)
            for option in re.findall(r"(?<![\w*-])--[a-z][\w.-]*\w", code) if ours else ():
                assert option in known, f"{page.relative_to(ROOT)}: `{code}`"


def options_of(command: str) -> set[str]:
    """The options of a command as they are typed."""
    return set(defaults_of(command))


def defaults_of(command: str) -> dict[str, Any]:
    """Each option that the help of a command shows, as it is typed, and its default."""
    actions = [action for action in parser_of(command)._actions if action.help != argparse.SUPPRESS]
    return {name.replace("_", "-"): action.default for action in actions for name in action.option_strings}


def test_every_option_of_every_command_is_named_on_a_page() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "CHANGELOG.md")
    options = BEFORE_THE_PARSER.union(*map(options_of, cli.COMMANDS))
    of_a_method = re.compile(rf"--({'|'.join(METHODS)})(\.|$)")  # the test below
    options = {option for option in options if option.startswith("--") and not of_a_method.match(option)}
    assert {option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", pages)} == set()


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_a_method_is_named_on_its_page(name: str) -> None:
    page = ROOT / "docs" / "methods" / f"{name.removesuffix('-published')}.md"
    named = {code.partition(" ")[0] for code in code_in(prose_of(page))}
    for setting in METHODS[name]().options():
        assert f"--{page.stem}.{setting.replace('_', '-')}" in named


def test_every_default_in_a_table_is_that_of_the_option() -> None:
    known = [defaults_of(command) for command in cli.COMMANDS]
    held = set()
    for page in PAGES:
        for head, *rows in tables_of(page):
            columns = [number for number, title in enumerate(head) if title == "default" or title.strip("`") in METHODS]
            for row in rows if "default" in head else ():
                options = code_in(row[0])
                for column in columns:
                    named = [of_method(option, head[column].strip("`")) for option in options]
                    for option, cell in zip(named, row[column].split(", "), strict=True):
                        found = [defaults[option] for defaults in known if option in defaults]
                        assert any(means(cell.strip("`"), default) for default in found), (page, option, cell, found)
                        held.add(option)
    assert {"--max-length", "--elder-published.lambda-1", "--recover-rank"} <= held


def of_method(option: str, method: str) -> str:
    """The same setting of another form of the method, where a column is that form's own."""
    return re.sub(r"^--[\w-]+\.", f"--{method}.", option) if method in METHODS else option


def means(cell: str, default: Any) -> bool:
    """Whether a cell of a table says that value."""
    if isinstance(default, bool):
        return cell in (("off", "false"), ("on", "true"))[default]
    if isinstance(default, (int, float)) and cell != "null":  # which it is with another command
        return float(cell) == default
    return cell == ("null" if default is None else str(default))


def test_every_name_of_a_module_in_prose_can_be_imported() -> None:
    named = {code for page in PAGES for code in code_in(prose_of(page)) if re.fullmatch(r"secateur(\.\w+){2,}", code)}
    for name in named:
        pkgutil.resolve_name(name)
    assert "secateur.hub.push" in named


def test_every_command_has_its_function_on_the_page_for_python() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    for command in {*cli.COMMANDS} - {"completion"}:
        assert re.search(rf"^\| `{command}`|`sc\.{command}\w*`", page, re.MULTILINE), command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for link in links_of(page):
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        assert file.exists(), link
        assert not anchor or anchor in anchors_of(file), link


def test_the_reference_has_every_public_name_once() -> None:
    named = re.findall(r"^::: secateur\.(\w+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(set(secateur.__all__) - {"METHODS"})  # which is a dictionary: it has no docstring
