"""Decide, prepare, cut, prove: the methods, the surgery and the evaluation, put together once.

`prune` is what the command line runs; `elder` is the same for a model that is in memory already.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from secateur.data import TokenBatches, calibration_and_held_out, evaluation_windows
from secateur.decoder import Decoder
from secateur.errors import PlanError, RequestError, TrainingDivergedError
from secateur.evaluation.generation import generations
from secateur.evaluation.memory import PeakMemory
from secateur.evaluation.perplexity import perplexity
from secateur.evaluation.speed import measure_speed
from secateur.loading import autocast_dtype, load_model, load_tokenizer
from secateur.methods import Cost, Method, Run, method_named
from secateur.methods.base import measuring
from secateur.plan import PruningPlan, count_to_drop, write_json
from secateur.progress import Progress, Silent
from secateur.report.card import inherited_metadata, model_card
from secateur.report.record import count_parameters, describe_model, directory_size, run_record
from secateur.surgery.checkpoint import (
    Proof,
    bypassed_logits,
    check_output,
    new_directory,
    prove_checkpoint,
    save_checkpoint,
)
from secateur.surgery.live import remove_layers_

__all__ = ["PROMPTS", "Pruned", "Target", "TextSettings", "elder", "evaluate", "num_to_drop", "prune", "score"]

logger = logging.getLogger(__name__)

PROMPTS = (
    "The three states of matter are",
    "To make a cup of tea, first",
    "Paris is the capital of",
)
"""What dense and pruned model both continue, so that a person can see what the numbers mean."""


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Which text, and how much of it."""

    data: str
    """Calibration text: wikitext2, c4, ptb, python-docs, hub:owner/name[/config][:split], or a local file or folder."""

    eval_data: str | None = None
    """Text to measure perplexity on; a part of the calibration text that is not calibrated on if null."""

    sequence_length: int = 256
    """Tokens per window."""

    num_sequences: int = 128
    """Calibration windows."""

    num_eval_sequences: int = 64
    """Windows to measure perplexity on: the first, in order."""

    batch_size: int = 4
    """Windows per forward pass."""

    def load(self, tokenizer: Any, seed: int) -> tuple[TokenBatches, TokenBatches]:
        """Calibration and held-out windows, which never overlap.

        Raises:
            DataError: if a text cannot be read or is too short.
        """
        return calibration_and_held_out(
            self.data,
            tokenizer,
            eval_data=self.eval_data,
            sequence_length=self.sequence_length,
            num_sequences=self.num_sequences,
            num_eval_sequences=self.num_eval_sequences,
            batch_size=self.batch_size,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class Target:
    """How much is to go; exactly one of them is given."""

    drop: int | float | None = None
    """A count of layers, or a share of them."""

    target_params: float | None = None
    """The share of the parameters that is to be left at most."""

    layers: tuple[int, ...] | None = None
    """The layers themselves."""

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) != 1:
            have = " and ".join(f"--{name.replace('_', '-')}" for name in given) or "none"
            raise RequestError(f"say how much to drop with one of --drop, --target-params or --layers (given: {have})")
        if self.target_params is not None and not 0 < self.target_params < 1:
            raise RequestError(f"--target-params is a share between 0 % and 100 %, not {100 * self.target_params:g} %")


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What `prune` hands over."""

    path: Path
    """The checkpoint directory."""

    plan: PruningPlan
    """Which layers went."""

    proof: Proof
    """How the checkpoint was proven."""

    record: dict[str, Any]
    """`secateur/record.json`."""


def num_to_drop(target: Target, decoder: Decoder) -> int:
    """The number of layers that `target` means for this model.

    Raises:
        PlanError: if no layer or every layer would have to go.
    """
    num_layers = decoder.num_layers
    if target.layers is not None:
        return len(PruningPlan(num_layers=num_layers, order=target.layers).order)
    if target.drop is not None:
        return count_to_drop(target.drop, num_layers)
    assert target.target_params is not None  # noqa: S101  one of the three is given
    total = count_parameters(decoder.model)
    per_layer = count_parameters(decoder.layers) / num_layers
    for count in range(1, num_layers):
        if total - count * per_layer <= target.target_params * total:
            return count
    least = (total - (num_layers - 1) * per_layer) / total
    raise PlanError(
        f"cannot get down to {100 * target.target_params:g} % of the parameters: one layer of {num_layers} alone leaves "
        f"{100 * least:.0f} %; choose more"
    )


def prune(
    source: str | Path,
    *,
    method: Method | str,
    text: TextSettings,
    target: Target,
    out: str | Path,
    overwrite: bool = False,
    dtype: str = "auto",
    precision: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    prompts: Sequence[str] = PROMPTS,
    speed: bool = True,
    progress: Progress | None = None,
    command: Sequence[str] | None = None,
) -> Pruned:
    """Make a smaller checkpoint of `source` at `out`, and prove it.

    Args:
        source: a hub id or a local checkpoint.
        method: a method with its settings, or its name.
        text: calibration and evaluation text.
        target: how much goes.
        out: the new checkpoint's directory; it is there whole at the end, or not at all.
        overwrite: replace a checkpoint that is at `out`.
        dtype: of the weights: `auto`, `float32`, `bfloat16`, `float16`.
        precision: of forward and backward passes while choosing and preparing: `auto`, `fp32`, `bf16`. What is measured
            is always measured in the weights' own dtype.
        revision: the branch, tag or commit of a hub id.
        trust_remote_code: run code that comes with the model.
        seed: of everything random.
        prompts: continued by both models, for people to read.
        speed: measure tokens per second of both.
        progress: who watches.
        command: the command line, for the record.

    Raises:
        RequestError: if something asked for cannot be; nothing was changed.
        RunError: if it failed on the way; nothing is left at `out`.
    """
    method = method_named(method)() if isinstance(method, str) else method
    run = _Stages(progress or Silent())
    check_output(out, overwrite=overwrite)
    with PeakMemory() as memory:
        with run.stage("load"):
            tokenizer = load_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code)
            data, held_out = text.load(tokenizer, seed)
            model = load_model(source, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
            decoder = Decoder(model)
            drop = num_to_drop(target, decoder)
        context = Run(seed=seed, precision=autocast_dtype(precision, decoder.device), progress=run.progress)
        cost = method.cost(decoder.num_layers, drop, data)
        run.progress.note(preflight(decoder, data, held_out, cost, context))

        about = describe_model(model, id=str(source), revision=revision)
        with run.stage("measure dense"):
            dense = _quality(model, held_out, run.progress, "measuring the dense model's perplexity")
            dense_texts = generations(model, tokenizer, prompts) if prompts else []
        with run.stage("choose"):
            plan = _plan(method, decoder, data, drop, target, context)
        run.progress.note(f"layers to drop: {', '.join(map(str, plan.dropped))} of 0..{plan.num_layers - 1}")
        preparation: dict[str, Any] | None = None
        if method.prepares:
            with run.stage("prepare"):
                preparation = _prepare_(method, decoder, tokenizer, data, plan, context, out)
            with run.stage("measure before the cut"):
                gates = torch.full((decoder.num_layers,), method.final_gate())
                with decoder.gate(gates, layers=plan.dropped):
                    before = _quality(model, held_out, run.progress, "measuring perplexity just before the cut")
                preparation["perplexity_before_cut"] = before["perplexity"]
        with new_directory(out, overwrite=overwrite) as directory:
            with run.stage("cut and prove"):
                proof, pruned_model = _cut_and_prove(decoder, tokenizer, plan, data, directory, trust_remote_code)
            with run.stage("measure pruned"):
                pruned = _quality(pruned_model, held_out, run.progress, "measuring the pruned model's perplexity")
                texts = generations(pruned_model, tokenizer, prompts) if prompts else []
                dense["size_bytes"], pruned["size_bytes"] = _sizes(model, pruned_model, directory)
                if speed:
                    _add_speed(dense, pruned, model, pruned_model, run.progress)
            record = run_record(
                command=list(command or sys.argv),
                model=about,
                method={"name": method.name, "options": method.options()},
                data=data.describe(),
                eval_data=held_out.describe(),
                dropped=list(plan.dropped),
                scores=None if plan.scores is None else list(plan.scores),
                preparation=preparation,
                proof=dataclasses.asdict(proof),
                metrics={"dense": dense, "pruned": pruned},
                generations={"prompts": list(prompts), "dense": dense_texts, "pruned": texts},
                timings=run.seconds,
                peak_memory_bytes=memory.bytes,
                seed=seed,
            )
            _write_about(directory, source, plan, record)
    return Pruned(path=Path(out), plan=plan, proof=proof, record=record)


def score(
    source: str | Path,
    *,
    method: Method | str,
    text: TextSettings,
    drop: int | float = 0.25,
    dtype: str = "auto",
    precision: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> PruningPlan:
    """Decide only: the plan that `prune` would carry out, with a score for each layer.

    Raises:
        RequestError: if something asked for cannot be.
    """
    method = method_named(method)() if isinstance(method, str) else method
    progress = progress or Silent()
    tokenizer = load_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code)
    data, held_out = text.load(tokenizer, seed)
    model = load_model(source, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
    decoder = Decoder(model)
    count = count_to_drop(drop, decoder.num_layers)
    context = Run(seed=seed, precision=autocast_dtype(precision, decoder.device), progress=progress)
    cost = method.cost(decoder.num_layers, count, data)
    progress.note(preflight(decoder, data, held_out.take(1), Cost(choose_tokens=cost.choose_tokens), context))
    plan = method.plan(decoder, data, drop=count, run=context)
    return dataclasses.replace(
        plan, provenance={**plan.provenance, "model": str(source), "data": data.describe(), "seed": seed}
    )


def evaluate(
    sources: Sequence[str | Path],
    *,
    data: str,
    sequence_length: int = 256,
    num_sequences: int = 128,
    batch_size: int = 4,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """The perplexity of each model on the first windows of one text; one dictionary a model.

    Raises:
        RequestError: if a model or the text cannot be read.
    """
    progress = progress or Silent()
    texts = []  # of all models before the first is measured, so that what is wrong is said at once
    for source in sources:
        tokenizer = load_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code)
        texts.append(
            evaluation_windows(
                data, tokenizer, sequence_length=sequence_length, num_sequences=num_sequences, batch_size=batch_size
            )
        )
    rows = []
    for source, windows in zip(sources, texts, strict=True):
        model = load_model(source, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
        quality = _quality(model, windows, progress, f"measuring the perplexity of {source}")
        rows.append({"model": str(source), **quality, "data": windows.describe()})
    return rows


def elder(
    model: Any,
    tokenizer: Any,
    data: str | TokenBatches,
    *,
    drop: int | float,
    seed: int = 0,
    precision: str = "auto",
    text: TextSettings | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> PruningPlan:
    """Prune a model in memory by ELDeR, in place: choose, prepare, cut.

    Args:
        model: a `transformers` causal language model.
        tokenizer: its tokenizer.
        data: calibration tokens, or a data SPEC.
        drop: how many layers go, or which share of them.
        seed: of everything random.
        precision: of the passes: `auto`, `fp32`, `bf16`.
        text: how much text to take where `data` is a SPEC.
        progress: who watches.
        settings: fields of `secateur.methods.elder.Elder`.

    Returns:
        The plan that was carried out.

    Raises:
        RequestError: if something asked for cannot be; the model is unchanged.
        TrainingDivergedError: if the loss stops being finite; the model holds the last good weights, all layers in place.
    """
    from secateur.methods.elder import Elder

    known = {field.name for field in dataclasses.fields(Elder)}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise RequestError(f"elder has no setting '{unknown[0]}'; choose among {', '.join(sorted(known))}")
    method = Elder(**settings)
    decoder = Decoder(model)
    count = count_to_drop(drop, decoder.num_layers)
    if isinstance(data, str):
        data, _ = dataclasses.replace(text or TextSettings(data=data), data=data).load(tokenizer, seed)
    context = Run(seed=seed, precision=autocast_dtype(precision, decoder.device), progress=progress or Silent())
    plan = method.plan(decoder, data, drop=count, run=context)
    method.prepare_(decoder, data, plan, run=context)
    remove_layers_(model, plan.dropped)
    return plan


# ---- the stages of `prune` ---------------------------------------------------------------------------------------------


@dataclass
class _Stages:
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - start, 3)
            logger.info("%s: %.1f s", name, self.seconds[name])


def preflight(decoder: Decoder, data: TokenBatches, held_out: TokenBatches, cost: Cost, run: Run) -> str:
    """One line before the first expensive step: memory, tokens, and about how long, from a short measurement here."""
    probe = data.take(1).input_ids
    fast = _tokens_per_second(decoder, probe, run)
    plain = fast if run.precision is None else _tokens_per_second(decoder, probe, Run())
    measured = 3 * held_out.num_tokens
    seconds = (cost.choose_tokens + cost.prepare_tokens) / fast + measured / plain
    weights = sum(parameter.numel() * parameter.element_size() for parameter in decoder.model.parameters())
    vocabulary = int(getattr(decoder.config, "vocab_size", 0) or 0)
    logits = 4 * 4 * data.batch_size * data.sequence_length * vocabulary
    memory = max(cost.memory_copies, 1.8) * weights + logits + 0.6e9
    room = (
        psutil.virtual_memory().available
        if decoder.device.type == "cpu"
        else torch.cuda.mem_get_info(decoder.device)[0] + weights
    )
    warning = f"; only {room / 1e9:.1f} GB are free" if memory > room else ""
    tokens = cost.choose_tokens + cost.prepare_tokens + measured
    return (
        f"about {memory / 1e9:.1f} GB of memory{warning}, {tokens / 1e3:,.0f} thousand tokens of forward passes or their "
        f"like ({cost.training_tokens:,} tokens trained on), about {_duration(seconds)} at {fast:,.0f} tokens/s"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _tokens_per_second(decoder: Decoder, input_ids: torch.Tensor, run: Run) -> float:
    with measuring(decoder, run):
        decoder.logits(input_ids[:, :8])  # the first call sets things up
        start = time.perf_counter()
        decoder.logits(input_ids).sum().item()
        return float(input_ids.numel() / (time.perf_counter() - start))


def _quality(model: Any, held_out: TokenBatches, progress: Progress, description: str) -> dict[str, Any]:
    result = perplexity(model, held_out, progress=progress, description=description)
    return {
        "num_layers": Decoder(model, verify=False).num_layers,
        "num_parameters": count_parameters(model),
        "perplexity": result.perplexity,
        "nll": result.nll,
        "nll_stderr": result.stderr,
        "window": result.window,
        "predicted_tokens": result.num_tokens,
    }


def _plan(method: Method, decoder: Decoder, data: TokenBatches, drop: int, target: Target, run: Run) -> PruningPlan:
    if target.layers is None:
        return method.plan(decoder, data, drop=drop, run=run)
    return PruningPlan(num_layers=decoder.num_layers, order=target.layers, method="given", options=method.options())


def _prepare_(
    method: Method, decoder: Decoder, tokenizer: Any, data: TokenBatches, plan: PruningPlan, run: Run, out: str | Path
) -> dict[str, Any]:
    """Prepare; where the training gives up, the last good weights are kept beside `out`."""
    try:
        return method.prepare_(decoder, data, plan, run=run)
    except TrainingDivergedError as error:
        places = (f"{Path(out)}.last-good{number or ''}" for number in itertools.count())
        kept = next(place for place in places if not Path(place).exists())
        with new_directory(kept) as directory:
            save_checkpoint(decoder.model, tokenizer, directory)
        raise TrainingDivergedError(f"{error} (saved, all layers in place, to {kept})") from error


def _cut_and_prove(
    decoder: Decoder, tokenizer: Any, plan: PruningPlan, data: TokenBatches, directory: Path, trust_remote_code: bool
) -> tuple[Proof, Any]:
    proof_ids = data.take(2).input_ids
    expected = bypassed_logits(decoder, plan.dropped, proof_ids)
    pruned = _sharing_copy(decoder.model)
    remove_layers_(pruned, plan.dropped)
    save_checkpoint(pruned, tokenizer, directory)
    return prove_checkpoint(directory, proof_ids, expected, trust_remote_code=trust_remote_code)


def _sharing_copy(model: Any) -> Any:
    """A copy of the modules and the configuration that shares every tensor with the model."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _sizes(dense: Any, pruned: Any, directory: Path) -> tuple[int, int]:
    """Bytes of the weights on disk, dense and pruned; the dense model's as if written the same way."""
    written = directory_size(directory)
    return written + sum(
        count_parameters(model) * model.dtype.itemsize * sign for model, sign in ((dense, 1), (pruned, -1))
    ), written


def _add_speed(
    dense: dict[str, Any], pruned: dict[str, Any], model: Any, pruned_model: Any, progress: Progress
) -> None:
    speeds = measure_speed({"dense": model, "pruned": pruned_model}, progress=progress)
    for metrics, name in ((dense, "dense"), (pruned, "pruned")):
        metrics["prefill_tokens_per_second"] = speeds[name].prefill_tokens_per_second
        metrics["decode_tokens_per_second"] = speeds[name].decode_tokens_per_second


def _write_about(directory: Path, source: str | Path, plan: PruningPlan, record: dict[str, Any]) -> None:
    about = directory / "secateur"
    about.mkdir()
    plan.save(about / "plan.json")
    write_json(about / "record.json", record)
    card = model_card(record, str(source), inherited=inherited_metadata(source))
    (directory / "README.md").write_text(card, encoding="utf-8")
