"""Cells: what they hold, that they are made once, and that a run that was killed ends like one that was not."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from secateur.compare import workbench
from secateur.compare.results import Results
from secateur.compare.run import compare
from secateur.data import calibration_and_held_out
from secateur.decoder import Decoder
from secateur.errors import OutputError, PlanError, RequestError
from secateur.evaluation.perplexity import perplexity
from secateur.loading import load_model, load_tokenizer
from secateur.methods import METHODS, Run
from secateur.pipeline import prune
from secateur.request import Target, TextSettings

ELDER = {"method": "elder", "title": "ELDeR", "settings": {"joint_steps": 2, "steps": 2, "shortlist": 2}}
GRADPRUNER = {"method": "gradpruner", "settings": {"scoring_steps": 3}}


def dense() -> Any:
    return load_model(os.environ["MODEL"])


def texts(checkpoint: Path, text_file: Path, seed: int = 0) -> Any:
    return calibration_and_held_out(
        str(text_file), load_tokenizer(checkpoint), sequence_length=32, num_sequences=8, num_eval_sequences=4,
        batch_size=4, seed=seed,
    )  # fmt: skip


def cell(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "cells" / f"tiny-llama--{name}.json").read_text())
    return found


def files(out: Path) -> dict[str, Any]:
    """Every file but locks and the log, without timings."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if key != "timings"}
        return value

    found = [
        file for file in out.rglob("*") if file.is_file() and file.parent.name != "locks" and file.name != "run.log"
    ]
    return {
        str(file.relative_to(out)): plain(json.loads(file.read_text())) if file.suffix == ".json" else file.read_text()
        for file in found
    }


# ---- what a cell holds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "name"), [(ELDER, "elder"), (GRADPRUNER, "gradpruner"), ({"method": "laco"}, "laco")]
)
def test_a_cell_has_the_layers_and_the_perplexity_of_the_checkpoint_that_prune_writes(
    config: Any, tmp_path: Path, tiny_checkpoint: Path, text_file: Path, choice: dict[str, Any], name: str
) -> None:
    compare(config(methods=[choice], drops=[2], seeds=[3]), tmp_path / "out")
    text = TextSettings(data=str(text_file), sequence_length=32, num_sequences=8, num_eval_sequences=4)
    method = METHODS[choice["method"]](**choice.get("settings", {}))
    pruned = prune(
        tiny_checkpoint, method=method, text=text, target=Target(drop=2), out=tmp_path / "checkpoint", seed=3, prompts=(),
        speed=False,
    )  # fmt: skip
    made = cell(tmp_path / "out", f"{name}--drop2--none--seed3")
    assert made["dropped"] == list(pruned.plan.dropped)
    for which in ("dense", "pruned"):
        for key in ("perplexity", "nll_stderr", "num_parameters", "num_layers"):
            assert made["metrics"][which][key] == pytest.approx(pruned.record["metrics"][which][key], rel=1e-6), key
    assert made["tokens"]["trained_before_cut"] == (2 * 2 * 32 if name == "elder" else 0)


def test_a_cell_without_training_has_the_perplexity_of_the_dense_model_with_its_layers_bypassed(
    config: Any, tmp_path: Path, tiny_checkpoint: Path, text_file: Path
) -> None:
    compare(config(methods=["sleb"], drops=[3]), tmp_path / "out")
    made = cell(tmp_path / "out", "sleb--drop3--none--seed0")
    data, held_out = texts(tiny_checkpoint, text_file)
    decoder = Decoder(dense())
    with decoder.bypass(made["dropped"]):
        expected = perplexity(decoder.model, held_out)
    metrics = made["metrics"]["pruned"]
    assert metrics["perplexity"] == pytest.approx(expected.perplexity, rel=1e-6)
    assert metrics["nll_stderr"] == pytest.approx(expected.stderr, rel=1e-6)
    assert made["data"]["calibration"]["fingerprint"] == data.fingerprint
    assert made["tokens"]["choose"] == METHODS["sleb"]().cost(6, 3, data).choose_tokens
    per_layer = sum(weight.numel() for weight in dense().model.layers[0].parameters())
    assert made["metrics"]["dense"]["num_parameters"] - metrics["num_parameters"] == 3 * per_layer


