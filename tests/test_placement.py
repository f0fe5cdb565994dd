"""Models that do not fit one device: the same figures with layers on the disk, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.assessment import evaluate
from secateur.cli import main
from secateur.cli.words import parse_memory
from secateur.errors import RequestError
from secateur.loading import Placement, is_offloaded, load_model
from secateur.pipeline import TextSettings, score

ROOM = "100KB"
"""For some of the 260 kB of the tiny model's weights; the other layers go to the disk."""


@pytest.fixture
def text(tmp_path: Path) -> TextSettings:
    (tmp_path / "text.txt").write_text("".join(f"Sentence {n} is about {n * n}.\n\n" for n in range(300)))
    return TextSettings(
        data=str(tmp_path / "text.txt"), sequence_length=32, num_sequences=6, num_eval_sequences=4, batch_size=2
    )


@pytest.fixture
def on_disk(tmp_path: Path) -> Placement:
    return Placement(max_memory={"cpu": ROOM}, offload_folder=tmp_path / "offload")


def test_layers_are_on_the_disk(tiny_checkpoint: Path, on_disk: Placement) -> None:
    assert is_offloaded(load_model(tiny_checkpoint, placement=on_disk))
    assert not is_offloaded(load_model(tiny_checkpoint))


@pytest.mark.parametrize("name", ["shortgpt", "angular", "sleb", "replaceme"])
def test_scores_with_layers_on_the_disk_are_those_without(
    tiny_checkpoint: Path, text: TextSettings, on_disk: Placement, name: str
) -> None:
    plain = score(tiny_checkpoint, method=name, text=text, drop=2)
    offloaded = score(tiny_checkpoint, method=name, text=text, drop=2, placement=on_disk)
    assert offloaded.order == plain.order
    assert list(offloaded.scores or ()) == pytest.approx(list(plain.scores or ()), rel=1e-9, nan_ok=True)


def test_perplexity_with_layers_on_the_disk_is_that_without(
    tiny_checkpoint: Path, text: TextSettings, on_disk: Placement
) -> None:
    plain, offloaded = (
        evaluate([tiny_checkpoint], data=text.data, sequence_length=32, num_sequences=4, placement=placement)[0]
        for placement in (None, on_disk)
    )
    assert offloaded["perplexity"] == pytest.approx(plain["perplexity"], rel=1e-9)
    assert offloaded["num_parameters"] == plain["num_parameters"]


@pytest.mark.parametrize("name", ["magnitude", "elder", "gradpruner", "shortened-taylor", "laco"])
def test_methods_that_look_at_weights_or_gradients_are_refused_where_layers_are_offloaded(
    tiny_checkpoint: Path, text: TextSettings, on_disk: Placement, name: str
) -> None:
    with pytest.raises(RequestError, match=rf"{name} looks at weights or gradients.*choose one of shortgpt"):
        score(tiny_checkpoint, method=name, text=text, drop=2, placement=on_disk)


def test_options_of_placement_without_effect_are_refused(
    tiny_checkpoint: Path, text: TextSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(tiny_checkpoint), "--data", text.data, "--max-memory", "cpu=1GB"]) == 2
    assert "--max-memory has no effect without --device-map auto" in capsys.readouterr().err


def test_memory_is_read_by_device_or_refused_with_the_part_that_is_wrong() -> None:
    assert parse_memory("0=70GB, cpu=1.5 TiB", "--max-memory") == {0: "70GB", "cpu": "1.5TiB"}
    with pytest.raises(RequestError, match="'gpu0=1' is not part of one"):
        parse_memory("cpu=1GB,gpu0=1", "--max-memory")
