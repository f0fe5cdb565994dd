"""What lies beside the weights of a checkpoint or an adapter: which files go along, and which stay behind."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from secateur.errors import ModelError
from secateur.surgery.copying import reading
from secateur.surgery.shards import file_size, quoted

__all__ = ["companions"]

_TEMPLATES = "additional_chat_templates"  # where transformers keeps all but the default one
_NOT_COPIED = {
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".onnx_data", ".gguf", ".ggml", ".h5", ".msgpack", ".npz",
    ".npy", ".tflite", ".pkl", ".pickle", ".zip", ".tar", ".gz", ".lock",
}  # fmt: skip
"""Weights of the dense model in other forms, and what may hide them."""

_OURS, _COMPILED = "secateur", "__pycache__"
"""Folders without a model's code: of the run that made a checkpoint, and what Python leaves."""

_MAX_DEPTH = 16
"""Of folders with code in each other; a stranger's may be deeper than Python calls."""


def companions(folder: Path, rewritten: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What lies beside the weights: the files to copy as they are, and what to leave.

    Args:
        folder: the source directory.
        rewritten: names that are written anew, and count as neither.

    Raises:
        ModelError: if a file to copy is none, such as a link in a circle, or code in a folder that a link leads out to.
    """
    copied: list[str] = []
    left: list[str] = []
    with reading(folder):
        beside = sorted(path for path in folder.iterdir() if path.name not in rewritten)
    for path in beside:
        name = path.name
        if path.is_dir() and name == _TEMPLATES:
            copied += [f"{name}/{each.name}" for each in sorted(path.glob("*.jinja")) if file_size(each)]
        elif path.is_dir():
            code, others = _code_in(folder, path)
            copied += code
            if others or not code:
                left.append(f"{name}/")
        elif (
            path.suffix in _NOT_COPIED
            or name.startswith((".", "README", "trainer_state"))
            or name.endswith(".index.json")
        ):
            left.append(name)
        else:
            file_size(path)
            copied.append(name)
    return tuple(copied), tuple(left)


def _code_in(folder: Path, package: Path) -> tuple[list[str], bool]:
    """The Python files in a folder that code can be imported from, and whether anything else in it stays behind.

    Links to folders are not followed, and those to files only to where a checkpoint's own are.
    """
    home = Path(os.path.realpath(folder))
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]  # the hub's cache
    code, others, found = [], False, [package]
    while found:
        path = found.pop()
        with reading(path):
            if path.is_dir():
                deep = len(path.relative_to(folder).parts) > _MAX_DEPTH
                if (
                    path.name.isidentifier()
                    and path.name not in (_OURS, _COMPILED)
                    and not path.is_symlink()
                    and not deep
                ):
                    found += path.iterdir()
                else:
                    others = others or path.name != _COMPILED
                continue
        if path.suffix != ".py":
            others = True
            continue
        if not any(Path(os.path.realpath(path)).is_relative_to(each) for each in homes):
            raise ModelError(
                f"{quoted(str(path))} is a link that leads out of {folder}; put the file itself there, or remove it"
            )
        file_size(path)
        code.append(str(path.relative_to(folder)))
    return sorted(code), others
