"""secateur, of whose processes one fails on entering a stage: `torchrun … dying.py RANK STAGE HOW COMMAND …`.

HOW is `error` (a message for the user), `bug` (any other exception) or `killed` (no last word).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from secateur.cli import main
from secateur.errors import RunError
from secateur.stages import Stages


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


if __name__ == "__main__":
    rank, stage, how, *words = sys.argv[1:]
    if os.environ["RANK"] == rank:
        fail_in(stage, how)
    sys.exit(main(words))
