"""What `prune`, `tune` and their siblings do alike: measure, cut, prove, write, and say beforehand what it will take."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from secateur.context import context_of
from secateur.data import TokenBatches
from secateur.decoder import Decoder
from secateur.errors import ModelError, ProofError
from secateur.estimation.estimate import Setting, estimated_peak
from secateur.evaluation.perplexity import perplexity
from secateur.evaluation.speed import SpeedSettings, measure_speed
from secateur.loading import described_in, licence_files
from secateur.methods import Cost, Run
from secateur.methods.base import measuring
from secateur.plan import PruningPlan
from secateur.processes import agreed, count, sharded
from secateur.progress import Progress, duration
from secateur.report.card import inherited_metadata, model_card
from secateur.report.log import run_log
from secateur.report.page import load_run, report_page
from secateur.report.record import count_parameters, directory_size
from secateur.request import Pruned
from secateur.surgery.checkpoint import Proof, bypassed_logits, prove_checkpoint, save_checkpoint
from secateur.surgery.live import remove_layers_
from secateur.training.recovery import Recovery
from secateur.values import write_json

__all__ = [
    "LESS_WHAT_IS_DONE",
    "Stages",
    "add_speed",
    "agreed_plan",
    "check_cut",
    "cut_copy",
    "handed_over",
    "memory_line",
    "preflight",
    "quality",
    "setting_here",
    "sharing_copy",
    "size",
    "sizes",
    "tokens_per_second",
    "with_recovery",
    "write_about",
    "write_and_prove",
]

logger = logging.getLogger(__name__)

LESS_WHAT_IS_DONE = "; what the interrupted run has done is not counted"
"""Said of the time ahead where a run goes on."""

_PROBES, _PROBE_SECONDS = 4, 2.0  # passes that the speed of a run is estimated from, and how long they may take
_PROMPT_TOKENS, _NEW_TOKENS = 128, 24  # of the speeds in every record; `secateur bench` measures more


@dataclass
class Stages:
    """The stages of a run, and how long each took."""

    progress: Progress
    """Who watches."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Stage → seconds."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - start, 3)
            into = logger if logger.isEnabledFor(logging.INFO) else run_log
            into.info("%s: %.1f s", name, self.seconds[name])


def preflight(
    decoder: Decoder,
    data: TokenBatches,
    held_out: TokenBatches,
    cost: Cost,
    run: Run,
    *,
    wide: bool = True,
    measures: bool = True,
) -> str:
    """One line before the first expensive step: memory, tokens, and about how long, from a short measurement here.

    With `wide` 16-bit weights that are trained are in float32 meanwhile; with `measures` the models are measured on
    `held_out`.
    """
    setting = setting_here(decoder, run, wide=wide)

    def peak() -> float:
        return estimated_peak(decoder.model.config, cost, data, held_out, setting)

    probe = data.take(1).input_ids
    fast = tokens_per_second(decoder, probe, run)
    plain = fast if run.precision is None else tokens_per_second(decoder, probe, Run())
    measured = 3 * held_out.num_tokens if measures else 0
    tokens = cost.choose_tokens + cost.prepare_tokens + cost.recover_tokens
    seconds = tokens / fast + measured / plain
    passes = _passes(tokens + measured, cost.training_tokens)
    if not tokens:
        passes += " to measure with, none to choose by" if measures else " to choose by"
    return f"{memory_line(decoder, peak)}, {passes}, about {duration(seconds)} at {fast:,.0f} tokens/s"


def _passes(tokens: float, trained: int) -> str:
    """What is computed, in tokens through the whole model."""
    amount = (
        f"{tokens / 1e3:,.0f} thousand tokens" if tokens >= 1000 else f"{tokens:.0f} tokens" if tokens else "no tokens"
    )
    if trained:
        return f"{amount} of forward passes or their like ({trained:,} tokens trained on)"
    return f"{amount} of forward passes"


def setting_here(decoder: Decoder, run: Run, *, wide: bool) -> Setting:
    """On what a run is estimated that is about to begin: see `Setting`."""
    dtype, precision = decoder.model.dtype, run.precision
    return Setting(dtype=dtype, precision=precision, wide=wide, devices=count(), sharded=sharded())


def memory_line(decoder: Decoder, peak: Callable[[], float]) -> str:
    """The memory at the peak, in bytes what `peak` estimates, and whether there is as much."""
    model = decoder.model
    try:
        memory = peak()
    except ModelError as error:
        logger.debug("%s", error, exc_info=True)
        return "memory unknown"
    held = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    free = (
        psutil.virtual_memory().available
        if decoder.device.type == "cpu"
        else torch.cuda.mem_get_info(decoder.device)[0]
    )
    warning = f"; only {(free + held) / 1e9:.1f} GB are free" if memory > free + held else ""
    return f"about {memory / 1e9:.1f} GB of memory{warning}"


def with_recovery(cost: Cost, recovery: Recovery, num_layers: int, drop: int, data: TokenBatches) -> Cost:
    """What a method costs, and a recovery after it; of the memory, the larger share of the two.

    Raises:
        RequestError: if the recovery's budget is less than one window.
    """
    tokens = recovery.num_tokens(data)
    return replace(
        cost,
        recover_tokens=tokens * recovery.passes_per_token(num_layers, drop),
        training_tokens=cost.training_tokens + tokens,
        recovering=recovery.step(drop),
    )


