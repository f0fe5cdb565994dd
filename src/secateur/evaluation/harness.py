"""Tasks of lm-evaluation-harness through its Python API: `pip install 'secateur[eval]'`.

Prompts, metrics and standard errors are the harness's own. Deviation: log-likelihoods are taken in float32 whatever the
weights are, as bfloat16 would round sums to two or three figures. Of a task's metrics the main one is `acc_norm` where it
has that, else `acc`: the convention behind the published zero-shot means of layer pruning (69.00 for LLaMA2-7B).
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import logging
import math
import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch

from secateur.errors import DataError, RequestError
from secateur.evaluation.answering import answering
from secateur.evaluation.inference import inference
from secateur.loading import quiet_transformers
from secateur.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["HarnessScore", "HarnessTasks", "harness_scores", "mean_score"]

logger = logging.getLogger(__name__)

_BATCH_SIZE = 16
_ACCURACIES = ("acc_norm", "acc", "exact_match")
"""Shares of right answers, the main metric first: only these are averaged over tasks."""


@dataclass(frozen=True, kw_only=True)
class HarnessScore:
    """How good a model is at one task."""

    task: str
    """The harness's name of the task."""

    metric: str
    """The main metric, as the harness calls it; with a filter after a comma where its answers went through one."""

    value: float
    """The main metric's value."""

    stderr: float
    """Its standard error over items, as the harness estimates it; NaN where it does not."""

    num_items: int
    """Items scored."""

    num_fewshot: int
    """Examples in the prompt."""

    greater_is_better: bool
    """Whether the better of two models has the larger value."""

    metrics: dict[str, dict[str, float]]
    """Every metric: its `value` and `stderr`."""

    def describe(self) -> dict[str, Any]:
        """What a record says about this score."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class HarnessTasks:
    """Tasks whose files were found, whose data is at hand, and whose first prompt could be built."""

    tasks: Mapping[str, Any]
    """Name → `lm_eval.api.task.Task`, in the order asked for; groups and tags are taken apart."""

    limit: int | None
    """Items scored of each task, the first; all if None."""

    seed: int
    """Of the examples in the prompt, and of answers that are sampled."""

    @classmethod
    def load(
        cls,
        names: Sequence[str],
        *,
        include_path: str | Path | None = None,
        limit: int | None = None,
        num_fewshot: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> HarnessTasks:
        """Find tasks and load their data; no model is needed.

        Args:
            names: of tasks, groups or tags.
            include_path: a folder of further task files, which go before the harness's own of the same name. Where all
                names are in it the harness's fifteen thousand are not read.
            limit: items of each task: the first; all if None.
            num_fewshot: examples in the prompt; None means what each task says, else 0. A task that says 0 keeps it.
            seed: of the choice of examples, and of answers that are sampled.
            progress: told if all of the harness's files have to be read.

        Raises:
            RequestError: if lm-eval is not installed, a name or the folder is unknown, a number makes no sense, or a
                task runs code or looks at pictures.
            DataError: if the data of a task cannot be loaded or does not fit it.
        """
        _check_request(names, include_path, limit, num_fewshot)
        with _kept_apart():
            manager = _task_manager(names, include_path, progress or Silent())
            tasks: dict[str, Any] = {}
            for name in dict.fromkeys(names):
                _check_name(name, manager.all_tasks)
                with _explained(name):
                    loaded = manager.load([name])["tasks"]
                    for task in loaded.values():
                        _set_fewshot(task, num_fewshot, seed)
                        task.build_all_requests(limit=1, rank=0, world_size=1)  # what is wrong with it shows now
                tasks |= loaded
        for name, task in tasks.items():
            if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
                raise RequestError(
                    f"the task '{name}' runs code or shows pictures, which is not done here; leave it out"
                )
        return cls(tasks=tasks, limit=limit, seed=seed)

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = _BATCH_SIZE,
        progress: Progress | None = None,
    ) -> list[HarnessScore]:
        """Have a model do the tasks; every model gets the same prompts.

        Args:
            model: a causal language model, on any device and in any mode; both stay as they are.
            tokenizer: its tokenizer, which stays as it is.
            batch_size: sequences a forward pass.
            progress: told of each request.

        Raises:
            RequestError: if the batch size is below one, or neither tokenizer nor model has a token that ends a text.
        """
        if batch_size < 1:
            raise RequestError(f"the batch size is {batch_size}; choose 1 or more")
        with _kept_apart(), inference(model):
            # Not `simple_evaluate`, which also seeds every global generator and runs programs to describe the machine.
            from lm_eval import evaluate

            torch.manual_seed(self.seed)  # inside `inference`, which gives the generator back
            for task in self.tasks.values():
                task.set_fewshot_seed(seed=self.seed)
            lm = answering(model, tokenizer, batch_size=batch_size, progress=progress or Silent())
            results = evaluate(
                lm=lm, task_dict={"tasks": dict(self.tasks), "groups": {}}, limit=self.limit, log_samples=False
            )
        return [_score(name, results) for name in self.tasks]


def harness_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = _BATCH_SIZE,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[HarnessScore]:
    """`HarnessTasks.load` and `HarnessTasks.score` at once, for one model.

    Raises:
        RequestError: if the request is wrong, as `HarnessTasks.load` says.
        DataError: if the data of a task cannot be loaded.
    """
    found = HarnessTasks.load(
        tasks, include_path=include_path, limit=limit, num_fewshot=num_fewshot, seed=seed, progress=progress
    )
    return found.score(model, tokenizer, batch_size=batch_size, progress=progress)


def mean_score(scores: Sequence[HarnessScore]) -> tuple[float, float] | None:
    """The mean accuracy over tasks, each counting once, and its standard error √(Σ stderr²)/n: tasks are independent.

    None where there are fewer than two tasks, or a main metric is no share of right answers.
    """
    if len(scores) < 2 or any(score.metric.partition(",")[0] not in _ACCURACIES for score in scores):
        return None
    mean = math.fsum(score.value for score in scores) / len(scores)
    return mean, math.hypot(*(score.stderr for score in scores)) / len(scores)


# ---- what is asked for ------------------------------------------------------------------------------------------------


def _check_request(
    names: Sequence[str], include_path: str | Path | None, limit: int | None, num_fewshot: int | None
) -> None:
    """Refuse what can be refused without reading anything."""
    if not names:
        raise RequestError("no task is named; give one or more, such as piqa,arc_easy")
    if limit is not None and limit < 1:
        raise RequestError(f"the limit is {limit} items a task; choose 1 or more, or leave it out for all")
    if num_fewshot is not None and num_fewshot < 0:
        raise RequestError(f"the number of examples in the prompt is {num_fewshot}; choose 0 or more")
    if include_path is not None and next(Path(include_path).glob("**/*.yaml"), None) is None:
        what = "holds no task files (*.yaml)" if Path(include_path).is_dir() else "is no folder"
        raise RequestError(f"{include_path} {what}; give a folder of lm-eval task files to --include-path")
    if importlib.util.find_spec("lm_eval") is None:
        raise RequestError("tasks need lm-eval, which is not installed: pip install 'secateur[eval]'")


def _task_manager(names: Sequence[str], include_path: str | Path | None, progress: Progress) -> Any:
    """What knows every task file that is needed; to read all of the harness's own takes many seconds."""
    import lm_eval.tasks

    if include_path is not None:
        manager = lm_eval.tasks.TaskManager(include_path=include_path, include_defaults=False)
        if all(_is_whole(name, manager.task_index) for name in names):
            return manager
    progress.note("reading the task files of lm-evaluation-harness, some fifteen thousand")
    return lm_eval.tasks.TaskManager(include_path=include_path)


