"""What is decided before anything is cut: a score a layer, and the layers that go. Both are small JSON files."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, overload

from secateur.disk import sha256
from secateur.errors import PlanError
from secateur.values import write_json

__all__ = ["Evidence", "LayerScores", "MaskFile", "PruningPlan", "count_to_drop"]


def count_to_drop(drop: int | float, num_layers: int) -> int:
    """The number of layers that `drop` means for a model of `num_layers`.

    Args:
        drop: a count (int), or a share of the layers (float in (0, 1)); a share rounds half up, and never to 0 or all.
        num_layers: the layers of the dense model.

    Raises:
        PlanError: if no layer or every layer would go.
    """
    if isinstance(drop, float) and not 0 < drop < 1:
        raise PlanError(f"cannot drop a share of {drop:g} of the layers; choose a share between 0 and 1, or a count")
    if num_layers < 2:
        raise PlanError(f"a model of {num_layers} layer has none to spare; nothing can be dropped")
    if isinstance(drop, float):
        exact = round(drop * num_layers, 9)  # 0.29 · 50 is 14.499999999999998 in binary, and 29 % of 50 is a half
        return min(max(math.floor(exact + 0.5), 1), num_layers - 1)
    if not 1 <= drop < num_layers:
        raise PlanError(f"cannot drop {drop} of {num_layers} layers; choose 1..{num_layers - 1}")
    return drop


@dataclass(frozen=True)
class LayerScores(Sequence[float]):
    """One number a decoder layer; larger means keep."""

    values: tuple[float, ...]
    """The scores, by layer of the dense model."""

    method: str = ""
    """The method that made them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(float(value) for value in self.values))

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[float, ...]: ...
    def __getitem__(self, index: int | slice) -> float | tuple[float, ...]:
        return self.values[index]

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[float]:
        return iter(self.values)

    def lowest(self, count: int) -> tuple[int, ...]:
        """The `count` layers with the lowest scores, lowest first; of equals the earlier layer, those without one last."""
        order = sorted(range(len(self)), key=lambda layer: (math.isnan(self.values[layer]), self.values[layer], layer))
        return tuple(order[:count])

    def plan(self, drop: int | float, **about: Any) -> PruningPlan:
        """The plan that drops the lowest layers.

        Args:
            drop: a count, or a share of the layers in (0, 1).
            about: further fields of the plan (`options`, `provenance`).

        Raises:
            PlanError: if no layer or every layer would go.
        """
        order = self.lowest(count_to_drop(drop, len(self)))
        return PruningPlan(num_layers=len(self), order=order, scores=self, method=self.method, **about)


class Evidence(Protocol):
    """What a method found beside the scores, in memory: its second stage needs it."""

    def write_masks(self, plan: PruningPlan, path: Path) -> None:
        """Write what the merges of a plan take from it: which entries of each weight, and how much of them."""


@dataclass(frozen=True)
class MaskFile:
    """The file beside a plan that says which entries of pruned weights its merges add to kept ones."""

    path: Path
    """The safetensors file; see `secateur.surgery.masks`."""

    sha256: str
    """Of the file, in hexadecimal."""

    def verified(self, remedy: str = "or make the plan again") -> Path:
        """The file, which is there and is the one that belongs to the plan.

        Raises:
            PlanError: if not.
        """
        put = f"put the one that was written with the plan beside it, {remedy}"
        try:
            found = sha256(self.path)
        except OSError as error:
            raise PlanError(f"cannot read the plan's masks {self.path}: {error.strerror or error}; {put}") from error
        if found != self.sha256:
            raise PlanError(f"{self.path} is not the file of masks that the plan was written with; {put}")
        return self.path


