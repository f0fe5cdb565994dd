"""Fine-tune on a task, pruned on the way: score, prune, merge, prove the cut, fine-tune what is left, measure.

`tune` is what the command line runs; `gradpruner` is the same for a model that is in memory already.

While a run lasts, `OUT.work` beside its output holds the request, the plan, the pruned model before its fine-tuning and the
Trainer's checkpoints. It vanishes when the run ends well; after an interrupt, `resume=True` goes on from there.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from secateur.data import TokenBatches
from secateur.data.examples import Examples, load_examples
from secateur.data.prompts import context_length
from secateur.data.task import Task, TaskSettings, windows_of
from secateur.decoder import Decoder, unwrapped
from secateur.errors import OutputError, ProofError, RequestError
from secateur.evaluation.memory import PeakMemory
from secateur.evaluation.tasks import Metric, TaskResult, paired_difference, task_score
from secateur.loading import autocast_dtype, load_model, load_tokenizer
from secateur.methods import Method, Run, method_named
from secateur.methods.gradpruner import GradPruner
from secateur.plan import PruningPlan, count_to_drop, write_json
from secateur.progress import Progress, Silent
from secateur.report.record import count_parameters, describe_model, directory_size, run_record
from secateur.request import Pruned, Target, num_to_drop
from secateur.stages import (
    Stages,
    add_speed,
    check_cut,
    duration,
    tokens_per_second,
    write_about,
    write_and_prove,
)
from secateur.surgery.checkpoint import (
    Proof,
    bypassed_logits,
    check_output,
    new_directory,
    save_checkpoint,
)
from secateur.surgery.live import remove_layers_
from secateur.training.lora import gradient_checkpointing_quietly
from secateur.training.precision import Stored, round_back_, to_float32_
from secateur.training.rows import Rows, rows_of, rows_of_windows
from secateur.training.supervised import FineTuning, check_fine_tuning, fine_tune_

__all__ = ["gradpruner", "tune", "work_directory"]

logger = logging.getLogger(__name__)

_WINDOW, _MOST_WINDOWS = 256, 128  # of the task's text, for methods that calibrate on plain text


def work_directory(out: str | Path) -> Path:
    """Where an unfinished run to `out` keeps what it has done."""
    target = Path(out).expanduser().absolute()
    return target.with_name(f"{target.name}.work")


def tune(
    source: str | Path,
    *,
    task: TaskSettings,
    target: Target,
    out: str | Path,
    method: Method | str = "gradpruner",
    tuning: FineTuning | None = None,
    metric: Metric = "auto",
    merge_adapters: bool = False,
    tune_dense: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    dtype: str = "auto",
    precision: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    speed: bool = True,
    progress: Progress | None = None,
    command: Sequence[str] | None = None,
) -> Pruned:
    """Fine-tune a smaller model made of `source` on a task; the proven result is at `out`.

    Args:
        source: a hub id or a local checkpoint.
        task: the examples.
        target: how much goes.
        out: the new checkpoint's directory; it is there whole at the end, or not at all. With LoRA it is the pruned model,
            and `adapter/` in it what was trained, as peft saves it.
        method: chooses the layers, and merges; with its settings, or its name.
        tuning: how to fine-tune.
        metric: what is measured: `auto`, `accuracy`, `perplexity`, `generation`.
        merge_adapters: with LoRA, write one plain checkpoint instead.
        tune_dense: fine-tune the dense model alike first, for comparison.
        overwrite: replace a checkpoint that is at `out`.
        resume: go on with the run that was interrupted.
        dtype: of the weights: `auto`, `float32`, `bfloat16`, `float16`. Full training with `auto` trains 16-bit weights in
            float32, and writes them as they were stored.
        precision: of forward and backward passes in training: `auto`, `fp32`, `bf16`.
        revision: the branch, tag or commit of a hub id.
        trust_remote_code: run code that comes with the model.
        seed: of everything random.
        speed: measure tokens per second of both.
        progress: who watches.
        command: the command line, for the record.

    Raises:
        RequestError: if something asked for cannot be; nothing was changed.
        RunError: if it failed on the way; nothing is left at `out`.
    """
    method = method_named(method)() if isinstance(method, str) else method
    tuning = tuning or FineTuning()
    stages = Stages(progress or Silent())
    check_output(out, overwrite=overwrite)
    asked = _asked(
        source, method, task, target, tuning, metric=metric, dtype=dtype, precision=precision, revision=revision, seed=seed,
    )  # fmt: skip
    work = _open_work(out, asked, resume=resume)
    loading: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with _resumable(work), PeakMemory() as memory:
        with stages.stage("load"):
            tokenizer = load_tokenizer(source, **loading)
            data = task.load(tokenizer, seed)
            model = load_model(source, dtype=dtype, **loading)
            decoder = Decoder(model)
            drop = num_to_drop(target, decoder)
            rows = rows_of(data.train, model, tokenizer, max_length=tuning.max_length)
            about = describe_model(model, id=str(source), revision=revision)
        run = Run(seed=seed, precision=autocast_dtype(precision, decoder.device), progress=stages.progress)
        check_fine_tuning(decoder, tuning, len(rows), validated=True, precision=run.precision)
        measure = _Measure(tokenizer, metric, tuning.max_length, stages.progress)
        stages.progress.note(_preflight(decoder, rows, data, method, tuning, drop, run, tune_dense))

        metrics: dict[str, dict[str, Any]] = {}
        results: dict[str, TaskResult] = {}
        work.mkdir(parents=True, exist_ok=True)
        write_json(work / "request.json", asked)
        with stages.stage("measure dense"):
            results["dense"], metrics["dense"] = measure(model, data.test, "measuring the dense model on the task")
        if tune_dense:
            with stages.stage("fine-tune dense"):
                results["dense_tuned"], metrics["dense_tuned"] = _tuned_dense(
                    source, rows, data, tuning, measure, run, work / "dense",
                    greater_is_better=results["dense"].greater_is_better, dtype=dtype, **loading,
                )  # fmt: skip
        stored = to_float32_(model) if tuning.train == "full" and dtype == "auto" else []
        with stages.stage("choose and cut"):
            plan, preparation, proof_ids = _pruned_start(
                decoder, tokenizer, method, target, rows, data, drop, tuning, run, work, trust_remote_code
            )
        stages.progress.note(f"layers dropped: {', '.join(map(str, plan.dropped))} of 0..{plan.num_layers - 1}")
        decoder = Decoder(model)
        with stages.stage("fine-tune"):
            tuned, training = fine_tune_(
                decoder, rows, settings=tuning, work=work / "training", validate=measure.validate(data.validation),
                greater_is_better=results["dense"].greater_is_better, precision=run.precision, seed=seed,
                progress=stages.progress,
            )  # fmt: skip
        with new_directory(out, overwrite=overwrite) as directory:
            with stages.stage("prove"):
                proof, proved = _write_and_prove(
                    model, tuned, tokenizer, directory, proof_ids, stored, merge_adapters, trust_remote_code, out
                )
            with stages.stage("measure pruned"):
                results["pruned"], metrics["pruned"] = measure(
                    proved, data.test, "measuring the pruned model on the task"
                )
                metrics["pruned"]["size_bytes"] = directory_size(directory)
                if speed:
                    dense = load_model(source, dtype=dtype, **loading)
                    add_speed(metrics["dense"], metrics["pruned"], dense, proved, stages.progress)
            record = run_record(
                command=list(command or sys.argv),
                model=about,
                method={"name": method.name, "options": method.options()},
                data=data.describe(),
                dropped=list(plan.dropped),
                scores=None if plan.scores is None else list(plan.scores),
                preparation=preparation,
                training={"settings": asdict(tuning), **training},
                adapter=tuning.train == "lora" and not merge_adapters,
                proof=dataclasses.asdict(proof),
                metrics=metrics,
                comparison=_differences(results),
                timings=stages.seconds,
                peak_memory_bytes=memory.bytes,
                seed=seed,
            )
            write_about(directory, source, plan, record)
    shutil.rmtree(work, ignore_errors=True)
    return Pruned(path=Path(out), plan=plan, proof=proof, record=record)


def gradpruner(
    model: Any,
    tokenizer: Any,
    data: str | Examples | TokenBatches,
    *,
    drop: int | float,
    tuning: FineTuning | None = None,
    work: str | Path | None = None,
    seed: int = 0,
    precision: str = "auto",
    progress: Progress | None = None,
    **settings: Any,
) -> PruningPlan:
    """Prune a model in memory by GradPruner, in place: score, prune, merge, cut; and fine-tune what is left, if asked to.

    Args:
        model: a `transformers` causal language model.
        tokenizer: its tokenizer.
        data: the task's training examples, a SPEC of them, or windows of plain text.
        drop: how many layers go, or which share of them.
        tuning: fine-tune afterwards, all of `data` as settings say; LoRA's adapters are merged. Not at all if None.
        work: directory of the fine-tuning's checkpoints; none are kept if None.
        seed: of everything random.
        precision: of the passes: `auto`, `fp32`, `bf16`.
        progress: who watches.
        settings: fields of `secateur.methods.gradpruner.GradPruner`.

    Returns:
        The plan that was carried out.

    Raises:
        RequestError: if something asked for cannot be; the model is unchanged.
        TrainingDivergedError: if the loss stops being finite.
    """
    method, decoder = GradPruner.of(settings), Decoder(model)
    count = count_to_drop(drop, decoder.num_layers)
    run = Run(seed=seed, precision=autocast_dtype(precision, decoder.device), progress=progress or Silent())
    length = (tuning or FineTuning()).max_length
    if isinstance(data, TokenBatches):
        rows, windows = rows_of_windows(data), data
    else:
        examples = load_examples(data, tokenizer=tokenizer) if isinstance(data, str) else data
        rows = rows_of(examples, model, tokenizer, max_length=length)
        windows = _windows(examples, model, tokenizer)
    if tuning is not None:
        check_fine_tuning(decoder, tuning, len(rows), validated=False, precision=run.precision)
    steps = None if tuning is None else tuning.num_steps(len(rows))
    plan = method.plan_on_task(decoder, rows, windows, drop=count, run=run, total_steps=steps)
    method.prepare_(decoder, windows, plan, run=run)
    remove_layers_(model, plan.dropped)
    if tuning is not None:
        with tempfile.TemporaryDirectory() as scratch:
            tuned, _ = fine_tune_(
                Decoder(model), rows, settings=tuning, work=Path(work or scratch), precision=run.precision, seed=seed,
                progress=run.progress, save=work is not None,
            )  # fmt: skip
        if tuning.train == "lora":
            tuned.merge_and_unload()
    return plan


# ---- before the first expensive step -------------------------------------------------------------------------------------


def _asked(
    source: str | Path,
    method: Method,
    task: TaskSettings,
    target: Target,
    tuning: FineTuning,
    **others: Any,
) -> dict[str, Any]:
    """What makes two runs the same run."""
    body = {
        "model": str(source), "method": {"name": method.name, **method.options()}, "task": asdict(task),
        "target": asdict(target), "tuning": asdict(tuning), **others,
    }  # fmt: skip
    return dict(json.loads(json.dumps(body, default=str)))


def _open_work(out: str | Path, asked: dict[str, Any], *, resume: bool) -> Path:
    """The work directory; what lies there must be this very run, and `resume` must say so."""
    work = work_directory(out)
    known = work / "request.json"
    if not resume:
        if known.exists():
            raise RequestError(
                f"{work} holds an unfinished run; add --resume to go on with it, or remove it to start over"
            )
        if work.exists() and not (work.is_dir() and not any(work.iterdir())):
            raise OutputError(f"{work} is needed while the run lasts, and holds something else; choose another --out")
        return work
    if not known.is_file():
        raise RequestError(f"there is nothing to resume: {work} holds no unfinished run; leave --resume out")
    before = json.loads(known.read_text(encoding="utf-8"))
    different = [name for name in asked if asked[name] != before.get(name)]
    if different:
        raise RequestError(
            f"the unfinished run in {work} had another {different[0]}; give the same options to resume it, or remove it"
        )
    return work


@contextmanager
def _resumable(work: Path) -> Iterator[None]:
    """Say on an interrupt what is kept; what holds nothing yet is removed."""
    created = [folder for folder in work.parents if not folder.exists()]  # the deepest first
    try:
        yield
    except BaseException as error:
        if not (work / "start").is_dir() and not (work / "dense").is_dir():
            shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):  # not empty: somebody else uses them
                for folder in created:
                    folder.rmdir()
        elif isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(
                f"what was done is kept in {work}; run the same command with --resume to go on"
            ) from None
        raise


def _preflight(
    decoder: Decoder, rows: Rows, data: Task, method: Method, tuning: FineTuning, drop: int, run: Run, tune_dense: bool
) -> str:
    """One line: examples, tokens and about how long, from a short measurement here."""
    lengths = [len(row["input_ids"]) for row in rows]
    mean = sum(lengths) / len(lengths)
    steps = tuning.num_steps(len(rows))
    trained = steps * tuning.batch_size * mean
    left = 1 - drop / decoder.num_layers
    scored = mean * sum(max(example.num_options, 1) for example in data.test) * (2 + left)
    scoring = method.num_scoring_steps(steps) * method.scoring_batch * mean if isinstance(method, GradPruner) else 0.0
    passes = 3.3 if tuning.train == "full" else 2.3
    tokens = scored + 2.3 * scoring + passes * trained * (left + tune_dense)
    probe = torch.tensor([rows[0]["input_ids"][:256]])
    rate = tokens_per_second(decoder, probe, run)
    return (
        f"{len(rows):,} training, {len(data.validation):,} validation and {len(data.test):,} test examples of about "
        f"{mean:.0f} tokens; {steps:,} steps of fine-tuning on {tuning.batch_size}; about {duration(tokens / rate)} at "
        f"{rate:,.0f} tokens/s"
    )


# ---- the stages of `tune` ------------------------------------------------------------------------------------------------


@dataclass
class _Measure:
    """Scores models on examples, always alike."""

    tokenizer: Any
    metric: Metric
    max_length: int
    progress: Progress

    def __call__(self, model: Any, examples: Examples, description: str) -> tuple[TaskResult, dict[str, Any]]:
        self.progress.note(f"{description} ({len(examples):,} examples)")
        result = task_score(
            model, self.tokenizer, examples, self.metric, max_length=self.max_length, progress=self.progress
        )
        layers = Decoder(unwrapped(model), verify=False).num_layers
        return result, {"num_layers": layers, "num_parameters": count_parameters(model), "task": result.describe()}

    def validate(self, examples: Examples) -> Any:
        """What the Trainer calls after each epoch."""

        def score(model: Any) -> dict[str, float]:
            result = task_score(model, self.tokenizer, examples, self.metric, max_length=self.max_length)
            return {"score": result.value}

        return score


def _pruned_start(
    decoder: Decoder,
    tokenizer: Any,
    method: Method,
    target: Target,
    rows: Rows,
    data: Task,
    drop: int,
    tuning: FineTuning,
    run: Run,
    work: Path,
    trust_remote_code: bool,
) -> tuple[PruningPlan, dict[str, Any], torch.Tensor]:
    """The pruned model before its fine-tuning, cut in place: made and checked here, or taken from an interrupted run."""
    windows = _windows(data.train, decoder.model, tokenizer)
    proof_ids = windows.take(2).input_ids
    start = work / "start"
    if start.is_dir():
        plan = PruningPlan.load(work / "plan.json")
        remove_layers_(decoder.model, plan.dropped)
        weights = load_model(start, device="cpu", trust_remote_code=trust_remote_code).state_dict()
        decoder.model.load_state_dict(weights)
        return plan, dict(json.loads((work / "preparation.json").read_text(encoding="utf-8"))), proof_ids
    if target.layers is None:
        steps = tuning.num_steps(len(rows))
        plan = method.plan_on_task(decoder, rows, windows, drop=drop, run=run, total_steps=steps)
    else:
        plan = PruningPlan(num_layers=decoder.num_layers, order=target.layers, method="given", options=method.options())
    preparation = method.prepare_(decoder, windows, plan, run=run) if method.prepares else {}
    expected = bypassed_logits(decoder, plan.dropped, proof_ids)
    model = decoder.model
    remove_layers_(model, plan.dropped)
    check_cut(bypassed_logits(Decoder(model), (), proof_ids), expected)
    plan.save(work / "plan.json")
    write_json(work / "preparation.json", preparation)
    with new_directory(start) as directory:
        save_checkpoint(model, tokenizer, directory)
    return plan, preparation, proof_ids


def _windows(examples: Examples, model: Any, tokenizer: Any) -> TokenBatches:
    length = context_length(model, _WINDOW)
    return windows_of(examples, tokenizer, sequence_length=length, num_sequences=_MOST_WINDOWS)


def _tuned_dense(
    source: str | Path,
    rows: Rows,
    data: Task,
    tuning: FineTuning,
    measure: _Measure,
    run: Run,
    work: Path,
    *,
    greater_is_better: bool,
    dtype: str,
    **loading: Any,
) -> tuple[TaskResult, dict[str, Any]]:
    """The dense model, fine-tuned alike; its checkpoints are kept for a run that is resumed."""
    model = load_model(source, dtype=dtype, **loading)
    stored = to_float32_(model) if tuning.train == "full" and dtype == "auto" else []
    tuned, training = fine_tune_(
        Decoder(model), rows, settings=tuning, work=work, validate=measure.validate(data.validation),
        greater_is_better=greater_is_better, precision=run.precision, seed=run.seed, progress=run.progress,
        description="fine-tuning the dense model",
    )  # fmt: skip
    round_back_(stored)
    result, metrics = measure(tuned, data.test, "measuring the dense model, fine-tuned")
    return result, {**metrics, "training": training}


def _write_and_prove(
    model: Any,
    tuned: Any,
    tokenizer: Any,
    directory: Path,
    proof_ids: torch.Tensor,
    stored: Stored,
    merge_adapters: bool,
    trust_remote_code: bool,
    out: str | Path,
) -> tuple[Proof, Any]:
    """Write the model, and the adapter beside it if there is one; load both afresh and hold them to what was trained."""
    if tuned is model or merge_adapters:
        plain = model if tuned is model else tuned.merge_and_unload()
        round_back_(stored)
        return write_and_prove(plain, tokenizer, directory, proof_ids, trust_remote_code)
    from peft import PeftModel

    with_adapter = bypassed_logits(Decoder(tuned), (), proof_ids)
    tuned.peft_config["default"].base_model_name_or_path = str(Path(out).expanduser().absolute())
    tuned.save_pretrained(directory / "adapter", save_embedding_layers=False)  # asked, it looks for the base at `out`
    proof, base = write_and_prove(tuned.unload(), tokenizer, directory, proof_ids, trust_remote_code)
    with gradient_checkpointing_quietly():
        proved = PeftModel.from_pretrained(base, directory / "adapter").eval()
    difference = (bypassed_logits(Decoder(proved), (), proof_ids) - with_adapter).abs().max().item()
    if not difference <= proof.tolerance:
        raise ProofError(
            f"the written adapter's logits differ by {difference:.3g} from the trained model's, more than rounding explains "
            f"({proof.tolerance:.2g}); nothing was kept: please report the model's family"
        )
    return dataclasses.replace(proof, max_difference=max(proof.max_difference, difference)), proved


def _differences(results: dict[str, TaskResult]) -> dict[str, Any]:
    """The pruned model's figure less each other's, with 95 % intervals over the same items."""
    return {
        name: dict(zip(("difference", "low", "high"), paired_difference(results["pruned"], other), strict=True))
        for name, other in results.items()
        if name != "pruned"
    }
