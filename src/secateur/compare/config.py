"""What is to be compared, read from YAML and checked before anything is loaded.

```yaml
models: [${MODEL}]                  # or {model: …, title: …, dtype: …}
text: {data: python-docs}           # the fields of TextSettings
methods: [shortgpt, {method: elder, title: ELDeR, settings: {steps: 16}}]      # or: all
drops: [3, 25%]
recovery: [none, {kind: lora, tokens: 32768}]
seeds: [0]
tasks: []                           # of the evaluation harness
speed: false
blocks: [{drops: [8]}, …]           # several matrices: each has what stands above, but for what it names itself
```

`${NAME}` in a model, a text or a folder stands for an environment variable, so that no result names a machine's folders.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from secateur.compare.reading import read_list, read_mapping, read_settings, read_yaml, with_environment
from secateur.errors import RequestError
from secateur.methods import METHODS, Method, method_named
from secateur.plan import count_to_drop
from secateur.request import TextSettings
from secateur.training.recovery import Recovery, without_effect

__all__ = [
    "Block",
    "Comparison",
    "MethodChoice",
    "ModelChoice",
    "RecoveryChoice",
    "read_comparison",
    "recovery_names_of_file",
    "slug",
]

_BLOCK = ("methods", "drops", "recovery", "seeds", "tasks", "speed")
_TOP = ("models", "text", "precision", "include_path", "task_limit", *_BLOCK, "blocks")

_RECOVERY = {field.name.removeprefix("recover_"): field.name for field in dataclasses.fields(Recovery)}
_RECOVERY["kind"] = _RECOVERY.pop("recover")
"""Name in the file → field of `Recovery`."""

Titled = TypeVar("Titled", "ModelChoice", "MethodChoice", "RecoveryChoice")


def slug(title: str) -> str:
    """A title as a part of a file's name: lower case, `a-z 0-9 .` and single dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-.")


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """One of the models."""

    model: str
    """Hub id or local directory, as it stands in the file."""

    title: str = ""
    """Its name in tables; the last part of `model` if empty."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights."""

    revision: str | None = None
    """Branch, tag or commit of a hub id."""

    trust_remote_code: bool = False
    """Run code that comes with the model."""

    def __post_init__(self) -> None:
        if not self.title:
            object.__setattr__(self, "title", Path(self.source).name)

    @property
    def source(self) -> str:
        """Where it is on this machine."""
        return with_environment(self.model)


@dataclass(frozen=True, kw_only=True)
class MethodChoice:
    """A method with its settings, and its name in tables."""

    method: Method
    title: str


@dataclass(frozen=True, kw_only=True)
class RecoveryChoice:
    """What is done after the cut, and its name in tables."""

    settings: Recovery
    title: str