def test_the_prefix_of_one_nested_choice_is_what_each_number_of_layers_alone_gives(
    config: Any, tmp_path: Path, tiny_checkpoint: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drops: list[tuple[str, int]] = []
    for name in ("sleb", "angular"):
        plan = METHODS[name].plan

        def counted(self: Any, *args: Any, plan: Any = plan, **given: Any) -> Any:
            drops.append((self.name, given["drop"]))
            return plan(self, *args, **given)

        monkeypatch.setattr(METHODS[name], "plan", counted)
    compare(config(methods=["sleb", "angular"], drops=[1, 2, 4]), tmp_path / "out")
    assert drops == [("sleb", 4), ("angular", 1), ("angular", 2), ("angular", 4)]
    data, _ = texts(tiny_checkpoint, text_file)
    for name in ("sleb", "angular"):
        for drop in (1, 2, 4):
            direct = METHODS[name]().plan(Decoder(dense()), data, drop=drop, run=Run())
            assert cell(tmp_path / "out", f"{name}--drop{drop}--none--seed0")["order"] == list(direct.order)


def test_recovery_trains_on_the_tokens_asked_for_and_leaves_the_dense_model_as_it_was(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ["lora", "partial", "full", "distill"]
    held: list[Any] = []
    make = workbench.Workbench.make

    def watched(self: Any, *args: Any, **given: Any) -> Any:
        result = make(self, *args, **given)
        held.append({name: weight.clone() for name, weight in self._dense[1].model.state_dict().items()})
        assert all(weight.requires_grad for weight in self._dense[1].model.parameters())
        return result

    monkeypatch.setattr(workbench.Workbench, "make", watched)
    recovery = ["none", *({"kind": kind, "tokens": 130, "rate": 0.01} for kind in kinds)]
    compare(config(recovery=recovery), tmp_path / "out")
    plain = cell(tmp_path / "out", "magnitude--drop2--none--seed0")
    for kind in kinds:
        made = cell(tmp_path / "out", f"magnitude--drop2--{kind}--seed0")
        assert made["tokens"]["trained_after_cut"] == 128  # four windows of 32, never more than asked for
        assert made["dropped"] == plain["dropped"]
        assert made["metrics"]["dense"] == plain["metrics"]["dense"]
        assert made["metrics"]["pruned"]["perplexity"] < plain["metrics"]["pruned"]["perplexity"]
    for state in held:
        for name, weight in dense().state_dict().items():
            assert torch.equal(state[name], weight)


def test_tasks_and_speed_are_measured_of_both_models_and_added_to_cells_that_lack_them(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tasks:
        @staticmethod
        def load(names: Any, *, limit: Any, include_path: Any) -> None:
            assert (names, limit, include_path) == (("a", "both"), 5, None)

    def scores(model: Any, _: Any, tasks: Any, *, limit: Any, include_path: Any) -> Any:
        assert (limit, include_path) == (5, None)
        parts = [part for task in tasks for part in (("b", "c") if task == "both" else task)]
        return [SimpleNamespace(task=part, value=Decoder(model).num_layers / 10, stderr=0.01) for part in parts]

    harness = SimpleNamespace(HarnessTasks=Tasks, harness_scores=scores)
    monkeypatch.setitem(sys.modules, "secateur.evaluation.harness", harness)
    monkeypatch.setattr(workbench, "speed_ratios", lambda *_: {"prefill": 1.5, "decode": 1.25})
    out = tmp_path / "out"
    compare(config(drops=[1, 2]), out)
    assert cell(out, "magnitude--drop2--none--seed0")["metrics"]["pruned"]["tasks"] == {}
    first = files(out)["cells/tiny-llama--magnitude--drop1--none--seed0.json"]
    asked = config(drops=[1, 2], task_limit=5, blocks=[{}, {"drops": [2], "tasks": ["a", "both"], "speed": True}])
    assert compare(asked, out, dry_run=True).states == {
        "tiny-llama--magnitude--drop1--none--seed0": "done", "tiny-llama--magnitude--drop2--none--seed0": "left",
    }  # fmt: skip
    assert compare(asked, out).count("done") == 2
    made = cell(out, "magnitude--drop2--none--seed0")
    assert made["metrics"]["pruned"]["tasks"] == {task: {"value": 0.4, "stderr": 0.01} for task in "abc"}
    assert made["metrics"]["dense"]["tasks"] == {task: {"value": 0.6, "stderr": 0.01} for task in "abc"}
    assert made["timings"]["speed"] == {"prefill": 1.5, "decode": 1.25}
    assert files(out)["cells/tiny-llama--magnitude--drop1--none--seed0.json"] == first
    assert (
        "| `magnitude` | 2 | none | 40.0 ± 0.6 | 40.0 ± 1.0 | 40.0 ± 1.0 | 40.0 ± 1.0 |"
        in (out / "table.md").read_text()
    )


# ---- done, failed, changed -------------------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again_and_only_leaves_other_cells_alone(config: Any, tmp_path: Path) -> None:
    out, asked = tmp_path / "out", config(methods=["magnitude", "random"], drops=[1, 2])
    assert compare(asked, out, dry_run=True).count("left") == 4
    assert not out.exists()
    first = compare(asked, out, only="*--random--*")
    assert set(first.states) == {f"tiny-llama--random--drop{drop}--none--seed0" for drop in (1, 2)}
    assert first.count("done") == 2
    assert sorted(file.name for file in (out / "cells").iterdir()) == sorted(f"{name}.json" for name in first.states)
    times = {file.name: file.stat().st_mtime_ns for file in (out / "cells").iterdir()}
    assert compare(asked, out).count("done") == 4
    assert {name: (out / "cells" / name).stat().st_mtime_ns for name in times} == times


def test_a_failed_cell_is_written_down_does_not_stop_the_rest_and_is_tried_again(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = tmp_path / "out", config(methods=["sleb", "magnitude"], drops=[1, 2])
    plan = METHODS["sleb"].plan

    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("two\nlines")

    monkeypatch.setattr(METHODS["sleb"], "plan", broken)
    outcome = compare(asked, out)
    assert outcome.errors == {
        f"tiny-llama--sleb--drop{drop}--none--seed0": "ValueError: two lines" for drop in (1, 2)
    }  # fmt: skip
    assert outcome.count("done") == 2
    failure = json.loads((out / "cells" / "tiny-llama--sleb--drop1--none--seed0.failed.json").read_text())
    assert failure["error"] == "ValueError: two lines"
    assert "ValueError" in failure["traceback"]
    assert compare(asked, out, dry_run=True).errors == outcome.errors
    monkeypatch.setattr(METHODS["sleb"], "plan", plan)
    assert compare(asked, out).count("done") == 4
    assert not list((out / "cells").glob("*.failed.json"))


def test_cells_of_other_settings_or_another_text_are_refused_or_made_anew(
    config: Any, tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    compare(config(), out)
    before = files(out)
    changed = config(methods=[{"method": "magnitude", "settings": {"norm": "l2"}}])
    with pytest.raises(
        RequestError, match=r"magnitude--drop2--none--seed0 was made .*options.norm: 'l2', was 'l1'.*--remake"
    ):
        compare(changed, out)
    assert files(out) == before
    assert compare(changed, out, dry_run=True, remake=True).count("left") == 1
    assert compare(changed, out, remake=True).count("done") == 1
    assert cell(out, "magnitude--drop2--none--seed0")["request"]["options"]["norm"] == "l2"
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text().replace("Sentence", "A sentence"))
    monkeypatch.setenv("TEXT", str(other))
    with pytest.raises(RequestError, match=r"fingerprints\.calibration"):
        compare(changed, out)


def test_wrong_requests_are_refused_before_anything_is_made(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(PlanError, match=r"cannot drop 6 of 6 layers; choose 1\.\.5"):
        compare(config(drops=[2, 6]), out)
    with pytest.raises(RequestError, match=r"^\$\{MODEL\} has a context of 512 tokens, fewer than 513 .*choose 512 or"):
        compare(config(text={"data": "${TEXT}", "sequence_length": 513}), out, dry_run=True)
    said = r"^tokens=31 is less than one window of 32 tokens; choose 32 or more, or shorter windows$"
    for dry_run in (True, False):
        with pytest.raises(RequestError, match=said):
            compare(config(recovery=["none", {"kind": "lora", "tokens": 31}]), out, dry_run=dry_run)
    monkeypatch.setitem(sys.modules, "secateur.evaluation.harness", None)
    with pytest.raises(RequestError, match=r"tasks cannot be measured here .*; leave 'tasks' out"):
        compare(config(tasks=["arc"]), out)
    with pytest.raises(RequestError, match="no cell is called"):
        compare(config(), out, only="x")
    with pytest.raises(RequestError, match="--max-minutes must be 0 or more, not -1"):
        compare(config(), out, max_minutes=-1)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not empty"):
        compare(config(), out)
    assert [file.name for file in out.iterdir()] == ["mine.txt"]


def test_no_cell_is_started_that_would_not_be_done_in_time(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = tmp_path / "out", config(methods=["magnitude", "random"], drops=[1, 2])
    assert compare(asked, out, max_minutes=0).count("left") == 4
    compare(asked, out, only="*--magnitude--drop1--*")
    path = out / "cells" / "tiny-llama--magnitude--drop1--none--seed0.json"
    made = json.loads(path.read_text())
    made["timings"]["seconds"] = {"choose": 100.0, "load": 20.0}
    path.write_text(json.dumps(made))
    outcome = compare(asked, out, max_minutes=1.9)
    assert outcome.count("left") == 3
    assert outcome.seconds_left == pytest.approx(360)
    assert compare(asked, out, max_minutes=2.1).count("done") == 4


def test_the_time_left_is_judged_by_cells_of_the_same_method_and_recovery(config: Any, tmp_path: Path) -> None:
    out, asked = tmp_path / "out", config(methods=["magnitude", "random"], drops=[1, 2])
    compare(asked, out, only="*--drop1--*")
    for name, seconds in (("magnitude", 10.0), ("random", 3.0)):
        path = out / "cells" / f"tiny-llama--{name}--drop1--none--seed0.json"
        made = json.loads(path.read_text())
        made["timings"]["seconds"] = {"all": seconds}
        path.write_text(json.dumps(made))
    assert compare(asked, out, dry_run=True).seconds_left == pytest.approx(13)


# ---- killed, and several at once ---------------------------------------------------------------------------------------------

SLOW = {"method": "elder", "title": "slow", "settings": {"joint_steps": 1, "steps": 20, "shortlist": 1}}


def kill_at(words: str, path: Path, out: Path) -> None:
    """Run the command in a process of its own, and kill it when it says so."""
    process = subprocess.Popen(
        [sys.executable, "-m", "secateur", "compare", str(path), "--out", str(out)], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        assert any(words in line for line in process.stderr), "it ended before"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_files_of_an_undisturbed_run(config: Any, tmp_path: Path) -> None:
    lora = {"drops": [1], "methods": ["sleb"], "recovery": [{"kind": "lora", "tokens": 64}]}
    asked = config(methods=[GRADPRUNER, SLOW], drops=[1, 2], blocks=[{}, lora])
    compare(asked, tmp_path / "undisturbed")
    undisturbed = files(tmp_path / "undisturbed")
    for place, words, done in (
        ("within", "training towards the removal …", 1), ("between", "gradpruner--drop2--none--seed0: perplexity", 3),
    ):  # fmt: skip
        out = tmp_path / place
        kill_at(words, asked, out)
        assert len(list((out / "cells").glob("*.json"))) == done
        half = out / "cells" / ".tiny-llama--slow--drop2--none--seed0.json.abc"  # as if killed while it wrote
        half.write_text('{"half')
        assert compare(asked, out).count("done") == 5
        assert files(out).keys() == undisturbed.keys()
        for name, content in files(out).items():
            assert content == undisturbed[name], name


def test_a_cell_that_somebody_else_holds_is_left_to_them(config: Any, tmp_path: Path) -> None:
    out, asked = tmp_path / "out", config(methods=["magnitude", "random"])
    held, free = (f"tiny-llama--{name}--drop2--none--seed0" for name in ("magnitude", "random"))
    with Results(out).claim(held) as mine:
        assert mine
        assert compare(asked, out).states == {held: "running", free: "done"}
    assert compare(asked, out, dry_run=True).states == {held: "left", free: "done"}


def test_an_interrupt_says_how_to_go_on_and_leaves_no_half_cell(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(METHODS["random"], "plan", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"what is done is kept in .*; run the same command to go on"):
        compare(config(methods=["magnitude", "random"]), tmp_path / "out")
    assert [file.name for file in (tmp_path / "out" / "cells").iterdir()] == [
        "tiny-llama--magnitude--drop2--none--seed0.json"
    ]


def test_a_perplexity_that_is_not_finite_is_null_in_its_file_and_infinite_in_the_table(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = workbench.quality

    def broken(model: Any, *args: Any) -> Any:
        found = measure(model, *args)
        if found["num_layers"] < 6:
            found |= {"perplexity": math.inf, "nll": math.nan, "nll_stderr": math.nan}
        return found

    monkeypatch.setattr(workbench, "quality", broken)
    compare(config(), tmp_path / "out")
    assert cell(tmp_path / "out", "magnitude--drop2--none--seed0")["metrics"]["pruned"]["perplexity"] is None
    assert "| `magnitude` | ∞ |" in (tmp_path / "out" / "table.md").read_text()
