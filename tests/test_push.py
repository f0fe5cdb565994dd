"""`secateur push` as a user types it, with huggingface_hub's real client, to a hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from made_up_hub import TOKEN, Hub, cut, refused

THERE = "/srv/models/somebody"
"""A place on this machine, which nobody is told of."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with an adapter, and all that tells of the run."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("finished") / "small")
    (folder / "adapter").mkdir()
    save_file({"lora_A.weight": torch.ones(2, 32)}, folder / "adapter" / "adapter_model.safetensors")
    (folder / "adapter" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(folder), "r": 2})
    )
    told = {"model": {"id": THERE}, "command": f"secateur prune {THERE} --out {folder}", "out": str(folder)}
    (folder / "secateur").mkdir()
    for name in ("record.json", "request.json", "plan.json"):
        (folder / "secateur" / name).write_text(json.dumps(told))
    for name in ("report.html", "run.log"):
        (folder / "secateur" / name).write_text(f"of {THERE}, in {folder}\n")
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: owner/dense\n---\n# small\n")
    return folder


def started(hub: Hub, folder: Path, *words: str, token: str | None = TOKEN) -> subprocess.Popen[str]:
    """`secateur push FOLDER` with these words, for a user without settings, on a machine that knows this hub alone."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_HOME": str(folder.parent / "nobody's"), **({} if token is None else {"HF_TOKEN": token})}
    return subprocess.Popen(
        [sys.executable, "-m", "secateur", "push", str(folder), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def pushed(hub: Hub, folder: Path, *words: str, token: str | None = TOKEN) -> tuple[int, str, str]:
    """The exit code, what is on standard output, and what is on standard error."""
    with started(hub, folder, *words, token=token) as process:
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()  # or the end would wait for it
    return process.returncode, out, err


def files_of(folder: Path) -> dict[str, bytes]:
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def test_what_arrives_is_the_checkpoint_byte_for_byte_in_one_commit_and_nobody_is_told_of_this_machine(
    hub: Hub, checkpoint: Path
) -> None:
    before = files_of(checkpoint)
    code, out, err = pushed(hub, checkpoint, "ada/small", "--private")
    assert (code, out) == (0, f"pushed to {hub.address}/ada/small\n"), err
    (repository,) = hub.repositories.values()
    assert repository.private
    assert len(repository.branches["main"]) == 2  # the hub's own, and ours
    arrived = {name: content for name, content in repository.files.items() if name != ".gitattributes"}
    assert {*arrived} == {*before}
    changed = {name for name, content in arrived.items() if content != before[name]}
    told = {f"secateur/{name}" for name in ("record.json", "request.json", "plan.json", "report.html", "run.log")}
    assert changed == {*told, "adapter/adapter_config.json"}
    for secret in (TOKEN, THERE, str(checkpoint.parent)):
        assert not [name for name, content in arrived.items() if secret.encode() in content]
    assert json.loads(arrived["secateur/record.json"])["model"]["id"] == "somebody"
    assert json.loads(arrived["adapter/adapter_config.json"])["base_model_name_or_path"] == "ada/small"
    assert files_of(checkpoint) == before


def test_what_is_there_is_not_sent_again_and_an_earlier_versions_weights_go(hub: Hub, checkpoint: Path) -> None:
    assert pushed(hub, checkpoint, "ada/small", "--quiet")[::2] == (0, "")
    branch = hub.repositories["ada/small"].branches["main"]
    former = {
        "model-00001-of-00002.safetensors": b"a",
        "model.safetensors.index.json": b"{}",
        "pytorch_model.bin": b"b",
    }
    branch.append({**branch[-1], **former, "notes.md": b"the user's own"})
    hub.asked.clear()
    assert pushed(hub, checkpoint, "ada/small", "--quiet")[::2] == (0, "")  # it is there: 409, which is no error
    assert {*branch[-1]} == {*files_of(checkpoint), ".gitattributes", "notes.md"}
    assert len(branch) == 4
    assert not [request for request in hub.asked if request.startswith("PUT")]
    assert pushed(hub, checkpoint, "ada/small", "--quiet")[::2] == (0, "")
    assert len(branch) == 4  # nothing has changed


@pytest.mark.parametrize(
    ("fault", "token", "repo_id", "code", "line"),
    [
        ({}, None, "ada/x", 2, "cannot push to ada/x: nobody is logged in; run hf auth login, or set HF_TOKEN"),
        ({}, "hf_old", "ada/x", 2, "(Invalid user token. The token from HF_TOKEN environment variable is invalid."),
        ({}, TOKEN, "bronte/x", 2, "ada is no member of bronte; choose one of ada, looms"),
        (
            {"POST /api/repos/create": [refused(403, "You don't have the rights to create a model under looms")]},
            TOKEN, "looms/x", 1,
            "pushing to looms/x failed (403: You don't have the rights to create a model under looms); the checkpoint in "
            "{folder} is finished and was left as it is; run hf auth login with a token that may write to looms/x, then push "
            "it again: secateur push {folder} looms/x",
        ),
        (
            {"/commit/": [refused(500, "Internal Error - We're working hard to fix this as soon as possible!")]},
            TOKEN, "ada/x", 1,
            "pushing to ada/x failed (500: Internal Error - We're working hard to fix this as soon as possible!); the "
            "checkpoint in {folder} is finished and was left as it is; push it again: secateur push {folder} ada/x",
        ),
    ],
    ids=["nobody", "a token that is none", "another's", "no right", "the hub is ill"],
)  # fmt: skip
def test_what_the_hub_refuses_is_said_in_one_line_with_the_remedy(
    fault: dict[str, list[Callable[[Any], None]]], token: str | None, repo_id: str, code: int, line: str, hub: Hub,
    checkpoint: Path,
) -> None:  # fmt: skip
    hub.faults = fault
    ended, out, err = pushed(hub, checkpoint, repo_id, "--quiet", token=token)
    assert (ended, out, len(err.splitlines())) == (code, "", 1), err
    assert err.startswith("error: ")
    assert line.format(folder=checkpoint) in err
    assert not any(len(repository.branches["main"]) > 1 for repository in hub.repositories.values())


def test_a_connection_that_breaks_is_tried_again_and_after_a_failed_push_no_large_file_is_sent_twice(
    hub: Hub, checkpoint: Path
) -> None:
    hub.faults = {"PUT": [cut], "/commit/": [cut]}
    code, out, err = pushed(hub, checkpoint, "ada/small", "--quiet")
    assert (code, out, len(err.splitlines())) == (1, "", 1), err
    assert f"the checkpoint in {checkpoint} is finished and was left as it is; push it again: secateur push" in err
    weights = [content for name, content in files_of(checkpoint).items() if name.endswith(".safetensors")]
    assert {*hub.large} == {hashlib.sha256(content).hexdigest() for content in weights}
    branch = hub.repositories["ada/small"].branches["main"]
    assert len(branch) == 1  # nothing of it is there
    hub.asked.clear()
    assert pushed(hub, checkpoint, "ada/small", "--quiet")[0] == 0
    assert not [request for request in hub.asked if request.startswith("PUT")]
    assert len(branch) == 2
    assert {name: branch[-1][name] for name in ("model.safetensors", "config.json")} == {
        name: (checkpoint / name).read_bytes() for name in ("model.safetensors", "config.json")
    }


def test_quiet_says_the_same_on_standard_output_and_nothing_beside_it(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "small", ignore=shutil.ignore_patterns("README.md"))
    _, said, beside = pushed(hub, folder, "ada/small")
    assert f"there is no model card in {folder}" in beside
    assert f"pushing {folder} to ada/small" in beside
    assert pushed(hub, folder, "ada/small", "--quiet") == (0, said, "")
    code, shown, beside = pushed(hub, folder, "ada/small", "-q", "--json")
    assert (code, json.loads(shown), beside) == (0, {"pushed": f"{hub.address}/ada/small"}, "")


def test_an_interrupt_in_the_middle_of_an_upload_leaves_nothing_there_and_says_how_to_go_on(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "small", ignore=shutil.ignore_patterns("adapter"))
    hub.faults = {"PUT": [lambda _: time.sleep(60)]}
    with started(hub, folder, "ada/small", "--quiet") as process:
        until = time.monotonic() + 60
        while not any(request.startswith("PUT") for request in hub.asked):
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, err
    assert f"push it again: secateur push {folder} ada/small" in err
    assert len(hub.repositories["ada/small"].branches["main"]) == 1