@dataclass(frozen=True, kw_only=True)
class Block:
    """One matrix: every method with every drop, recovery and seed."""

    methods: tuple[MethodChoice, ...]
    drops: tuple[int | float, ...]
    recoveries: tuple[RecoveryChoice, ...]
    seeds: tuple[int, ...]
    tasks: tuple[str, ...]
    speed: bool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that is to be compared."""

    models: tuple[ModelChoice, ...]
    """Each with all blocks."""

    text: TextSettings
    """Calibration and evaluation text; its places are as they stand in the file."""

    precision: Literal["auto", "fp32", "bf16"]
    """Of the passes while choosing, preparing and recovering."""

    include_path: str | None
    """Folder of further task files, as it stands in the file."""

    task_limit: int | None
    """Items of each task; all if None."""

    blocks: tuple[Block, ...]
    """The matrices; a cell that is in several is made once."""

    def text_here(self) -> TextSettings:
        """The text with its places on this machine."""
        text = self.text
        return dataclasses.replace(
            text,
            data=with_environment(text.data),
            eval_data=None if text.eval_data is None else with_environment(text.eval_data),
        )


def read_comparison(path: str | Path) -> Comparison:
    """Read and check a file; no model and no text is loaded.

    Raises:
        RequestError: if something in it cannot be meant; the line says where, and what to do.
    """
    top = read_mapping(read_yaml(path), str(path), _TOP, required=("models", "text"))
    common = {key: top[key] for key in _BLOCK if key in top}
    blocks = read_list(top["blocks"], "blocks") if "blocks" in top else [{}]
    comparison = Comparison(
        models=_distinct([_model(item) for item in read_list(top["models"], "models")], "models"),
        text=_text(top["text"]),
        precision=_one_of(top.get("precision", "auto"), "precision", ("auto", "fp32", "bf16")),
        include_path=None if top.get("include_path") is None else _string(top["include_path"], "include_path"),
        task_limit=None if top.get("task_limit") is None else _whole(top["task_limit"], "task_limit", least=1),
        blocks=tuple(
            _block({**common, **read_mapping(block, _named("blocks", blocks, number), _BLOCK)})
            for number, block in enumerate(blocks)
        ),
    )
    _distinct([method for block in comparison.blocks for method in block.methods], "methods")
    _distinct([recovery for block in comparison.blocks for recovery in block.recoveries], "recovery")
    comparison.text_here()
    return comparison


def _block(values: dict[str, Any]) -> Block:
    for key in ("methods", "drops"):
        if values.get(key) is None:
            raise RequestError(f"the comparison lacks '{key}'; name at least one")
    methods = values["methods"]
    methods = list(METHODS) if methods == "all" else read_list(methods, "methods")
    return Block(
        methods=_distinct([_method(item) for item in methods], "methods"),
        drops=_unique(read_list(values["drops"], "drops"), _drop),
        recoveries=_distinct(
            [_recovery(item) for item in read_list(values.get("recovery", ["none"]), "recovery")], "recovery"
        ),
        seeds=_unique(read_list(values.get("seeds", [0]), "seeds"), lambda seed: _whole(seed, "seeds", least=0)),
        tasks=_unique(
            read_list(values.get("tasks", []), "tasks", empty=True), lambda task: _string(task, "tasks")
        ),
        speed=_truth(values.get("speed", False), "speed"),
    )  # fmt: skip


def _model(item: Any) -> ModelChoice:
    return read_settings(ModelChoice, {"model": item} if isinstance(item, str) else item, "models")


def _text(item: Any) -> TextSettings:
    values = read_mapping(item, "text", [field.name for field in dataclasses.fields(TextSettings)], required=("data",))
    text = read_settings(TextSettings, values, "text")
    for name, least in (("sequence_length", 2), ("num_sequences", 1), ("num_eval_sequences", 1), ("batch_size", 1)):
        _whole(getattr(text, name), f"text: {name}", least=least)
    return text


def _method(item: Any) -> MethodChoice:
    values = {"method": item} if isinstance(item, str) else item
    values = read_mapping(values, "methods", ("method", "title", "settings"), required=("method",))
    name = _string(values["method"], "method")
    of = method_named(name)
    method = read_settings(of, values.get("settings") or {}, f"settings of {name}")
    return MethodChoice(method=method, title=_string(values.get("title") or name, "title"))


def _recovery(item: Any) -> RecoveryChoice:
    values = {"kind": item} if isinstance(item, str) or item is None else item
    values = read_mapping(values, "recovery", [*_RECOVERY, "title"])
    kind = values.get("kind") or "none"  # `none` may be written as null
    title = _string(values.pop("title", None) or kind, "title")
    given = {_RECOVERY[name]: value for name, value in {**values, "kind": kind}.items()}
    with recovery_names_of_file():
        settings = read_settings(Recovery, given, "recovery")
        if idle := without_effect(settings):
            name, kinds = idle
            raise RequestError(
                f"recovery: {name} has no effect with kind {kind}; choose kind {' or '.join(kinds)}, or leave it out"
            )
    return RecoveryChoice(settings=settings, title=title)


@contextmanager
def recovery_names_of_file() -> Iterator[None]:
    """What is wrong with a recovery, with the names as they stand in the file."""
    try:
        yield
    except RequestError as error:
        said = re.sub(r"\brecover_", "", str(error))
        raise RequestError(re.sub(r"\brecover\b", "kind", said)) from error


def _drop(item: Any) -> int | float:
    """A count, a share, or a share in per cent."""
    value = item
    if isinstance(item, str) and re.fullmatch(r"\s*[\d.]+\s*%\s*", item):
        value = float(item.strip()[:-1]) / 100
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RequestError(f"drops: {item!r} is neither a count such as 8 nor a share such as 25%")
    if isinstance(value, int) and value < 1:
        raise RequestError(f"drops: cannot drop {value} layers; choose 1 or more")
    if isinstance(value, float):
        count_to_drop(value, 2)  # says what a share must be
    return value


def _distinct(items: Sequence[Titled], what: str) -> tuple[Titled, ...]:
    """The items, each once.

    Raises:
        RequestError: if two different ones have one name, or a name has no letters.
    """
    found: dict[str, Titled] = {}
    for item in items:
        key = slug(item.title)
        if not key:
            raise RequestError(f"{what}: the title '{item.title}' has neither letters nor digits; give another")
        if found.setdefault(key, item) != item:
            raise RequestError(f"{what}: two different ones are called '{item.title}'; give one of them a title")
    return tuple(found.values())


T = TypeVar("T")


def _unique(items: Collection[Any], read: Callable[[Any], T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(read(item) for item in items))


def _whole(value: Any, where: str, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RequestError(f"{where} must be a whole number of {least} or more, not {value!r}")
    return value


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{where} must be text, not {value!r}")
    return value


def _truth(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{where} must be true or false, not {value!r}")
    return value


def _one_of(value: Any, where: str, among: Sequence[str]) -> Any:
    if value not in among:
        raise RequestError(f"{where} must be one of {', '.join(among)}, not {value!r}")
    return value


def _named(name: str, items: Sequence[Any], number: int) -> str:
    return name if len(items) == 1 else f"{name}[{number}]"