def _is_whole(name: str, index: Mapping[str, Any]) -> bool:
    """Whether a task, or all that a group consists of, is in this index."""
    if name not in index:
        return False
    members = (index[name].cfg or {}).get("task")
    return not isinstance(members, list) or all(isinstance(part, str) and _is_whole(part, index) for part in members)


def _check_name(name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "`lm-eval ls tasks` lists them; --include-path adds your own"
        raise RequestError(f"unknown task '{name}'; {hint}")


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn whatever goes wrong with a task's file or data into one line."""
    try:
        yield
    except Exception as error:  # of any type: the hub, a file, a template, too few examples for the prompt
        logger.debug("loading a task failed", exc_info=True)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"cannot load the task '{name}'; go online for its data, or give task files on local data with "
            f"--include-path (reason: {reason})"
        ) from error


def _set_fewshot(task: Any, num_fewshot: int | None, seed: int) -> None:
    """As the harness decides it: what is asked for goes before what the task says, but not before a 0 there."""
    own = task.get_config("num_fewshot")
    if own is None or (num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=seed)


# ---- what comes back ----------------------------------------------------------------------------------------------------


def _score(name: str, results: Mapping[str, Any]) -> HarnessScore:
    """One task of what `lm_eval.evaluate` gives."""
    metrics: dict[str, dict[str, float]] = {}
    for key, value in results["results"][name].items():
        metric, comma, filter_name = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            stderr = results["results"][name].get(f"{metric}_stderr,{filter_name}")
            label = metric if filter_name == "none" else key
            metrics[label] = {"value": float(value), "stderr": float(stderr) if _is_number(stderr) else math.nan}
    main = next((label for wanted in _ACCURACIES for label in metrics if label.partition(",")[0] == wanted), None)
    main = main or next(iter(metrics))
    return HarnessScore(
        task=name,
        metric=main,
        value=metrics[main]["value"],
        stderr=metrics[main]["stderr"],
        num_items=int(results["n-samples"][name]["effective"]),
        num_fewshot=int(results["n-shot"][name] or 0),
        greater_is_better=bool(results["higher_is_better"][name].get(main.partition(",")[0], True)),
        metrics=metrics,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))  # the harness writes "N/A" where it has no standard error


@contextmanager
def _kept_apart() -> Iterator[None]:
    """No bars, prints, warnings and advice of the harness in here, and the generators that it uses are given back.

    A console that was open before still shows what it is told.
    """
    log = logging.getLogger("lm_eval")
    level, plain, arrays = log.level, random.getstate(), numpy.random.get_state()
    log.setLevel(logging.ERROR)
    try:
        with (
            Path(os.devnull).open("w", encoding="utf-8") as nowhere,
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
            warnings.catch_warnings(),
            quiet_transformers(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
        random.setstate(plain)
        numpy.random.set_state(arrays)
