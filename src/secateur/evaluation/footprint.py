"""The memory that one model needs to read and write, measured in a process that holds nothing else."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from secateur.evaluation.memory import PeakMemory
from secateur.evaluation.speed import SpeedSettings, made_up_prompt, time_once
from secateur.loading import load_model
from secateur.trust import is_pickle_allowed, pickle_allowed

__all__ = ["peak_memory"]

logger = logging.getLogger(__name__)


def peak_memory(source: str | Path, settings: SpeedSettings, **loading: Any) -> int | None:
    """The most memory held while the largest batch is read and written once, in bytes; None if that failed.

    The model is loaded in a fresh process, because the memory of this one holds other models, and what they left. On a CUDA
    device it is what was allocated there; on a CPU the resident memory of the process, with Python's and torch's own
    libraries, after loading.

    Args:
        source: a hub id or a local checkpoint.
        settings: which prompts, how much is written after them, and the batch sizes.
        loading: `dtype`, `revision` and `trust_remote_code`, as for `load_model`.
    """
    request = {"source": str(source), "settings": asdict(settings), "loading": loading, "pickle": is_pickle_allowed()}
    done = subprocess.run(  # noqa: S603  this Python and this file
        [sys.executable, "-m", __name__], input=json.dumps(request), capture_output=True, text=True, check=False
    )
    if done.returncode:
        logger.info("measuring the memory of %s failed: %s", source, done.stderr.strip())
        return None
    return int(done.stdout.split()[-1])


def _measure(request: dict[str, Any]) -> int:
    """What the fresh process does."""
    settings = SpeedSettings(**{**request["settings"], "batch_sizes": tuple(request["settings"]["batch_sizes"])})
    with pickle_allowed(request["pickle"]):
        model = load_model(request["source"], **request["loading"])
    prompt = made_up_prompt([model], max(settings.batch_sizes), settings.prompt_tokens)
    with PeakMemory(interval=0.01) as peak:
        time_once(model, prompt, settings.new_tokens)
    return peak.bytes


if __name__ == "__main__":
    print(_measure(json.load(sys.stdin)))  # noqa: T201  the answer to the process that asked
