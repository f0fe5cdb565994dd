"""Several processes that do one thing: which one this is, what its share is, what the others found.

A launcher starts them (`torchrun`, `accelerate launch`), and `joined` makes them one group. Outside of it, and without a
launcher, every function here finds one process, does nothing more than that takes, and imports nothing.

Results that processes share are in the order of one process, so that sums of them round alike: `share_out`. What is done by
one process alone, writing first of all, goes through `by_first`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from secateur.errors import RequestError
from secateur.signals import finishing

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "agreed",
    "all_here",
    "apart",
    "by_first",
    "count",
    "fails_first",
    "in_order",
    "is_first",
    "is_of_another",
    "joined",
    "launched",
    "num_launched",
    "own_share",
    "sharded",
    "share_out",
    "summed_",
    "supposed",
    "zero_stage",
]

Item = TypeVar("Item")
Result = TypeVar("Result")

_PATIENCE = timedelta(hours=3)
"""How long a process waits for the others: what the first does alone takes minutes to hours, and the launcher ends them all
once one has died."""

_LAUNCHERS_WORDS = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
)  # fmt: skip


@dataclass
class _Group:
    """The processes that were joined, as this one sees them."""

    rank: int = 0
    count: int = 1
    joined: bool = False
    zero_stage: int = 0


_group = _Group()


def num_launched() -> int:
    """How many processes a launcher started."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def launched() -> bool:
    """Whether a launcher started several processes."""
    return num_launched() > 1


def count() -> int:
    """How many processes work together."""
    return _group.count


@contextmanager
def supposed(processes: int) -> Iterator[None]:
    """Have `count` say so many: to reckon what each of them would do, without any of the others."""
    before, _group.count = _group.count, processes
    try:
        yield
    finally:
        _group.count = before


def is_first() -> bool:
    """Whether this is the process that writes and speaks; so is one that works alone."""
    return _group.rank == 0


def sharded() -> bool:
    """Whether trainings are to keep a part of the weights on each process: accelerate's FSDP, as its launcher says."""
    return _group.joined and _says("ACCELERATE_USE_FSDP")


def zero_stage() -> int:
    """Which stage of DeepSpeed's ZeRO trainings go through, as accelerate's launcher says: 1 or 2; 0 without DeepSpeed."""
    return _group.zero_stage


@contextmanager
def joined() -> Iterator[None]:
    """The processes of the launcher as one group, if there are several, or one that is to use FSDP or DeepSpeed.

    Raises:
        RequestError: if they are to share weights in a way that is not supported here.
    """
    if not _started_by_a_launcher():
        yield
        return
    import torch
    from accelerate import PartialState
    from torch import distributed

    stage = _stage_asked_for()
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    _refuse_unsupported(str(state.distributed_type.value))
    _group.rank, _group.count, _group.joined = state.process_index, state.num_processes, True
    _group.zero_stage = stage
    try:
        yield
    finally:
        _group.rank, _group.count, _group.joined, _group.zero_stage = 0, 1, False, 0
    if distributed.is_initialized():  # DeepSpeed in one process does so when it trains
        distributed.destroy_process_group()  # not after an error: the others may never come to that


def _refuse_unsupported(kind: str) -> None:
    """What accelerate's configuration asks for, and trainings here cannot give."""
    if _says("ACCELERATE_USE_FSDP"):
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise RequestError("accelerate's configuration asks for FSDP 1; say fsdp_version: 2")
        if kind in ("MULTI_CPU", "NO"):
            raise RequestError(
                "accelerate shards weights (FSDP) on GPUs only, in processes of accelerate launch; on CPUs leave FSDP out of its "
                "configuration"
            )


def _stage_asked_for() -> int:
    """Of ZeRO, in accelerate's configuration or in a file of DeepSpeed's that it names; 0 without DeepSpeed.

    Raises:
        RequestError: if that is another than 1 or 2, if the file cannot be read, or DeepSpeed is not installed.
    """
    if not _says("ACCELERATE_USE_DEEPSPEED"):
        return 0
    from accelerate.utils import DeepSpeedPlugin

    try:
        stage = int(DeepSpeedPlugin().zero_stage)
    except ValueError as error:
        raise RequestError(f"accelerate's configuration of DeepSpeed: {' '.join(str(error).split())}") from error
    if stage not in (1, 2):
        why = "keeps no whole weights to cut" if stage == 3 else "shares nothing out"
        raise RequestError(f"DeepSpeed's ZeRO stage {stage} {why}; use stage 1 or 2, or FSDP with version 2")
    if find_spec("deepspeed") is None:
        raise RequestError(
            "accelerate's configuration asks for DeepSpeed, which is not installed: pip install deepspeed, or go without"
        )
    return stage


