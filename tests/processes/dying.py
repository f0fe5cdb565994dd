"""secateur, of whose processes one fails: `torchrun … dying.py KIND RANK WHEN HOW COMMAND …`.

KIND is `plain` or `fsdp2`, WHEN the stage on whose entry it fails, `checkpoint N` for behind a training's Nth, or `never`. HOW
is `error` (a message for the user), `bug` (any other exception) or `killed` (no last word).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsdp_on_cpu import shard_on_cpus

from secateur.cli import main
from secateur.errors import RunError
from secateur.stages import Stages
from secateur.training.checkpoints import _Checkpoints


def die(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RunError("this process had enough") if how == "error" else ZeroDivisionError("had enough")


def fail_in(stage: str, how: str) -> None:
    whole = Stages.stage

    @contextmanager
    def until(self: Stages, name: str) -> Iterator[None]:
        with whole(self, name):
            if name == stage:
                die(how)
            yield

    Stages.stage = until  # type: ignore[method-assign]


def fail_after(number: int, how: str) -> None:
    whole = _Checkpoints.on_save

    def on_save(self: _Checkpoints, args: Any, state: Any, control: Any, **more: Any) -> None:
        whole(self, args, state, control, **more)
        if state.global_step == number:
            die(how)

    _Checkpoints.on_save = on_save  # type: ignore[method-assign]


if __name__ == "__main__":
    kind, rank, when, how, *words = sys.argv[1:]
    if kind == "fsdp2":
        shard_on_cpus()
    if os.environ.get("RANK", "0") == rank:
        if when.startswith("checkpoint "):
            fail_after(int(when.removeprefix("checkpoint ")), how)
        elif when != "never":
            fail_in(when, how)
    sys.exit(main(words))
