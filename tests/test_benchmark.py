"""Models side by side: what the record holds, against the checkpoints, the formula and a fake clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur import benchmark
from secateur.benchmark import bench, compare
from secateur.cli import main
from secateur.errors import RequestError
from secateur.evaluation import footprint, speed
from secateur.evaluation.flops import weight_bytes
from secateur.evaluation.speed import Laps, SpeedSettings
from secateur.loading import load_model
from secateur.report.record import git_revision
from secateur.surgery.files import cut_checkpoint

SETTINGS = SpeedSettings(prompt_tokens=8, new_tokens=4, batch_sizes=(1, 2), repeats=3)
WORDS = ["--prompt-tokens=8", "--new-tokens=4", "--batch-sizes=1,2", "--repeats=3"]


@pytest.fixture(scope="module")
def cut(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint without two of its six layers."""
    target = tmp_path_factory.mktemp("cut") / "cut"
    cut_checkpoint(tiny_checkpoint, target, [2, 3])
    return target


@pytest.fixture
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second a layer and sequence to read, a tenth a layer and token to write."""

    def time_once(model: Any, prompt: torch.Tensor, new_tokens: int, **_: Any) -> Laps:
        layers = model.config.num_hidden_layers
        prefill = float(layers * len(prompt))
        return Laps(prefill=prefill, first_token=prefill + 1, decode=0.1 * layers * new_tokens)

    monkeypatch.setattr(speed, "time_once", time_once)


class Notes:
    """Progress that remembers what was said."""

    def __init__(self) -> None:
        from secateur.progress import Silent

        self.track = Silent().track
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


@pytest.mark.usefixtures("fake_clock")
def test_bench_says_after_the_first_turn_how_long_the_others_take(tiny_checkpoint: Path, cut: Path) -> None:
    notes = Notes()
    bench(tiny_checkpoint, [cut], settings=SETTINGS, memory=False, progress=notes)
    reading, writing = (6 + 4) * (1 + 2) + 4, 0.1 * (6 + 4) * 4 * 2  # layers × sequences, and the first tokens
    assert notes.said[-1] == f"a turn takes about {reading + writing:.0f} s: about {2 * 42} s for the 2 to come"


@pytest.mark.usefixtures("fake_clock")
def test_record_holds_both_models_and_the_ratios_of_their_times(tiny_checkpoint: Path, cut: Path) -> None:
    record = bench(tiny_checkpoint, [cut], settings=SETTINGS, memory=False, command=["secateur", "bench"])
    dense, pruned = record["models"]
    for about, source, layers in ((dense, tiny_checkpoint, 6), (pruned, cut, 4)):
        model = load_model(source)
        assert about["model"] == str(source)
        assert about["num_layers"] == layers
        assert about["num_parameters"] == model.num_parameters()
        assert about["disk_bytes"] == (source / "model.safetensors").stat().st_size
        assert about["weight_bytes"] == weight_bytes(model)
        assert about["peak_memory_bytes"] is None
        one, two = about["speeds"]
        assert (one["prefill_seconds"], two["prefill_seconds"]) == (layers, 2 * layers)
        assert one["first_token_seconds"] == layers + 1
        assert two["prefill_tokens_per_second"] == pytest.approx(8 / layers)  # 2 · 8 tokens in 2 · layers seconds
        assert two["decode_tokens_per_second"] == pytest.approx(2 * 4 / (0.1 * layers * 4))
    rows = {(row["phase"], row["batch_size"]): row for row in record["speedups"]}
    assert rows["prefill", 2]["turns"] == (1.5, 1.5, 1.5)
    assert rows["first_token", 1]["speedup"] == 7 / 5
    assert rows["decode", 1]["ideal_flops"] == dense["decode_flops"] / pruned["decode_flops"]
    assert {row["model"] for row in record["speedups"]} == {str(cut)}
    assert record["command"] == "secateur bench"
    assert record["git_revision"] == git_revision()
    assert [about["revision"] for about in record["models"]] == [None, None]  # of the disk
    assert record["machine"]["threads"] == torch.get_num_threads()


def test_json_is_one_object_equal_to_the_file_and_the_table_names_the_models(
    tiny_checkpoint: Path, cut: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    words = ["bench", str(tiny_checkpoint), str(cut), "--no-memory", "--quiet", *WORDS]
    assert main([*words, "--json", f"--out={out}"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("\n") == 1
    record = json.loads(captured.out)
    assert record == json.loads(out.read_text())
    assert record["settings"] == {
        "prompt_tokens": 8, "new_tokens": 4, "batch_sizes": [1, 2], "repeats": 3, "cuda_graphs": False,
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
    assert all(len(row["turns"]) == 3 and min(row["turns"]) > 0 for row in record["speedups"])


def test_several_pruned_models_are_each_held_to_the_dense_one(tiny_model: Any) -> None:
    models = {"dense": tiny_model, "a": tiny_model, "b": tiny_model}
    record = compare(models, SpeedSettings(prompt_tokens=4, new_tokens=1, batch_sizes=(1,), repeats=1))
    assert [(row["model"], row["ideal_flops"]) for row in record["speedups"]] == [("a", 1.0)] * 3 + [("b", 1.0)] * 3


@pytest.mark.usefixtures("fake_clock")
def test_what_else_differs_and_a_busy_machine_are_said(
    tiny_checkpoint: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.config.vocab_size = 64
    model.resize_token_embeddings(64)
    model.save_pretrained(tmp_path / "other")
    monkeypatch.setattr(benchmark.psutil, "getloadavg", lambda: (7.0, 0.0, 0.0))
    monkeypatch.setattr(benchmark.psutil, "cpu_count", lambda: 8)
    notes = Notes()
    bench(tiny_checkpoint, [tmp_path / "other"], settings=SETTINGS, memory=False, progress=notes)
    differs, busy, _ = notes.said
    assert differs.startswith(f"{tmp_path / 'other'} has a vocabulary of 64, {tiny_checkpoint} of 128")
    assert busy.startswith("this machine is busy (load 7.0 on 8 cores)")


def test_a_dense_model_alone_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(RequestError, match="give a pruned model"):
        bench(tiny_checkpoint, [])


# ---- memory ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_peak_memory_of_a_fresh_process_holds_the_weights(tmp_path: Path) -> None:
    """Of two models that differ by known bytes of weights only, the peaks differ by about as much."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
    little = SpeedSettings(prompt_tokens=1, new_tokens=1, batch_sizes=(1,))  # the wide middle is held a token at a time
    peaks, weights = [], []
    for name, middle in (("small", 64), ("large", 100_000)):
        model = LlamaForCausalLM(LlamaConfig(**config, intermediate_size=middle))
        model.save_pretrained(tmp_path / name)
        weights.append(sum(parameter.nbytes for parameter in model.parameters()))
        peaks.append(footprint.peak_memory(tmp_path / name, little, dtype="auto"))
    assert weights[1] - weights[0] > 150_000_000
    assert peaks[1] - peaks[0] == pytest.approx(weights[1] - weights[0], rel=0.1)


@pytest.mark.usefixtures("fake_clock")
def test_a_memory_that_cannot_be_measured_is_said_and_left_open(
    tiny_checkpoint: Path, cut: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "peak_memory", lambda source, *_, **__: 7 if source == str(cut) else None)
    notes = Notes()
    record = bench(tiny_checkpoint, [cut], settings=SETTINGS, progress=notes)
    assert [about["peak_memory_bytes"] for about in record["models"]] == [None, 7]
    assert notes.said[-1].startswith(f"the memory of {tiny_checkpoint} could not be measured")