def _started_by_a_launcher() -> bool:
    """Whether the launcher's words are to be followed: it started several processes, or one that is to use FSDP or DeepSpeed."""
    return launched() or _says("ACCELERATE_USE_FSDP") or _says("ACCELERATE_USE_DEEPSPEED")


def _says(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")


@contextmanager
def apart() -> Iterator[None]:
    """The processes of the launcher as strangers, each with a device of its own, for work that they divide in another way."""
    if not _started_by_a_launcher():
        yield
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    theirs = {name: os.environ.pop(name) for name in _LAUNCHERS_WORDS if name in os.environ}  # the Trainer reads these
    try:
        yield
    finally:
        os.environ.update(theirs)


# ---- dividing work --------------------------------------------------------------------------------------------------------


def share_out(
    compute: Callable[[Item], Result],
    items: Sequence[Item],
    advance: Callable[[int], None] | None = None,
    size: Callable[[Item], int] = lambda _: 1,
) -> list[Result]:
    """`[compute(item) for item in items]`, of which each process computes its share; all of them get all, in order.

    A process with nothing left repeats an item, so that a model that is kept in parts runs equally often in each. A first signal
    takes effect between two items: raised into compiled code, it can abort the process.

    Args:
        compute: its values are pickled, where there are several processes: tensors belong on the CPU.
        items: the same in every process.
        advance: told how much was just done, by all together.
        size: how much an item is.
    """
    own = []
    for start in range(0, len(items), _group.count):
        with finishing("this batch"):
            own.append(compute(items[min(start + _group.rank, len(items) - 1)]))
        if advance is not None:
            advance(sum(map(size, items[start : start + _group.count])))
    return in_order(own, len(items))


def own_share(items: Sequence[Item]) -> Sequence[Item]:
    """The items that `share_out` gives this process, where it may be fewer than others have."""
    return items[_group.rank :: _group.count]


def in_order(own: list[Result], total: int) -> list[Result]:
    """What the processes found about their own share of `total` items, in the order of all items, in each of them."""
    if _group.count == 1:
        return own
    from torch import distributed

    everyones: list[Any] = [None] * _group.count
    distributed.all_gather_object(everyones, own)
    return [everyones[place % _group.count][place // _group.count] for place in range(total)]


def summed_(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place; where several took part it is the same bits in each."""
    if _group.count > 1:
        from torch import distributed

        distributed.all_reduce(tensor)
    return tensor


def all_here() -> None:
    """Wait until every process has come to this call."""
    in_order([None], _group.count)


# ---- agreeing -------------------------------------------------------------------------------------------------------------


def agreed(value: Result) -> Result:
    """The first process's value, in all of them."""
    if _group.count == 1:
        return value
    from torch import distributed

    box = [value if is_first() else None]
    distributed.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


def by_first(work: Callable[[], Result]) -> Result:
    """What `work` gives in the first process alone, in all of them; they wait, and its error is an error in each.

    Inside, there is one process: what is shared out elsewhere is all done there.
    """
    if _group.count == 1:
        return work()
    error: Exception | None = None
    value: Any = None
    if is_first():
        before, _group.count = _group.count, 1
        try:
            value = work()
        except Exception as caught:  # of any type: it is raised again below
            error = caught
        finally:
            _group.count = before
    value, failure = agreed((value, error))
    if error is not None:
        raise error
    if failure is not None:
        raise failure
    return value  # type: ignore[no-any-return]


def is_of_another(error: BaseException) -> bool:
    """Whether an error only says that another process of the launcher ended while this one waited for it."""
    return launched() and isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL"))


def fails_first() -> bool:
    """Whether this process, which has an error to report, is the first: what the others then meet is only its consequence."""
    if not launched():
        return True
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    with suppress(Exception):  # no launcher that keeps a store: then everybody speaks
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))
        return store.add(f"secateur/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    return True
