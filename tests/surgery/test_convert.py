import json
import sys
from types import SimpleNamespace

import pytest
from gguf import GGUFReader

from secateur import pipeline
from secateur.cli import main
from secateur.errors import RequestError, RunError
from secateur.surgery.convert import convert_to_gguf, find_converter
from secateur.surgery.files import cut_checkpoint

SCRIPT = """
import json, pathlib, sys
from gguf import GGUFWriter

directory, flag, out = sys.argv[1:]
assert flag == "--outfile"
writer = GGUFWriter(out, "llama")
writer.add_block_count(json.loads((pathlib.Path(directory) / "config.json").read_text())["num_hidden_layers"])
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


@pytest.fixture
def converter(tmp_path, monkeypatch):
    """A converter with llama.cpp's command line, in a folder with a space, that writes the number of layers alone."""
    monkeypatch.delenv("SECATEUR_GGUF_CONVERTER", raising=False)
    (tmp_path / "my tools").mkdir()
    script = tmp_path / "my tools" / "convert_hf_to_gguf.py"
    script.write_text(SCRIPT)
    return f"{sys.executable} '{script}'"


def test_cut_writes_a_gguf_file_of_the_cut_checkpoint_beside_its_weights(tiny_checkpoint, tmp_path, converter, capsys):
    words = ["cut", str(tiny_checkpoint), "--layers", "1,2", "--out", str(tmp_path / "out"), "--format", "gguf"]
    assert main([*words, "--converter", converter]) == 0
    assert GGUFReader(tmp_path / "out" / "model.gguf").fields["llama.block_count"].contents() == 4
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 4
    assert not list((tmp_path / "out").glob(".*"))


def test_prune_writes_it_into_the_proven_checkpoint(tiny_checkpoint, tmp_path, converter, monkeypatch):
    def prune(model, *, out, **_):
        return SimpleNamespace(path=cut_checkpoint(model, out, [1]).target, record={})

    monkeypatch.setattr(pipeline, "prune", prune)
    monkeypatch.setenv("SECATEUR_GGUF_CONVERTER", converter)
    words = [
        "prune",
        str(tiny_checkpoint),
        "--data",
        "python-docs",
        "--drop",
        "1",
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    assert main([*words, "--format", "gguf"]) == 0
    assert GGUFReader(tmp_path / "out" / "model.gguf").fields["llama.block_count"].contents() == 5


def test_without_a_converter_nothing_is_cut_and_the_way_to_one_is_said(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SECATEUR_GGUF_CONVERTER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["cut", str(tiny_checkpoint), "--layers", "1", "--out", str(tmp_path / "out")]
    assert main([*words, "--format", "gguf"]) == 2
    assert "--converter 'PYTHON PATH/convert_hf_to_gguf.py'" in capsys.readouterr().err
    assert main([*words, "--converter", "anything"]) == 2
    assert "without --format gguf" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_converter_on_the_path_is_found_and_a_script_that_is_not_there_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("SECATEUR_GGUF_CONVERTER", raising=False)
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_converter() == (str(script),)
    for command in (f"{sys.executable} missing.py", "'unclosed", "no-such-program"):
        with pytest.raises(RequestError, match="converter"):
            find_converter(command)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise SystemExit('NotImplementedError: Model is not supported')", "Model is not supported"),
        ("pass", "could not convert"),
        ("import sys; open(sys.argv[3], 'w').write('half')", "is not a GGUF file"),
    ],
)
def test_a_converter_that_fails_leaves_the_checkpoint_and_nothing_else(tmp_path, body, reason):
    script = tmp_path / "fails.py"
    script.write_text(body)
    directory = tmp_path / "out"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    with pytest.raises(RunError, match=reason) as caught:
        convert_to_gguf(directory, [sys.executable, str(script)])
    assert "\n" not in str(caught.value)
    assert [path.name for path in directory.iterdir()] == ["config.json"]
