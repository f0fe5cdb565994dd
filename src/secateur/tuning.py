"""Fine-tune on a task, pruned on the way: score, prune, merge, prove the cut, fine-tune what is left, measure.

While a run lasts, `OUT.work` beside its output holds the request, the plan, the pruned model before its fine-tuning and the
Trainer's checkpoints. It vanishes when the run ends well; after an interrupt, `resume=True` goes on from there.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from secateur.data.examples import Examples
from secateur.data.task import TaskSettings, calibration_windows
from secateur.decoder import Decoder, unwrapped
from secateur.depth import layer_count
from secateur.errors import ProofError, RequestError
from secateur.estimation.tuning import tuning_peak
from secateur.evaluation.intervals import smallest_shown
from secateur.evaluation.memory import PeakMemory
from secateur.evaluation.tasks import Metric, check_metric, suitable
from secateur.loading import autocast_dtype, load_config, load_tokenizer
from secateur.methods import Method, Run, method_named
from secateur.plan import PruningPlan
from secateur.processes import by_first, sharded
from secateur.progress import Progress, Silent, duration, in_one_step
from secateur.report.log import Logged
from secateur.report.record import describe_model, directory_size, redacted_command, run_record
from secateur.request import Pruned, Target, check_target, num_to_drop
from secateur.resumption import Work, finished, open_work, resumable
from secateur.stages import (
    LESS_WHAT_IS_DONE,
    Stages,
    add_speed,
    agreed_plan,
    check_cut,
    handed_over,
    memory_line,
    setting_here,
    tokens_per_second,
    write_about,
    write_and_prove,
)
from secateur.surgery.checkpoint import Proof, bypassed_logits
from secateur.surgery.live import remove_layers_
from secateur.surgery.names import new_numbers
from secateur.surgery.output import check_output, new_directory
from secateur.surgery.weights import num_bytes
from secateur.task_workbench import TaskWorkbench
from secateur.training.checkpoints import Keeping
from secateur.training.lora import adapters_of_kept, gradient_checkpointing_quietly
from secateur.training.precision import Stored, in_float32, of_model, round_back_, to_float32_
from secateur.training.rows import rows_of
from secateur.training.supervised import FineTuning, check_fine_tuning
from secateur.tuning_request import TuningRequest

__all__ = ["tune"]

_FEW = 100
"""Test items below which it is said beforehand what they will not show."""


def tune(
    source: str | Path,
    *,
    task: TaskSettings,
    target: Target,
    out: str | Path,
    method: Method | str = "gradpruner",
    tuning: FineTuning | None = None,
    metric: Metric = "auto",
    max_new_tokens: int = 128,
    num_samples: int = 3,
    merge_adapters: bool = False,
    tune_dense: bool = False,
    continue_adapters: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_minutes: float = 5.0,
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
        max_new_tokens: the most tokens that are written of an answer, for the metric `generation`.
        num_samples: test examples that the record keeps, with what both models write after them, for people to read.
        merge_adapters: with LoRA, write one plain checkpoint instead.
        tune_dense: fine-tune the dense model alike first, for comparison.
        continue_adapters: with LoRA and `gradpruner`, go on from the scoring's adapters of the layers that stay, which are
            discarded otherwise. The two have one rank and one scale.
        overwrite: replace a checkpoint that is at `out`.
        resume: go on with the run that was interrupted.
        checkpoint_minutes: checkpoints are written between epochs as well where as much work would be lost otherwise; 0 is after
            every step.
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
    asked = TuningRequest(
        source=source, task=task, target=target, tuning=tuning or FineTuning(), metric=metric, dtype=dtype,
        method=method_named(method)() if isinstance(method, str) else method, precision=precision, revision=revision,
        seed=seed, trust_remote_code=trust_remote_code, merge_adapters=merge_adapters, tune_dense=tune_dense,
        continue_adapters=continue_adapters, max_new_tokens=max_new_tokens, num_samples=num_samples,
    )  # fmt: skip
    asked.method.check_launcher(chooses=asked.target.layers is None)
    stages = Stages(Logged(progress or Silent()))
    same = asked.identity()  # here, where all processes are
    if resume and by_first(lambda: finished(out, same, overwrite=overwrite)):
        stages.progress.note(f"the run to {out} is finished already; nothing is left to do")
        return handed_over(out)
    check_output(out, overwrite=overwrite)
    work = by_first(lambda: open_work(out, same, resume=resume, minutes=checkpoint_minutes))
    with resumable(work, command=redacted_command(command or sys.argv)), PeakMemory() as memory:
        with stages.stage("load"):
            decoder, bench = _loaded(asked, stages.progress)
            model, about = decoder.model, describe_model(decoder.model, id=str(source), revision=revision)
        ahead = _preflight(asked, bench, decoder, work, speed=speed)
        stages.progress.note(f"{ahead}{LESS_WHAT_IS_DONE if resume else ''}")
        if few := _few_items(asked.metric, bench.data.test):
            stages.progress.note(few)
        work.begin({**same, "data": bench.data.describe(), "config": about["config_sha256"]})
        with stages.stage("measure dense"):
            bench.measure("dense", model, "measuring the dense model on the task")
        if tune_dense:
            with stages.stage("fine-tune dense"):
                _tune_dense(asked, bench, work.training("dense"))
        with stages.stage("choose and cut"):
            stored = to_float32_(model) if asked.wide else []
            plan, preparation, proof_ids = _pruned_start_(asked, bench, decoder, work)
            stored = of_model(model, stored)
        stages.progress.note(f"layers dropped: {', '.join(map(str, plan.dropped))} of 0..{plan.num_layers - 1}")
        with stages.stage("fine-tune"):
            adapters = work.kept_adapters() if continue_adapters else None
            tuned, training = bench.fine_tune_(model, work.training("start"), adapters=adapters)

        def written() -> tuple[Proof, dict[str, Any]]:
            with new_directory(out, overwrite=overwrite, needs=num_bytes(unwrapped(tuned))) as directory:
                with stages.stage("prove"), in_one_step(stages.progress, "writing the model and proving it"):
                    proof, proved = _write_and_prove(asked, bench, tuned, stored, proof_ids, directory, out)
                with stages.stage("measure pruned"):
                    bench.measure("pruned", proved, "measuring the pruned model on the task")
                    bench.metrics["pruned"]["size_bytes"] = directory_size(directory)
                    if speed:
                        add_speed(
                            bench.metrics["dense"], bench.metrics["pruned"], asked.load_model(), proved, stages.progress
                        )
                record = run_record(
                    command=command or sys.argv,
                    model=about,
                    method={"name": asked.method.name, "options": asked.method.options()},
                    data=bench.data.describe(),
                    dropped=plan.dropped,
                    scores=plan.scores,
                    preparation=preparation,
                    training={"settings": asdict(asked.tuning), **training},
                    adapter=asked.writes_adapter,
                    proof=dataclasses.asdict(proof),
                    metrics=bench.metrics,
                    comparison=bench.differences(),
                    generations=bench.samples(),
                    timings=stages.seconds,
                    peak_memory_bytes=memory.bytes,
                    seed=seed,
                )
                write_about(directory, source, plan, record, out=out)
                work.take_along(directory / "secateur")
            return proof, record

        proof, record = by_first(written)
    return Pruned(path=Path(out), plan=plan, proof=proof, record=record)


def _loaded(asked: TuningRequest, progress: Progress) -> tuple[Decoder, TaskWorkbench]:
    """The dense model, and what it is fine-tuned and measured on.

    Raises:
        RequestError: if it cannot be fine-tuned or pruned so.
    """
    asked.check_adapters()
    if asked.metric == "generation" and sharded():
        raise RequestError(
            "texts of different lengths cannot be written by a model in parts (FSDP); choose another --metric, or DDP"
        )
    config = load_config(asked.source, revision=asked.revision, trust_remote_code=asked.trust_remote_code)
    check_target(asked.target, layer_count(config))
    tokenizer = load_tokenizer(asked.source, revision=asked.revision, trust_remote_code=asked.trust_remote_code)
    data = asked.task.load(tokenizer, asked.seed)
    check_metric(asked.metric, data.test)
    decoder = Decoder(asked.load_model())
    num_to_drop(asked.target, decoder)
    rows = rows_of(data.train, decoder.model, tokenizer, max_length=asked.tuning.max_length)
    run = Run(seed=asked.seed, precision=autocast_dtype(asked.precision, decoder.device), progress=progress)
    check_fine_tuning(decoder, asked.tuning, len(rows), validated=True, precision=run.precision)
    return decoder, TaskWorkbench(
        tokenizer=tokenizer,
        data=data,
        rows=rows,
        tuning=asked.tuning,
        metric=asked.metric,
        max_new_tokens=asked.max_new_tokens,
        num_samples=asked.num_samples,
        run=run,
    )


def _preflight(asked: TuningRequest, bench: TaskWorkbench, decoder: Decoder, work: Work, *, speed: bool) -> str:
    """One line: examples, steps, memory and about how long, from a short measurement here."""
    cost = bench.cost(
        decoder, asked.method, num_to_drop(asked.target, decoder), tune_dense=asked.tune_dense, speed=speed
    )
    task = cost.task
    setting = setting_here(decoder, bench.run, wide=asked.dtype == "auto")
    probe = torch.tensor([bench.rows[0]["input_ids"][:256]])
    rate = tokens_per_second(decoder, probe, bench.run)
    chosen, trained = work.left_of("start"), work.left_to_train("start")
    left = {
        "tune dense": work.left_to_train("dense"), "choose": chosen, "prepare": chosen, "fine-tune": trained,
        "validate": trained,
    }  # fmt: skip
    tokens = sum(number * left.get(phase, 1.0) for phase, number in cost.tokens().items())
    return (
        f"{task.num_train:,} training, {task.num_validation:,} validation and {task.num_test:,} test examples of "
        f"about {cost.rows.mean:.0f} tokens; {cost.num_steps:,} steps of fine-tuning on {asked.tuning.batch_size}; "
        f"{memory_line(decoder, lambda: tuning_peak(cost, setting))}; about "
        f"{duration(tokens / rate)} at {rate:,.0f} tokens/s"
    )


def _few_items(metric: Metric, test: Examples) -> str:
    """What so few test items will not show, where they are few."""
    if len(test) >= _FEW:
        return ""
    given = f"{len(test)} test item{'s are' if len(test) > 1 else ' is'} few"
    if suitable(metric, test) == "accuracy":
        return f"{given}: differences between models below {100 * smallest_shown(len(test)):.0f} points will not show"
    return f"{given}: only large differences between models will show"


def _tune_dense(asked: TuningRequest, bench: TaskWorkbench, keeping: Keeping) -> None:
    """Fine-tune the dense model alike, and measure it; its checkpoints are kept for a run that is resumed."""
    model = asked.load_model()
    with in_float32(model, wanted=asked.wide):
        tuned, training = bench.fine_tune_(model, keeping, "fine-tuning the dense model")
    bench.measure("dense_tuned", tuned, "measuring the dense model, fine-tuned")
    bench.metrics["dense_tuned"]["training"] = training


def _pruned_start_(
    asked: TuningRequest, bench: TaskWorkbench, decoder: Decoder, work: Work
) -> tuple[PruningPlan, dict[str, Any], torch.Tensor]:
    """The pruned model before its fine-tuning, cut in place: made and checked here, or taken from an interrupted run."""
    model, method = decoder.model, asked.method
    windows = calibration_windows(bench.data.train, model, bench.tokenizer)
    proof_ids = windows.take(2).input_ids

    def make_() -> dict[str, Any]:
        steps = asked.tuning.num_steps(len(bench.rows))
        if asked.target.layers is None:
            plan = method.plan_on_task(
                decoder, bench.rows, windows, drop=num_to_drop(asked.target, decoder), run=bench.run,
                total_steps=steps,
            )  # fmt: skip
        else:
            given = method.given(asked.target.layers, decoder.num_layers)
            plan = method.completed(given, decoder, windows, bench.run, rows=bench.rows, total_steps=steps)
        plan = agreed_plan(plan)
        if asked.continue_adapters:
            new_of = new_numbers(plan.num_layers, plan.dropped)
            work.keep_adapters(adapters_of_kept(plan.evidence.adapters, decoder.path, new_of))
        # With full training they are in float32 already.
        with in_float32(model, wanted=asked.dtype == "auto" and method.trains_weights(windows)):
            preparation = method.prepare_(decoder, windows, plan, run=bench.run) if method.prepares else {}
        expected = bypassed_logits(decoder, plan.dropped, proof_ids)
        remove_layers_(model, plan.dropped)
        check_cut(bypassed_logits(Decoder(model), (), proof_ids), expected)
        work.keep_plan(plan)
        return {"dropped": list(plan.dropped), "preparation": preparation}

    found = work.once_with_weights_(
        "start", model, make_, ready_=lambda found: remove_layers_(model, found["dropped"]), always=True
    )
    return work.kept_plan(), found["preparation"], proof_ids


def _write_and_prove(
    asked: TuningRequest,
    bench: TaskWorkbench,
    tuned: Any,
    stored: Stored,
    proof_ids: torch.Tensor,
    directory: Path,
    out: str | Path,
) -> tuple[Proof, Any]:
    """Write the model, and the adapter beside it if there is one; load both afresh and hold them to what was trained."""

    def dense() -> Decoder:
        return Decoder(asked.load_model())

    if not asked.writes_adapter:
        plain = tuned.merge_and_unload() if asked.tuning.train == "lora" else tuned
        round_back_(stored)
        return write_and_prove(plain, bench.tokenizer, directory, proof_ids, asked.trust_remote_code, dense=dense)
    from peft import PeftModel

    with_adapter = bypassed_logits(Decoder(tuned), (), proof_ids)
    tuned.peft_config["default"].base_model_name_or_path = str(Path(out).expanduser().absolute())
    tuned.save_pretrained(directory / "adapter", save_embedding_layers=False)  # asked, it looks for the base at `out`
    proof, base = write_and_prove(
        tuned.unload(), bench.tokenizer, directory, proof_ids, asked.trust_remote_code, dense=dense
    )
    with gradient_checkpointing_quietly():
        proved = PeftModel.from_pretrained(base, directory / "adapter").eval()
    difference = (bypassed_logits(Decoder(proved), (), proof_ids) - with_adapter).abs().max().item()
    if not difference <= proof.tolerance:
        raise ProofError(
            f"the written adapter's logits differ by {difference:.3g} from the trained model's, more than rounding explains "
            f"({proof.tolerance:.2g}); nothing was kept: please report the model's family"
        )
    return dataclasses.replace(proof, max_difference=max(proof.max_difference, difference)), proved
