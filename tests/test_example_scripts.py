"""The examples: their cells run in order on a tiny model, and each notebook is its script with outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from secateur import PruningPlan
from secateur.training.lora import gradient_checkpointing_quietly

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ("elder", "gradpruner")
SMALL: dict[str, dict[str, Any]] = {
    "elder": {
        "SIZES": {"sequence_length": 32, "num_sequences": 4, "num_eval_sequences": 2},
        "SETTINGS": {"gate_sequences": 2, "joint_steps": 3, "shortlist": 1},
        "DROP": 2,
    },
    "gradpruner": {
        "SIZES": {"num_train": 32, "num_validation": 8, "num_test": 8},
        "TUNING": {"train": "full", "epochs": 1, "learning_rate": 1e-3},
        "DROP": 2,
    },
}
"""In place of what stands at the top of each."""


def cells_of_script(name: str) -> list[tuple[str, list[str], str]]:
    """(kind, tags, source) of each cell of a script in the percent format."""
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    cells = []
    for head, body in re.findall(r"^# %%([^\n]*)\n(.*?)(?=^# %%|\Z)", text, re.DOTALL | re.MULTILINE):
        kind, source = ("markdown" if "[markdown]" in head else "code"), body.strip()
        tags = json.loads(found.group(1)) if (found := re.search(r"tags=(\[.*?\])", head)) else []
        cells.append(
            (kind, tags, source.removeprefix('"""').removesuffix('"""').strip() if kind == "markdown" else source)
        )
    return cells


def notebook(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_has_the_cells_of_its_script(name: str) -> None:
    cells = [
        (cell["cell_type"], cell["metadata"].get("tags", []), "".join(cell["source"]))
        for cell in notebook(name)["cells"]
    ]
    assert cells == cells_of_script(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_was_run_once_from_top_to_bottom_without_an_error(name: str) -> None:
    code = [cell for cell in notebook(name)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}, "warnings are in the outputs"
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    assert "/home/" not in json.dumps(outputs)
    assert "/root/" not in json.dumps(outputs)


@pytest.fixture
def run(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a notebook's cells one after the other in an empty folder, on the tiny model and small sizes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("SECATEUR_SAMPLE_MODEL", str(tiny_checkpoint))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    pytest.importorskip("matplotlib", reason="needs the extra plots")

    def run(name: str) -> dict[str, Any]:
        names: dict[str, Any] = {}
        for number, cell in enumerate(notebook(name)["cells"]):
            if cell["cell_type"] == "code":
                with gradient_checkpointing_quietly():
                    exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), names)  # noqa: S102  our own
                if "parameters" in cell["metadata"].get("tags", []):
                    assert SMALL[name].keys() <= names.keys()
                    names |= SMALL[name]
        return names

    return run


def test_elder_leaves_the_pruned_model_and_says_what_each_stage_is_worth(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run("elder")
    model = AutoModelForCausalLM.from_pretrained(names["OUT"])
    assert model.config.num_hidden_layers == 4
    assert PruningPlan.load(names["OUT"] / "plan.json").dropped == names["plan"].dropped
    said = capsys.readouterr().out
    for name, result in names["found"].items():
        assert re.search(rf"{re.escape(name)}: perplexity +{result.perplexity:.2f}", said)
    assert (names["OUT"] / "weights.png").read_bytes().startswith(b"\x89PNG")


def test_gradpruner_leaves_a_proven_model_and_its_report(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = run("gradpruner")
    assert AutoModelForCausalLM.from_pretrained(names["OUT"]).config.num_hidden_layers == 4
    assert "accuracy" in (names["OUT"] / "secateur" / "report.html").read_text(encoding="utf-8")
    said = capsys.readouterr().out
    for name, metrics in names["record"]["metrics"].items():
        assert re.search(rf"{name}: {metrics['num_layers']} layers, .* {metrics['task']['value']:.3f}", said)
    assert (names["OUT"] / "scores.png").read_bytes().startswith(b"\x89PNG")
