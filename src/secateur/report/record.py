"""The run's record, `record.json`: what was done to which model, with what, and what came of it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.processes import launched, num_launched

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "BY_HAND",
    "circumstances",
    "config_sha256",
    "count_parameters",
    "describe_model",
    "directory_size",
    "git_revision",
    "redacted",
    "redacted_command",
    "redacted_text",
    "revision_of",
    "run_record",
    "secateur_version",
    "versions",
    "weights_size",
]

BY_HAND = "cut"
"""Stands for a method where somebody named the layers, and none chose them."""

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "tokenizers", "huggingface_hub")
_HIDDEN = "***"
_SECRET_NAMES = frozenset({"token", "hf_token", "hub_token", "access_token", "auth_token", "api_key", "password"})
_SECRET_TEXT = re.compile(
    r"(?<![A-Za-z0-9_])(?:hf_[A-Za-z0-9]{8,}|(?:gh[opsu]_|github_pat_|sk-|xox[abp]-|glpat-)[A-Za-z0-9_-]{8,})"
    r"|(?<=://)[^/\s@]+(?=@)|(?<=[?&]token=)[^&\s]+"
)
_SECRET_VARIABLE = re.compile(r"(?:TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY)$")
_SHORTEST_SECRET = 8  # a shorter value may be a word of the text
_CONFIG_NOISE = frozenset({"_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype"})


def run_record(
    *,
    command: Sequence[str],
    model: Mapping[str, Any],
    method: Mapping[str, Any],
    dropped: Sequence[int],
    scores: Sequence[float] | None = None,
    budget: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    eval_data: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    timings: Mapping[str, float] | None = None,
    peak_memory_bytes: int | None = None,
    seed: int | None = None,
    proof: Mapping[str, Any] | None = None,
    preparation: Mapping[str, Any] | None = None,
    recovery: Mapping[str, Any] | None = None,
    generations: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    comparison: Mapping[str, Any] | None = None,
    adapter: bool = False,
) -> dict[str, Any]:
    """Everything needed to judge a run and to do it again, as plain JSON values.

    Access tokens never get into it: neither from the command line nor from any text or option below.

    Args:
        command: the command line, `["secateur", "prune", …]`.
        model: `describe_model(…)`.
        method: `name` and `options`.
        dropped: the layers removed, by index of the dense model.
        scores: the scores behind the choice, one a layer.
        budget: how the number of layers was found, where it was searched for.
        data: `spec`, `sequences`, `tokens` and `fingerprint` of the calibration text.
        eval_data: the same of the text the metrics were measured on.
        metrics: `dense` and `pruned`, each a mapping of numbers; after a recovery also `cut`, before it.
        timings: seconds by stage.
        peak_memory_bytes: the most memory held at once.
        seed: the seed of everything random.
        proof: what the reloaded checkpoint was held against, and how far off it was.
        preparation: how the weights were changed before the cut.
        recovery: how they were trained after it.
        generations: `prompts`, `dense` and `pruned`, lists of texts of equal length.
        training: how the pruned model was fine-tuned, and how that went.
        comparison: the pruned model's figure on a task less that of each other model, with its interval.
        adapter: whether what was trained lies beside the checkpoint as an adapter.
    """
    record = {
        **circumstances(command=command, seed=seed),
        "model": model,
        "method": method,
        "data": data,
        "eval_data": eval_data,
        "dropped": sorted(dropped),
        "scores": None if scores is None else [float(score) for score in scores],
        "budget": budget,
        "preparation": preparation,
        "recovery": recovery,
        "training": training,
        "adapter": adapter,
        "proof": proof,
        "metrics": {} if metrics is None else metrics,
        "comparison": comparison,
        "generations": generations,
        "timings": {} if timings is None else timings,
        "peak_memory_bytes": peak_memory_bytes,
    }
    plain: dict[str, Any] = redacted(record)
    return plain


def circumstances(*, command: Sequence[str], seed: int | None) -> dict[str, Any]:
    """What every record holds beside its figures: when it was made, by which command, in which place, and with what.

    Args:
        command: the command line; access tokens are left out.
        seed: of everything random; None where nothing is.
    """
    return {
        "secateur_version": secateur_version(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": redacted_command(command),
        "seed": seed,
        **({"processes": num_launched()} if launched() else {}),
        "git_revision": git_revision(),
        "versions": versions(),
    }


def revision_of(model: PreTrainedModel, asked: str | None = None) -> str | None:
    """The commit of the hub that a model is of, or else the branch or tag asked for; None for a local checkpoint."""
    return getattr(model.config, "_commit_hash", None) or asked


def describe_model(model: PreTrainedModel, *, id: str, revision: str | None = None) -> dict[str, Any]:  # noqa: A002
    """The record's `model`: which model it is, and how large.

    Args:
        model: the dense model.
        id: its hub id or directory, as the user gave it.
        revision: the branch, tag or commit asked for; the record has the commit, where it is known.
    """
    from secateur.depth import layer_count

    return {
        "id": id,
        "revision": revision_of(model, revision),
        "config_sha256": config_sha256(model.config),
        "num_layers": layer_count(model.config),
        "num_parameters": count_parameters(model),
    }


def config_sha256(config: PretrainedConfig) -> str:
    """The sha256, in hex, of what a configuration says of the architecture.

    Where the model was loaded from, in which dtype and class, and by which transformers, leaves no trace in it.
    """
    body = {key: value for key, value in config.to_dict().items() if key not in _CONFIG_NOISE}
    return hashlib.sha256(json.dumps(body, sort_keys=True, default=str).encode()).hexdigest()


def count_parameters(model: nn.Module) -> int:
    """The number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def directory_size(path: str | Path) -> int:
    """Bytes of all files under `path`; links count as what they point to, as in the hub's cache."""
    files = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    return sum(file.stat().st_size for file in files if file.exists())


