"""The demonstration: everything `secateur prune` does, on a real pretrained model and real text, on any machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from secateur.methods.elder import Elder
from secateur.pipeline import prune
from secateur.progress import Progress
from secateur.request import Pruned, Target, TextSettings
from secateur.sample import fetch_sample_model
from secateur.surgery.output import check_output

__all__ = ["demo"]

DROP = 6
METHOD = Elder(gate_sequences=4, joint_steps=30, shortlist=3, learning_rate=1e-4, distil=0.5)
TEXT = TextSettings(data="python-docs", num_sequences=64, num_eval_sequences=24)
PROMPTS = ("The for statement is used to", "An exception is raised when", "The three states of matter are")


def demo(
    out: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_minutes: float = 5.0,
    seed: int = 0,
    progress: Progress,
    command: Sequence[str] | None = None,
) -> Pruned:
    """Prune the sample model by ELDeR on the help topics of Python's standard library.

    Raises:
        SecateurError: as `fetch_sample_model` and `prune` do.
    """
    if not resume:
        check_output(out, overwrite=overwrite)
    return prune(
        fetch_sample_model(progress=progress),
        method=METHOD,
        text=TEXT,
        target=Target(drop=DROP),
        out=out,
        overwrite=overwrite,
        resume=resume,
        checkpoint_minutes=checkpoint_minutes,
        seed=seed,
        prompts=PROMPTS,
        progress=progress,
        command=command,
    )