def tokens_per_second(decoder: Decoder, input_ids: torch.Tensor, run: Run) -> float:
    """How fast a forward pass over token ids (batch, tokens) is here: the fastest of a few, as other programs only slow it."""
    with measuring(decoder, run):
        decoder.logits(input_ids[:, :8])  # the first call sets things up
        begun, seconds = time.perf_counter(), list[float]()
        while not seconds or (len(seconds) < _PROBES and time.perf_counter() - begun < _PROBE_SECONDS):
            start = time.perf_counter()
            decoder.logits(input_ids).sum().item()
            seconds.append(time.perf_counter() - start)
        return float(input_ids.numel() / min(seconds))


def size(model: Any) -> dict[str, Any]:
    """A model's layers and parameters, as they go into the record's metrics."""
    return {"num_layers": Decoder(model, verify=False).num_layers, "num_parameters": count_parameters(model)}


def quality(model: Any, held_out: TokenBatches, progress: Progress, description: str) -> dict[str, Any]:
    """A model's size and its perplexity on held-out text, as they go into the record's metrics."""
    result = perplexity(model, held_out, progress=progress, description=description)
    return {
        **size(model),
        "perplexity": result.perplexity,
        "nll": result.nll,
        "nll_stderr": result.stderr,
        "window": result.window,
        "stride": result.stride,
        "predicted_tokens": result.num_tokens,
    }


def agreed_plan(plan: PruningPlan) -> PruningPlan:
    """The first process's plan, in all of them; what a merge needs besides stays each one's own."""
    return replace(agreed(replace(plan, evidence=None)), evidence=plan.evidence)


def cut_copy(decoder: Decoder, dropped: Collection[int]) -> Any:
    """A model without `dropped` that shares every tensor with the one that has them."""
    pruned = sharing_copy(decoder.model)
    remove_layers_(pruned, dropped)
    return pruned


def check_cut(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Hold a cut model's logits to those with the layers bypassed; the value is the largest difference.

    Raises:
        ProofError: if they are not the same.
    """
    difference = (logits - expected).abs().max().item()
    if not difference <= 1e-4 * max(expected.abs().max().item(), 1.0):
        raise ProofError(
            f"the cut model's logits differ by {difference:.3g} from the model with the layers bypassed; nothing was kept: "
            "please report the model's family"
        )
    return float(difference)


def write_and_prove(
    model: Any,
    tokenizer: Any,
    directory: Path,
    proof_ids: torch.Tensor,
    trust_remote_code: bool,
    *,
    dense: Callable[[], Decoder],
    expected: torch.Tensor | None = None,
) -> tuple[Proof, Any]:
    """Write a model as it is now, and hold what is written to `expected`: its own logits, trained after its cut, if None.

    Only a cache that is wrong is held to that of the `dense` model.
    """
    if expected is None:
        expected = bypassed_logits(Decoder(model), (), proof_ids)
    save_checkpoint(model, tokenizer, directory)
    return prove_checkpoint(directory, proof_ids, expected, trust_remote_code=trust_remote_code, dense=dense)


def sharing_copy(model: Any) -> Any:
    """A copy of the modules and the configuration that shares every tensor with the model."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def sizes(dense: Any, pruned: Any, directory: Path) -> tuple[int, int]:
    """Bytes of the weights on disk, dense and pruned; the dense model's as if written the same way."""
    written = directory_size(directory)
    return written + sum(
        count_parameters(model) * model.dtype.itemsize * sign for model, sign in ((dense, 1), (pruned, -1))
    ), written


def add_speed(dense: dict[str, Any], pruned: dict[str, Any], model: Any, pruned_model: Any, progress: Progress) -> None:
    """Measure the tokens per second of both, in turn, into their metrics: one sequence, in as much context as there is."""
    models = {"dense": model, "pruned": pruned_model}
    context = min(context_of(model.config) or _PROMPT_TOKENS + _NEW_TOKENS for model in models.values())
    if context < 2:
        return
    new_tokens = min(_NEW_TOKENS, context // 2)
    prompt_tokens = min(_PROMPT_TOKENS, context - new_tokens)
    settings = SpeedSettings(prompt_tokens=prompt_tokens, new_tokens=new_tokens, batch_sizes=(1,), repeats=3)
    for measured in measure_speed(models, settings, progress=progress).values():
        for metrics, name in ((dense, "dense"), (pruned, "pruned")):
            for way, tokens in (("prefill", prompt_tokens), ("decode", new_tokens)):
                seconds = [getattr(laps, way) for laps in measured[name]]
                metrics[f"{way}_tokens_per_second"] = tokens / median(seconds)
                metrics[f"{way}_tokens_per_second_by_turn"] = [tokens / each for each in seconds]


def handed_over(out: str | Path) -> Pruned:
    """What a run that had come to its end has left at `out`."""
    about = Path(out).expanduser() / "secateur"
    record = json.loads((about / "record.json").read_text(encoding="utf-8"))
    return Pruned(
        path=Path(out), plan=PruningPlan.load(about / "plan.json"), proof=Proof(**record["proof"]), record=record
    )


def write_about(
    directory: Path, source: str | Path, plan: PruningPlan, record: dict[str, Any], *, out: str | Path
) -> None:
    """Write plan, record, model card, licence and report into a checkpoint that will be at `out`."""
    about = directory / "secateur"
    about.mkdir()
    plan.save(about / "plan.json")
    write_json(about / "record.json", record)
    described = described_in(source, revision=record["model"]["revision"])
    for file in () if described is None else licence_files(described):
        shutil.copyfile(file, directory / file.name)
    card = model_card(record, str(source), inherited={} if described is None else inherited_metadata(described))
    (directory / "README.md").write_text(card, encoding="utf-8")
    (about / "report.html").write_text(
        report_page([replace(load_run(directory), name=Path(out).absolute().name)]), encoding="utf-8"
    )