def weights_size(path: str | Path) -> int:
    """Bytes of a checkpoint's weights on disk, its safetensors files as transformers names them."""
    return sum(file.stat().st_size for file in Path(path).glob("model*.safetensors"))


def redacted_command(command: Sequence[str]) -> str:
    """A command line as text that a shell takes, with access tokens as `***`."""
    words: list[str] = []
    hide_next = False
    for word in command:
        option, equals, value = word.partition("=")
        secret = option.startswith("-") and _is_secret(option)
        if hide_next or word.startswith("hf_"):
            words.append(_HIDDEN)
        elif equals and (secret or value.startswith("hf_")):
            words.append(f"{option}={_HIDDEN}")
        else:
            words.append(redacted_text(word))
        hide_next = secret and not equals
    return shlex.join(words)


def redacted_text(text: str) -> str:
    """A text with what looks like an access token, and what this process has as one, as `***`."""
    for name, secret in os.environ.items():
        if len(secret) >= _SHORTEST_SECRET and _SECRET_VARIABLE.search(name):
            text = text.replace(secret, _HIDDEN)
    return _SECRET_TEXT.sub(_HIDDEN, text)


def git_revision() -> str | None:
    """The commit that the working directory is at, with `-dirty` where files differ from it; None outside of git."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def versions() -> dict[str, str | None]:
    """The versions of what ran: packages (None if not installed), Python, platform and accelerator."""
    found: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform()}
    found |= {package: _version(package) for package in _PACKAGES}
    torch = sys.modules.get("torch")  # not imported for the sake of a name
    found["device"] = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else "cpu"
    return found


def secateur_version() -> str | None:
    """This package's own version; None if it is not installed."""
    return _version("secateur")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def redacted(value: Any) -> Any:
    """`value` with access tokens as `***`, and mappings, sequences and paths as dict, list and str."""
    if isinstance(value, Mapping):
        return {str(key): _HIDDEN if item and _is_secret(str(key)) else redacted(item) for key, item in value.items()}
    if isinstance(value, (str, Path)):
        return redacted_text(str(value))
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redacted(item) for item in value]
    return value


def _is_secret(name: str) -> bool:
    """Whether an option or a key, `--hf-token` or `hf_token`, is named like a secret."""
    return name.lower().lstrip("-").replace("-", "_") in _SECRET_NAMES