@dataclass(frozen=True)
class PruningPlan:
    """Which layers of a dense model go, and why."""

    num_layers: int
    """Layers of the dense model."""

    order: tuple[int, ...]
    """The layers that go, in the order in which they were chosen; a prefix of it is a smaller cut."""

    scores: LayerScores | None = None
    """The scores behind the choice, if there were any."""

    method: str = ""
    """The method that chose."""

    options: dict[str, Any] = field(default_factory=dict)
    """The method's settings."""

    merges: dict[int, int] = field(default_factory=dict)
    """Dropped layer → the kept layer it is merged into."""

    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the choice came from: model, data, seed, versions, how it went."""

    evidence: Any = field(default=None, compare=False, repr=False)
    """What the method keeps in memory for its own second stage (`Evidence`); of it only what the merges take is written."""

    masks: MaskFile | None = field(default=None, compare=False)
    """What the merges of a plan that was read from a file take from the evidence; read when it is needed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", tuple(int(layer) for layer in self.order))
        count_to_drop(len(self.order), self.num_layers)
        if len(set(self.order)) != len(self.order):
            raise PlanError(f"the plan names a layer twice: {list(self.order)}; name each layer once")
        outside = [layer for layer in self.order if not 0 <= layer < self.num_layers]
        if outside:
            raise PlanError(f"the model has no layer {outside[0]}; its layers are 0..{self.num_layers - 1}")
        if self.scores is not None and len(self.scores) != self.num_layers:
            raise PlanError(f"{len(self.scores)} scores for {self.num_layers} layers; give one score a layer")

    @classmethod
    def of_layers(cls, dropped: Collection[int] | PruningPlan, num_layers: int) -> PruningPlan:
        """The plan by which layers go from a model of `num_layers`, their order and repetition aside; or a plan made for it.

        Raises:
            PlanError: if a layer does not exist, none would be left, or the plan is for another depth.
        """
        if not isinstance(dropped, PruningPlan):
            return cls(num_layers=num_layers, order=tuple(sorted(set(dropped))))
        if dropped.num_layers != num_layers:
            raise PlanError(
                f"the plan is for a model of {dropped.num_layers} layers, and this one has {num_layers}; "
                "give the model it was made on"
            )
        return dropped

    @property
    def dropped(self) -> tuple[int, ...]:
        """The layers that go, in ascending order."""
        return tuple(sorted(self.order))

    @property
    def kept(self) -> tuple[int, ...]:
        """The layers that stay, in ascending order."""
        gone = set(self.order)
        return tuple(layer for layer in range(self.num_layers) if layer not in gone)

    @property
    def changes_weights(self) -> bool:
        """Whether weights of dropped layers go into kept ones."""
        return bool(self.merges) or "folds" in self.provenance

    def prefix(self, drop: int) -> PruningPlan:
        """The smaller cut of the first `drop` layers; what a method made for exactly these layers is left out.

        For a method that is nested (`Method.nested`) it is the method's own plan for `drop` layers.

        Raises:
            PlanError: if there are not so many.
        """
        if not 1 <= drop <= len(self.order):
            raise PlanError(f"cannot take {drop} of a plan's {len(self.order)} layers; choose 1..{len(self.order)}")
        if drop == len(self.order):
            return self
        return replace(self, order=self.order[:drop], merges={}, evidence=None, masks=None)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, atomically; and if it merges, what that needs, as `plan.masks.safetensors` beside it.

        Raises:
            PlanError: if the plan was read from a file, and the masks beside that are missing or others.
            OSError: if it cannot be written.
        """
        target = Path(path)
        masks = self._write_masks(target.with_suffix(".masks.safetensors")) if self.merges else None
        write_json(target, replace(self, masks=masks).as_json())

    def _write_masks(self, target: Path) -> MaskFile | None:
        """The masks of the merges, made or copied; None if there is nothing to make them from."""
        if self.evidence is None and self.masks is None:
            return None
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
        try:
            if self.evidence is not None:
                self.evidence.write_masks(self, Path(temporary))
            elif self.masks is not None:
                shutil.copyfile(self.masks.verified(), temporary)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return MaskFile(target, sha256(target))

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values; `of_json` reads them."""
        body = asdict(replace(self, evidence=None, masks=None))
        del body["evidence"]
        body["masks"] = None if self.masks is None else {"file": self.masks.path.name, "sha256": self.masks.sha256}
        body["dropped"] = list(self.dropped)
        body["scores"] = None if self.scores is None else list(self.scores)
        return body

    @classmethod
    def load(cls, path: str | Path) -> PruningPlan:
        """Read a plan written by `save`.

        Raises:
            PlanError: if the file is missing, is not such a plan, or is inconsistent.
        """
        try:
            body = json.loads(Path(path).read_text(encoding="utf-8"))
            return replace(cls.of_json(body), masks=_masks_beside(Path(path), body.get("masks")))
        except OSError as error:
            raise PlanError(f"cannot read the plan {path}: {error.strerror or error}; give a plan.json") from error
        except PlanError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise PlanError(
                f"{path} is not a pruning plan ({error!r}); give a plan.json written by secateur"
            ) from error

    @classmethod
    def of_json(cls, body: dict[str, Any]) -> PruningPlan:
        """The plan that `as_json` made these values of, without the masks that lie beside its file."""
        scores, method = body["scores"], str(body["method"])
        return cls(
            num_layers=int(body["num_layers"]),
            order=tuple(body["order"]),
            scores=None if scores is None else LayerScores(tuple(math.nan if s is None else s for s in scores), method),
            method=method,
            options=dict(body["options"]),
            merges={int(source): int(target) for source, target in body["merges"].items()},
            provenance=dict(body["provenance"]),
        )


def _masks_beside(plan: Path, entry: Any) -> MaskFile | None:
    """The masks that a plan's file names; the name is a stranger's, and leads nowhere else."""
    if entry is None:
        return None
    name, digest = entry["file"], entry["sha256"]
    if not re.fullmatch(r"[\w\-.]+\.safetensors", name) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"masks {name!r}")
    return MaskFile(plan.parent / name, digest)
