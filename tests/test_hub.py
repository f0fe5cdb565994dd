"""Pushing to the hub, with a hub that is made up: what is refused before a run, what is uploaded, what a failure leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, constants
from huggingface_hub.errors import LocalTokenNotFoundError, RepositoryNotFoundError

from secateur import pipeline
from secateur.cli import main
from secateur.errors import RequestError
from secateur.hub import Upload, checked, not_told
from secateur.places import places_in, without_places

TOKEN = "hf_" + "aSecretThatMustStayOne"
PRUNE = ["--method=random", "--drop=2", "--sequence-length=32", "--num-sequences=8", "--num-eval-sequences=4"]


class MadeUpHub:
    """What `HfApi` is asked, and answers."""

    def __init__(self) -> None:
        self.me: dict[str, Any] = {"name": "ada", "orgs": [{"name": "looms"}]}
        self.repositories: dict[str, bool] = {}  # id → whether it is private
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error: BaseException | None = None
        self.files: list[str] = []

    def whoami(self) -> dict[str, Any]:
        if isinstance(self.me, Exception):
            raise self.me
        return self.me

    def model_info(self, repo_id: str) -> SimpleNamespace:
        if repo_id not in self.repositories:
            raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))
        return SimpleNamespace(private=self.repositories[repo_id])

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return f"https://hub.invalid/{repo_id}"

    def create_branch(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_branch", {"repo_id": repo_id, **options}))

    def list_repo_files(self, repo_id: str, **options: Any) -> list[str]:
        return self.files

    def create_commit(self, repo_id: str, operations: list[Any], **options: Any) -> None:
        self.calls.append(("create_commit", {"repo_id": repo_id, "operations": operations, **options}))
        if self.error is not None:
            raise self.error

    @property
    def sent(self) -> dict[str, bytes]:
        """File → content, in the commit."""
        operations = self.options_of("create_commit")["operations"]
        added = {each.path_in_repo: each.path_or_fileobj for each in operations if isinstance(each, CommitOperationAdd)}
        return {name: each if isinstance(each, bytes) else Path(each).read_bytes() for name, each in added.items()}

    @property
    def deleted(self) -> list[str]:
        """The files that the commit deletes."""
        operations = self.options_of("create_commit")["operations"]
        return [each.path_in_repo for each in operations if isinstance(each, CommitOperationDelete)]

    def options_of(self, name: str) -> dict[str, Any]:
        (options,) = [options for called, options in self.calls if called == name]
        return options


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> MadeUpHub:
    made_up = MadeUpHub()
    for name in ("whoami", "model_info", "create_repo", "create_branch", "list_repo_files", "create_commit"):
        monkeypatch.setattr(
            HfApi, name, lambda _, *words, name=name, **options: getattr(made_up, name)(*words, **options)
        )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return made_up


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"Sentence {n} says that {n} times {n} is {n * n}.\n\n" for n in range(200)))
    return str(path)


@pytest.fixture
def _nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded before the push was looked at")

    monkeypatch.setattr("secateur.text_workbench.load_model", loads)
    monkeypatch.setattr("secateur.tuning_request.load_model", loads)


@pytest.fixture
def _without_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pipeline.prune, "__kwdefaults__", {**pipeline.prune.__kwdefaults__, "speed": False, "prompts": ("a",)}
    )


def the_line(err: str) -> str:
    (line,) = [line for line in err.splitlines() if line.startswith(("error: ", "interrupted: "))]
    return line


# ---- before a run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["prune", "tune"])
@pytest.mark.parametrize(
    ("repo_id", "options", "line"),
    [
        ("a/b/c", [], "cannot push to 'a/b/c': Repo id must be in the form"),
        ("ada/a--b", [], "give owner/name"),
        ("brontë/x", [], "give owner/name"),
        ("bronte/x", [], "ada is no member of bronte; choose one of ada, looms"),
        ("ada/there", ["--private"], "ada/there is there and public; choose another id"),
    ],
)
@pytest.mark.usefixtures("_nothing_runs")
def test_what_cannot_be_pushed_to_is_refused_in_one_line_before_anything_is_loaded(
    command: str, repo_id: str, options: list[str], line: str, hub: MadeUpHub, tiny_checkpoint: Path, text: str,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    hub.repositories["ada/there"] = False
    out = tmp_path / "out"
    words = [command, str(tiny_checkpoint), "--data", text, "--drop=2", "--out", str(out)]
    assert main([*words, "--push-to-hub", repo_id, *options]) == 2
    assert line in the_line(capsys.readouterr().err)
    assert not out.exists()
    assert not hub.calls


@pytest.mark.usefixtures("_nothing_runs")
def test_private_without_a_push_is_refused(
    tiny_checkpoint: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", str(tiny_checkpoint), "--data", text, "--drop=2", "--out=x", "--private"]) == 2
    assert "--private has no effect without --push-to-hub; add that" in the_line(capsys.readouterr().err)


def test_offline_is_refused_with_what_to_do(hub: MadeUpHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        RequestError, match=r"HF_HUB_OFFLINE is set; unset it, or push .* later \(secateur push OUT REPO_ID\)"
    ):
        checked(Upload(repo_id="ada/x"))


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (LocalTokenNotFoundError("long advice"), "nobody is logged in; run hf auth login, or set HF_TOKEN"),
        (ConnectionError("no route\nto host"), r"does not say who you are \(no route to host\)"),
        ({"name": "ada", "auth": {"accessToken": {"role": "read"}}}, "the token of ada may only read"),
    ],
)
def test_who_may_not_push_is_told_what_to_do(answer: Any, line: str, hub: MadeUpHub) -> None:
    hub.me = answer
    with pytest.raises(RequestError, match=line) as caught:
        checked(Upload(repo_id="ada/x"))
    assert "\n" not in str(caught.value)


def test_a_bare_name_is_the_users_own_and_a_private_one_stays_private(hub: MadeUpHub) -> None:
    hub.repositories["ada/mine"] = True
    assert checked(Upload(repo_id="mine", private=True)).repo_id == "ada/mine"
    assert checked(Upload(repo_id="looms/new", private=True)).repo_id == "looms/new"


# ---- after it ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_without_speed")
def test_prune_pushes_the_proven_checkpoint_last_and_no_token_is_in_any_file(
    hub: MadeUpHub, tiny_checkpoint: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, out = shutil.copytree(tiny_checkpoint, tmp_path / "dense"), tmp_path / "out"
    (dense / "README.md").write_text("---\nlicense: other\nlicense_name: mine\n---\n# dense\n")
    (dense / "LICENSE.txt").write_text("do as you like")
    words = ["prune", str(dense), "--data", text, *PRUNE, "--out", str(out), "--json"]
    assert main([*words, "--push-to-hub=small", "--private"]) == 0
    captured = capsys.readouterr()
    told = ["record.json", "request.json", "plan.json", "report.html", "run.log"]
    assert [name for name, _ in hub.calls] == ["create_repo", "create_commit"]
    sent = hub.sent
    assert {f"secateur/{name}" for name in told} < {*sent}
    assert {*sent} == {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert not [name for name, content in sent.items() if str(tmp_path).encode() in content]
    theirs, ours = (
        json.loads(each) for each in (sent["secateur/record.json"], (out / "secateur/record.json").read_bytes())
    )
    assert (theirs["model"]["id"], theirs["data"]["spec"]) == ("dense", "text.txt")
    assert (ours["model"]["id"], ours["data"]["spec"]) == (str(dense), text)
    assert theirs["metrics"] == ours["metrics"]
    assert hub.options_of("create_repo") == {"repo_id": "ada/small", "private": True, "exist_ok": True}
    committed = hub.options_of("create_commit")
    assert (committed["repo_id"], committed["revision"]) == ("ada/small", None)
    assert "token" not in committed
    assert "pushed to https://hub.invalid/ada/small" in captured.err.splitlines()[-1]
    record = json.loads(captured.out)
    assert record["proof"]
    files = [file for file in out.rglob("*") if file.is_file()]
    assert ModelCard.load(out / "README.md").data.license_name == "mine"
    assert (out / "LICENSE.txt").read_text() == "do as you like"
    assert not [file for file in files if TOKEN.encode() in file.read_bytes()]


@pytest.mark.parametrize(
    ("metadata", "missing"),
    [
        ("license: mit\nbase_model: a/b", None),
        ("license: mit", "no base model"),
        ("base_model: a/b", "no licence"),
        ("tags: [x]", "no licence and no base model"),
    ],
)
def test_what_a_card_does_not_name_is_said_in_one_line(metadata: str, missing: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n# card\n")
    said = not_told(tmp_path)
    assert (said is None) if missing is None else (f"the model card names {missing}: add what you know to" in str(said))
    (tmp_path / "README.md").unlink()
    assert "there is no model card" in str(not_told(tmp_path))


def test_paths_are_by_their_last_part_and_texts_of_models_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    record = {
        "command": "secateur prune /srv/models/a --data='/srv/my texts/b.txt' --out ./c",
        "model": {"id": "/srv/models/a"}, "list": ["/srv/models", "hub:owner/name", "a/b"],
        "generations": {"dense": ["/not/a/place"]},
    }  # fmt: skip
    places = places_in(record)
    assert places == {"/srv/models/a", "/srv/my texts/b.txt", "/srv/models"}
    text = json.dumps({"a": "/srv/models/a", "b": "/srv/models/other", "c": "/home/me/x", "d": "/not/a/place"})
    assert json.loads(without_places(text, places)) == {"a": "a", "b": "models/other", "c": "~/x", "d": "/not/a/place"}


@pytest.mark.parametrize(
    ("error", "code", "begins"),
    [(OSError("the line broke"), 1, "error: "), (KeyboardInterrupt(), 130, "interrupted: ")],
)
@pytest.mark.usefixtures("_without_speed")
def test_a_push_that_fails_leaves_the_finished_output_and_says_how_to_push_it(
    error: BaseException, code: int, begins: str, hub: MadeUpHub, tiny_checkpoint: Path, text: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    hub.error = error
    out = tmp_path / "out"
    words = ["prune", str(tiny_checkpoint), "--data", text, *PRUNE, "--out", str(out), "--json"]
    assert main([*words, "--push-to-hub=ada/small", "--private"]) == code
    captured = capsys.readouterr()
    assert json.loads(captured.out)["out"] == str(out)
    assert (out / "model.safetensors").is_file()
    line = the_line(captured.err)
    assert line.startswith(begins)
    assert f"secateur push {out} ada/small --private" in line
    assert "hf upload" not in line  # paths of this machine would go along


def test_push_uploads_a_finished_checkpoint_to_a_branch_and_prints_where(
    hub: MadeUpHub, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(tiny_checkpoint), "looms/small", "--revision=v2"]) == 0
    captured = capsys.readouterr()
    assert [name for name, _ in hub.calls] == ["create_repo", "create_branch", "create_commit"]
    assert hub.options_of("create_branch") == {"repo_id": "looms/small", "branch": "v2", "exist_ok": True}
    assert hub.options_of("create_commit")["revision"] == "v2"
    assert captured.out == "pushed to https://hub.invalid/looms/small\n"
    assert "there is no model card" in captured.err


def test_push_uploads_a_cut_checkpoint_with_what_its_card_needs_and_without_paths_of_this_machine(
    hub: MadeUpHub, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, cut = shutil.copytree(tiny_checkpoint, tmp_path / "private" / "dense"), tmp_path / "private" / "cut"
    (dense / "README.md").write_text("---\nlicense: mit\nbase_model: org/base\n---\n")
    assert main(["cut", str(dense), "--layers=1", f"--out={cut}", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["push", str(cut), "ada/cut"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [f"pushing {cut} to ada/cut"]  # nothing that the card lacks
    assert {*hub.sent} >= {"secateur/record.json", "secateur/plan.json", "README.md", "model.safetensors"}
    told = hub.sent["secateur/record.json"].decode()
    assert json.loads(told)["command"] == "secateur cut dense --layers=1 --out=cut --quiet"
    assert "private" not in told + hub.sent["README.md"].decode()


def test_an_adapter_names_the_repository_as_its_base_and_no_directory_of_this_machine(
    hub: MadeUpHub, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "tuned")
    (folder / "adapter").mkdir()
    config = folder / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(folder), "r": 8}))
    assert main(["push", str(folder), "ada/tuned", "--quiet"]) == 0
    assert json.loads(hub.sent["adapter/adapter_config.json"]) == {"base_model_name_or_path": "ada/tuned", "r": 8}
    assert json.loads(config.read_text())["base_model_name_or_path"] == str(folder)


def test_weights_of_an_earlier_version_go_and_what_git_and_the_hub_keep_in_a_folder_stays_there(
    hub: MadeUpHub, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "cloned")
    for name in (".git/config", ".cache/huggingface/upload.lock", "sub/.git/config"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()
    hub.files = [".gitattributes", "config.json", "notes.md", "model.safetensors", "pytorch_model.bin"]
    hub.files += ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.bin.txt"]
    assert main(["push", str(folder), "ada/small", "--quiet"]) == 0
    assert hub.deleted == ["pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    assert {*hub.sent} == {each.name for each in tiny_checkpoint.iterdir()}


def test_push_refuses_what_is_no_checkpoint(hub: MadeUpHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(tmp_path), "ada/small"]) == 2
    assert "is no checkpoint: give a directory that holds config.json and *.safetensors" in the_line(
        capsys.readouterr().err
    )
    assert not hub.calls
