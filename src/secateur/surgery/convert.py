"""A GGUF file of a checkpoint, by llama.cpp's own converter: the user's script, in the user's environment for it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from secateur.errors import ModelError, RequestError, RunError
from secateur.surgery.gguf_header import read_gguf

__all__ = ["FILE", "convert_to_gguf", "find_converter"]

FILE = "model.gguf"
"""The name of the file, in the checkpoint's directory."""

_SCRIPT = "convert_hf_to_gguf.py"
_OWN = "SECATEUR_GGUF_CONVERTER"


def find_converter(command: str | None = None) -> tuple[str, ...]:
    """The words that run llama.cpp's converter.

    Args:
        command: such as `venv/bin/python llama.cpp/convert_hf_to_gguf.py`; else the variable `SECATEUR_GGUF_CONVERTER`, else
            the script on the PATH.

    Raises:
        RequestError: if there is none.
    """
    given = command or os.environ.get(_OWN)
    try:
        words = shlex.split(given) if given else [_SCRIPT]
    except ValueError as error:
        raise RequestError(f"cannot read the converter's command {given!r}: {error}") from None
    program = shutil.which(words[0]) if words else None
    if program is None or not all(Path(word).is_file() for word in words[1:] if word.endswith(".py")):
        raise RequestError(
            f"llama.cpp's converter is not at {' '.join(words)!r}; get llama.cpp and the packages in its requirements, and "
            f"name the command with --converter 'PYTHON PATH/{_SCRIPT}', or in {_OWN}"
        )
    return (program, *words[1:])


def convert_to_gguf(directory: Path, converter: Sequence[str]) -> Path:
    """Write `model.gguf` into a checkpoint directory; it is there whole at the end, or not at all.

    Raises:
        RunError: if the converter fails, or what it writes is no GGUF file. The checkpoint stays.
    """
    target, temporary = directory / FILE, directory / f".{FILE}.tmp"
    command = [*converter, str(directory), "--outfile", str(temporary)]
    try:
        # The user's own command, as a list: no shell reads it.
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
        if done.returncode or not temporary.is_file():
            raise RunError(
                f"llama.cpp's converter could not convert {directory}, where the checkpoint stays: {_last_line(done)}"
            )
        read_gguf(temporary)
        temporary.replace(target)
    except ModelError as error:
        raise RunError(
            f"what llama.cpp's converter wrote for {directory}, where the checkpoint stays, is none: {error}"
        ) from error
    except OSError as error:
        raise RunError(
            f"cannot run {converter[0]}: {error.strerror or error}; the checkpoint is in {directory}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"it ended with {done.returncode}"
