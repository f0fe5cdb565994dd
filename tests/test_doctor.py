"""What `secateur doctor` says, held to what is there."""

from __future__ import annotations

import importlib.util
import json
from importlib.metadata import version

import huggingface_hub
import pytest
import torch

from secateur import doctor
from secateur.cli import main


def found(**options: object) -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examine(**options)}


def test_versions_and_threads_are_those_that_run_here() -> None:
    findings = found(online=False)
    assert findings["torch"].says == version("torch")
    assert findings["transformers"].state == "ok"
    if not torch.cuda.is_available():
        assert findings["devices"].says.startswith(f"{torch.get_num_threads()} CPU threads")


def test_a_package_that_is_not_there_is_missing_with_what_it_is_for_and_how_it_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else real(name))
    lm_eval = found(online=False)["lm-eval"]
    assert lm_eval == doctor.Finding("lm-eval", "missing", "for eval --tasks: pip install 'secateur[eval]'")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_what_a_training_can_report_to_is_looked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    for there in (False, True):
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda asked: (there or None) if asked == name else real(asked),  # noqa: B023
        )
        finding = found(online=False)[name]
        assert finding.state == ("ok" if there else "missing")
        assert f"report_to {name}" in finding.says
        assert (f"pip install {name}" in finding.says) != there


@pytest.mark.parametrize(
    ("offline", "fails", "state", "says"),
    [
        (True, False, "warning", "offline by HF_HUB_OFFLINE"),
        (False, True, "warning", "does not answer (no route): give local checkpoints"),
        (False, False, "ok", "answers; a token is set"),
    ],
)
def test_the_hub_is_asked_unless_offline(
    offline: bool, fails: bool, state: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model_info(*_: object, **__: object) -> None:
        assert not offline
        if fails:
            raise OSError("no route")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secretsecret")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    hub = found()["hub"]
    assert (hub.state, says in hub.says) == (state, True)
    assert "hf_secret" not in str(hub)


def test_the_command_prints_a_row_a_finding_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--no-network"]) == 0
    printed = capsys.readouterr().out
    assert all(finding.what in printed for finding in doctor.examine(online=False))
    assert main(["doctor", "--no-network", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [finding["what"] for finding in findings] == [finding.what for finding in doctor.examine(online=False)]
