"""DeepSpeed's ZeRO in two processes (gloo, on the CPU), against one process with the same global batch.

DeepSpeed is no requirement of secateur's, and where the tests usually run it is not installed: `pip install deepspeed`. On a CPU
it compiles a small extension when it is first used, for which a compiler has to be there.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from launching import agreement, launched
from phases import ZERO, slug

pytest.importorskip("deepspeed", reason="ZeRO needs deepspeed: pip install deepspeed")

pytestmark = pytest.mark.slow

ROUNDING = 1e-6
"""Relative, of a weight's norm; without clipping, `recover: full, clipped` would be off by forty times as much."""


def run(inputs: Path, out: Path, processes: int, zero: int | None, *phases: str) -> Path:
    out.mkdir()
    done = launched("phases.py", "plain", str(inputs), str(out), *phases, processes=processes, zero=zero)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def one_process(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(inputs, tmp_path_factory.mktemp("one") / "out", 1, None, *ZERO)


@pytest.mark.parametrize(("stage", "processes"), [(1, 2), (2, 2), (2, 1)])
def test_zero_leaves_the_plan_of_one_process_and_its_weights_to_rounding(
    one_process: Path, inputs: Path, tmp_path: Path, stage: int, processes: int
) -> None:
    found = run(inputs, tmp_path / "zero", processes, stage, *ZERO)
    for phase, apart in agreement(one_process, found, [slug(phase) for phase in ZERO]).items():
        assert apart["same_plan"], phase
        assert apart["same_best_step"], phase
        assert apart["measured"] < ROUNDING, phase
        assert apart["weights"] < ROUNDING, phase


def tuned(
    inputs: Path, out: Path, when: str, *more: str, zero: int | None = 2, train: str = "full"
) -> subprocess.CompletedProcess[str]:
    options = [f"--train={train}", "--max-steps=4", "--batch-size=4", "--drop=2", "--checkpoint-minutes=0", *more]
    words = ["tune", str(inputs / "checkpoint"), f"--data={inputs / 'sums.jsonl'}", f"--out={out}", *options]
    return launched("dying.py", "plain", "1", when, "killed", *words, processes=2, zero=zero)


@pytest.mark.parametrize("train", ["full", "lora"])
def test_a_training_that_was_killed_goes_on_to_the_bytes_of_the_undisturbed(
    inputs: Path, tmp_path: Path, train: str
) -> None:
    by = ["--method=shortgpt", *(["--merge-adapters"] if train == "lora" else [])]
    undisturbed = tuned(inputs, tmp_path / "undisturbed", "never", *by, train=train)
    assert undisturbed.returncode == 0, undisturbed.stderr[-3000:]
    assert tuned(inputs, tmp_path / "out", "checkpoint 2", *by, train=train).returncode != 0
    without = tuned(inputs, tmp_path / "out", "never", "--resume", *by, zero=None, train=train)
    assert "had another zero stage (" in without.stderr
    resumed = tuned(inputs, tmp_path / "out", "never", "--resume", *by, train=train)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    one, other = ((tmp_path / out / "model.safetensors").read_bytes() for out in ("undisturbed", "out"))
    assert one == other


def test_a_training_that_was_over_is_taken_up_as_it_was(inputs: Path, tmp_path: Path) -> None:
    def pruned(out: str, when: str, *more: str) -> subprocess.CompletedProcess[str]:
        options = [
            f"--data={inputs / 'train.txt'}",
            "--sequence-length=32",
            "--num-sequences=8",
            "--num-eval-sequences=2",
        ]
        options += ["--recover=full", "--method=shortgpt", "--drop=2", "--precision=bf16", *more]
        words = ["prune", str(inputs / "checkpoint"), f"--out={tmp_path / out}", *options]
        return launched("dying.py", "plain", "0", when, "error", *words, processes=2, zero=1)

    undisturbed = pruned("undisturbed", "never")
    assert undisturbed.returncode == 0, undisturbed.stderr[-3000:]
    assert pruned("out", "cut and prove").returncode != 0
    resumed = pruned("out", "never", "--resume")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    one, other = ((tmp_path / out / "model.safetensors").read_bytes() for out in ("undisturbed", "out"))
    assert one == other


def test_what_deepspeed_cannot_do_is_refused_in_one_line_before_anything_is_loaded(
    inputs: Path, tmp_path: Path
) -> None:
    done = tuned(inputs, tmp_path / "out", "never", "--method=gradpruner")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "gradpruner reads the gradients of a training, which DeepSpeed does not show" in lines[0]
    assert not list(tmp_path.iterdir())


@pytest.fixture
def deepspeeds_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration of DeepSpeed's own that says little, and the words by which accelerate's launcher names it."""
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2}, "gradient_accumulation_steps": "auto"}))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))
    return file


@pytest.mark.usefixtures("deepspeeds_file")
def test_what_a_file_of_deepspeeds_own_leaves_open_is_as_the_options_say(
    one_process: Path, inputs: Path, tmp_path: Path
) -> None:
    phase = "recover: full, clipped"
    found = run(inputs, tmp_path / "zero", 2, None, phase)
    assert agreement(one_process, found, [slug(phase)])[slug(phase)]["weights"] < ROUNDING


def test_a_configuration_that_contradicts_the_training_is_refused_before_the_layers_are_chosen(
    inputs: Path, tmp_path: Path, deepspeeds_file: Path
) -> None:
    deepspeeds_file.write_text(json.dumps({**json.loads(deepspeeds_file.read_text()), "gradient_clipping": 0.5}))
    options = [f"--data={inputs / 'sums.jsonl'}", f"--out={tmp_path / 'out'}", "--drop=2", "--method=shortgpt"]
    words = ["tune", str(inputs / "checkpoint"), *options]
    done = launched("dying.py", "plain", "1", "never", "error", *words, processes=2)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "(ds gradient_clipping=0.5 vs hf max_grad_norm=1.0); say 'auto' there" in lines[0]
    assert "choose" not in done.stderr
