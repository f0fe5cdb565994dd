"""Uploading a finished checkpoint to the Hugging Face hub: all that can be wrong is found before a run, the upload comes last.

The token is huggingface_hub's own (`hf auth login`, or `HF_TOKEN`). None is ever an option, so none gets into a record.
"""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Collection
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from secateur.errors import RequestError, RunError
from secateur.places import places_in, without_places

__all__ = ["Upload", "checked", "not_told", "push"]

_FORMER = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")
"""Weights of an earlier version in the repository: left there, they would be loaded in place of the new ones, or beside them."""

_NOT_OURS = (".git", ".cache")
"""Folders in a checkpoint that git and the hub's own programs keep for themselves."""

_NOT_ALLOWED = (401, 403)

_ADAPTER = "adapter/adapter_config.json"

_ABOUT = tuple(f"secateur/{name}" for name in ("record.json", "request.json", "plan.json", "report.html", "run.log"))
"""What tells of the run, and with that of places on this machine."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """Where a checkpoint goes."""

    repo_id: str
    """`owner/name`; a bare name is the user's own."""

    private: bool = False
    """Make the repository a private one."""

    revision: str | None = None
    """The branch, which is made if it is not there; the main one if None."""

    def by_hand(self, folder: str | Path) -> str:
        """The command that does the same; huggingface_hub's own would upload the paths of this machine as well."""
        options = ["--private"] * self.private + ([f"--revision={self.revision}"] if self.revision else [])
        return shlex.join(["secateur", "push", str(folder), self.repo_id, *options])


