"""`secateur push`: a finished checkpoint to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli.options import print_json
from secateur.errors import RequestError

if TYPE_CHECKING:
    from secateur.cli.parser import Parser

__all__ = ["EXAMPLES", "SUMMARY", "USAGE", "add_options", "run"]

SUMMARY = "upload a finished checkpoint to the Hugging Face hub, with its card, plan and report"
USAGE = "CHECKPOINT REPO_ID [--private] [--revision BRANCH] [OPTIONS]"
EXAMPLES = ("secateur push smaller OWNER/NAME --private",)


def add_options(parser: Parser) -> None:
    """The options of this command."""
    parser.add_argument("model", metavar="CHECKPOINT", help="directory that prune, tune or cut made")
    parser.add_argument("repo_id", metavar="REPO_ID", help="owner/name on the hub; it is made if it is not there")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--revision", type=str, help="the branch; it is made if it is not there")


def run(options: dict[str, Any], progress: Any, _: list[str]) -> None:
    """Do what was asked for."""
    from secateur.hub import Upload, checked, not_told, push

    folder = Path(options["model"])
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise RequestError(f"{folder} is no checkpoint: give a directory that holds config.json and *.safetensors")
    upload = checked(Upload(repo_id=options["repo_id"], private=options["private"], revision=options["revision"]))
    if (gap := not_told(folder)) is not None:
        progress.note(gap)
    progress.note(f"pushing {folder} to {upload.repo_id}")
    address = push(folder, upload)
    if options["json"]:
        print_json({"pushed": address})
    else:
        print(f"pushed to {address}")
