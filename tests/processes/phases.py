"""Every phase of secateur on one checkpoint, in as many processes as there are: `phases.py KIND INPUTS OUT [PHASE …]`.

KIND is `plain` (one process, DDP, or ZeRO where accelerate's launcher says so) or `fsdp2`. Each phase leaves `OUT/SLUG.json`, and
a checkpoint `OUT/SLUG` where it makes one. All batches are of all processes together, so that what is left must not depend on how
many there are.
"""

from __future__ import annotations

import json
import re
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsdp_on_cpu import shard_on_cpus

from secateur.assessment import evaluate
from secateur.data.task import TaskSettings
from secateur.methods import METHODS, Method
from secateur.pipeline import prune, score
from secateur.processes import is_first, joined
from secateur.request import Target, TextSettings
from secateur.training.recovery import Recovery
from secateur.training.supervised import FineTuning
from secateur.tuning import tune

SEED = 3


@dataclass(frozen=True)
class Inputs:
    """What the phases work on, and where they write."""

    folder: Path
    out: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def text(self) -> TextSettings:
        """Eight batches, so that a process has four of them."""
        return TextSettings(
            data=str(self.folder / "train.txt"), eval_data=str(self.folder / "test.txt"), sequence_length=32,
            num_sequences=16, num_eval_sequences=7, batch_size=2,
        )  # fmt: skip


def method(name: str, **settings: Any) -> Method:
    quick = {"first_steps": 3, "round_steps": 2, "joint_steps": 8, "sequences_per_step": 4, "scoring_steps": 4}
    known = METHODS[name].__dataclass_fields__
    return METHODS[name](**{key: value for key, value in {**quick, **settings}.items() if key in known})


def chosen(name: str, **settings: Any) -> Callable[[Inputs, str], dict[str, Any]]:
    """The plan of a method."""

    def run(inputs: Inputs, _: str) -> dict[str, Any]:
        plan = score(
            inputs.checkpoint, method=method(name, **settings), text=inputs.text, drop=2, seed=SEED, precision="fp32"
        )
        return {"order": list(plan.order), "scores": list(plan.scores or ())}

    return run


def pruned(name: str, recovery: Recovery | None = None, **settings: Any) -> Callable[[Inputs, str], dict[str, Any]]:
    """A checkpoint of `prune`."""

    def run(inputs: Inputs, phase: str) -> dict[str, Any]:
        made = prune(
            inputs.checkpoint, method=method(name, **settings), text=inputs.text, target=Target(drop=2), seed=SEED,
            recovery=recovery, out=inputs.out / phase, precision="fp32", speed=False, prompts=(), command=["phases"],
        )  # fmt: skip
        metrics = made.record["metrics"]
        return {
            "order": list(made.plan.order),
            "scores": list(made.plan.scores or ()),
            "measured": [metrics[which]["perplexity"] for which in ("dense", "pruned")],
        }

    return run


def tuned(train: Any, by: Method | None = None, **options: Any) -> Callable[[Inputs, str], dict[str, Any]]:
    """A checkpoint of `tune`; the best epoch is loaded again at the end."""

    def run(inputs: Inputs, phase: str) -> dict[str, Any]:
        made = tune(
            inputs.checkpoint, task=TaskSettings(data=str(inputs.folder / "sums.jsonl"), num_train=16),
            target=Target(drop=2), method=by or method("gradpruner", scoring_rate=1e-2), out=inputs.out / phase, seed=SEED,
            tuning=FineTuning(train=train, epochs=2, batch_size=4, learning_rate=1e-3, lora_rank=2),
            precision="fp32", speed=False, command=["phases"], **options,
        )  # fmt: skip
        metrics = made.record["metrics"]
        return {
            "order": list(made.plan.order),
            "scores": list(made.plan.scores or ()),
            "measured": [metrics[which]["task"]["value"] for which in ("dense", "pruned")],
            "best_step": made.record["training"]["best_step"],
        }

    return run


def measured(inputs: Inputs, _: str) -> dict[str, Any]:
    """`eval` on text, windows that overlap among them."""
    windows: dict[str, Any] = {"sequence_length": 32, "num_sequences": 7, "batch_size": 2}
    rows = [
        evaluate([inputs.checkpoint], data=inputs.text.eval_data, stride=stride, **windows) for stride in (None, 16)
    ]
    return {"measured": [row[0]["perplexity"] for row in rows]}


PHASES: dict[str, Callable[[Inputs, str], dict[str, Any]]] = {
    **{f"choose: {name}": chosen(name) for name in ("shortgpt", "angular", "sleb", "shortened-ppl", "shortened-taylor", "laco")},
    "choose: elder (stage 1)": chosen("elder"),
    "choose: elder-published (stage 1)": chosen("elder-published"),
    "choose: gradpruner (IGIA)": chosen("gradpruner"),
    "choose: gradpruner, full gradients": chosen("gradpruner", gradients="full"),
    "prune: elder (absorb, distil)": pruned("elder"),
    "prune: elder-published (penalty)": pruned("elder-published"),
    "prune: elder, fading, LoRA": pruned("elder", absorb=None, fade_over=1.0, train="lora", distil=0.0),
    "prune: replaceme (map)": pruned("replaceme"),
    "prune: gradpruner (merge)": pruned("gradpruner", scoring_rate=1e-2),
    "recover: lora": pruned("shortgpt", Recovery(recover="lora", recover_batch=4)),
    "recover: partial": pruned("shortgpt", Recovery(recover="partial", recover_batch=4, recover_layers=2)),
    "recover: full": pruned("shortgpt", Recovery(recover="full", recover_batch=4, recover_micro_batch=1)),
    "recover: distill": pruned("shortgpt", Recovery(recover="distill", recover_batch=4)),
    "tune: lora": tuned("lora", merge_adapters=True),
    "tune: full": tuned("full"),
    "eval: perplexity": measured,
}  # fmt: skip

CLIPPED = {"max_grad_norm": 1e-3}
"""Far below the norm of a gradient here."""

ZERO: dict[str, Callable[[Inputs, str], dict[str, Any]]] = {
    **{phase: run for phase, run in PHASES.items() if phase.startswith(("prune: elder", "recover: "))},
    "recover: full, clipped": pruned("shortgpt", Recovery(recover="full", recover_batch=4, recover_trainer=CLIPPED)),
    "tune: lora, by shortgpt": tuned("lora", by=method("shortgpt"), merge_adapters=True),
    "tune: full, by shortgpt": tuned("full", by=method("shortgpt")),
}
"""What trains and does not read gradients, which DeepSpeed does not show."""


def slug(phase: str) -> str:
    """The name of a phase as that of a file."""
    return "-".join(re.findall("[a-z0-9]+", phase.lower()))


def main(kind: str, folder: str, out: str, *names: str) -> None:
    if kind == "fsdp2":
        shard_on_cpus()
    warnings.simplefilter("ignore")
    inputs = Inputs(Path(folder), Path(out))
    with joined():
        for phase in names or PHASES:
            start = time.monotonic()
            found = {**(PHASES | ZERO)[phase](inputs, slug(phase)), "seconds": time.monotonic() - start}
            if is_first():
                (inputs.out / f"{slug(phase)}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