def checked(upload: Upload) -> Upload:
    """Make sure, before anything expensive, that a checkpoint can be pushed; the same with the owner's name in it.

    Raises:
        RequestError: if it cannot: no such id, offline, nobody logged in, or not allowed to.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import LocalTokenNotFoundError
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(upload.repo_id)
    except HFValidationError as error:
        raise RequestError(f"cannot push to '{upload.repo_id}': {_reason(error)}; give owner/name") from error
    if constants.HF_HUB_OFFLINE:
        raise RequestError(
            f"cannot push to {upload.repo_id} while HF_HUB_OFFLINE is set; unset it, or push what is finished later "
            "(secateur push OUT REPO_ID)"
        )
    api = HfApi()
    try:
        me = api.whoami()
    except LocalTokenNotFoundError as error:
        raise RequestError(
            f"cannot push to {upload.repo_id}: nobody is logged in; run hf auth login, or set HF_TOKEN"
        ) from error
    except Exception as error:  # of any type: no network, a proxy, a token that is no longer valid
        raise RequestError(
            f"cannot push to {upload.repo_id}: the hub does not say who you are ({_reason(error)}); run hf auth login, or "
            "push what is finished later (secateur push OUT REPO_ID)"
        ) from error
    owners = [me["name"], *(each["name"] for each in me.get("orgs", ()))]
    owner, _, name = upload.repo_id.rpartition("/")
    upload = replace(upload, repo_id=f"{owner or me['name']}/{name}")
    _check_allowed(upload, owners, me)
    _check_private(upload, api)
    return upload


def not_told(folder: str | Path) -> str | None:
    """One line on what the card of a checkpoint does not say and others need; None where it says all."""
    from huggingface_hub import ModelCard

    card = Path(folder, "README.md")
    if not card.is_file():
        return f"there is no model card in {folder} (README.md): nobody will know how it was made"
    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data
    except Exception:  # a card in whatever state: the hub says what is wrong with it
        return None
    missing = [words for name, words in (("license", "licence"), ("base_model", "base model")) if not data.get(name)]
    return f"the model card names no {' and no '.join(missing)}: add what you know to {card}" if missing else None


def push(folder: str | Path, upload: Upload) -> str:
    """Upload a finished checkpoint in one commit; the value is its address.

    Nobody finds half of it there, nor its weights beside another's settings. What a failed push has sent of large files, the hub
    keeps for a while: the next one sends the rest.

    Args:
        folder: the checkpoint.
        upload: as `checked` gave it back.

    Raises:
        RunError: if that fails; the checkpoint is as it was.
    """
    from huggingface_hub import HfApi

    api, folder, repo_id = HfApi(), Path(folder), upload.repo_id
    try:
        address = api.create_repo(repo_id, private=upload.private or None, exist_ok=True)
        if upload.revision is not None:
            api.create_branch(repo_id, branch=upload.revision, exist_ok=True)
        api.create_commit(
            repo_id,
            _changes(folder, upload, api.list_repo_files(repo_id, revision=upload.revision)),
            commit_message="Upload a model pruned by secateur",
            revision=upload.revision,
        )
    except (Exception, KeyboardInterrupt) as error:
        kept, again = f"the checkpoint in {folder} is finished and was left as it is", upload.by_hand(folder)
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"{kept}; push it again: {again}") from error
        reason, status = _refusal(error)
        login = f"run hf auth login with a token that may write to {repo_id}, then " if status in _NOT_ALLOWED else ""
        raise RunError(f"pushing to {repo_id} failed ({reason}); {kept}; {login}push it again: {again}") from error
    return str(address)


def _check_allowed(upload: Upload, owners: Collection[str], me: dict[str, Any]) -> None:
    """Raises RequestError if the token may not write, or not there."""
    owner = upload.repo_id.partition("/")[0]
    if owner not in owners:
        raise RequestError(
            f"cannot push to {upload.repo_id}: {me['name']} is no member of {owner}; choose one of {', '.join(owners)}"
        )
    if me.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise RequestError(
            f"cannot push to {upload.repo_id}: the token of {me['name']} may only read; run hf auth login with one that may "
            "write"
        )


def _check_private(upload: Upload, api: Any) -> None:
    """Raises RequestError if what is to be private is public already: the hub would leave it so without a word."""
    from huggingface_hub.errors import RepositoryNotFoundError

    if not upload.private:
        return
    try:
        is_private = api.model_info(upload.repo_id).private
    except RepositoryNotFoundError:
        return
    except Exception as error:  # of any type: whether it is private is then not known
        raise RequestError(f"cannot push to {upload.repo_id}: the hub does not answer ({_reason(error)})") from error
    if not is_private:
        raise RequestError(
            f"{upload.repo_id} is there and public; choose another id, make it private on the hub, or leave --private out"
        )


def _changes(folder: Path, upload: Upload, there: Collection[str]) -> list[Any]:
    """What the commit does: the checkpoint as it is but for what tells of this machine, and the weights of an earlier one go.

    Args:
        folder: the checkpoint.
        upload: where it goes.
        there: the files in the repository.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    content: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {*path.relative_to(folder).parts}.intersection(_NOT_OURS)
    }
    content |= _told(folder)
    if _ADAPTER in content:
        content[_ADAPTER] = _adapter_on_hub(folder, upload.repo_id)
    former = [name for name in there if name not in content and any(fnmatchcase(name, each) for each in _FORMER)]
    return [
        *(CommitOperationDelete(path_in_repo=name) for name in former),
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=what) for name, what in content.items()),
    ]


def _told(folder: Path) -> dict[str, bytes]:
    """What tells of the run, with paths of this machine by their last part; the files themselves stay as they are."""
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in _ABOUT if (folder / name).is_file()}
    places = {str(folder.absolute())}
    for name, text in texts.items():
        places |= places_in(json.loads(text)) if name.endswith(".json") else set()
    return {name: without_places(text, places).encode() for name, text in texts.items()}


def _adapter_on_hub(folder: Path, repo_id: str) -> bytes:
    """The adapter's configuration, whose base model is the repository and no longer a directory of this machine."""
    config = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))
    return json.dumps({**config, "base_model_name_or_path": repo_id}, indent=2).encode()


def _reason(error: BaseException) -> str:
    return textwrap.shorten(str(error), 200, placeholder=" …") or type(error).__name__


def _refusal(error: BaseException) -> tuple[str, int | None]:
    """What the hub itself says, without the advice and addresses that its client adds, and the status of its answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = getattr(error, "server_message", None)
    return (f"{status}: {textwrap.shorten(said, 200, placeholder=' …')}" if said else _reason(error)), status
