"""What is known of a pair of models, one of which is said to be the other without some layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NoReturn

from secateur.disk import format_size
from secateur.surgery.matching import Match

__all__ = ["Check", "DifferentError", "Finding", "Findings", "to_compare"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    """`files`, `family`, `layers`, `tensors`, `configuration`, `reload`, `logits` or `generation`."""

    holds: bool | None
    """Whether it is as it must be; None if it could not be looked at."""

    words: str
    """What was found."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What is known of a pair of checkpoints, or of GGUF files."""

    dense: str
    """The dense checkpoint."""

    pruned: str
    """The one that is said to be it without some layers."""

    dropped: tuple[int, ...] | None
    """Layers of the dense model that went, ascending; None if that cannot be said."""

    layer_by_layer: bool
    """Whether the models ran with their layers on the disk."""

    findings: tuple[Finding, ...]
    """In the order in which they were made; the last ones are missing where one made them impossible."""

    @property
    def proven(self) -> bool:
        """Whether nothing speaks against it."""
        return all(finding.holds is not False for finding in self.findings)

    @property
    def difference(self) -> str | None:
        """The first finding that speaks against it, in one line."""
        return next((f"{each.what}: {each.words}" for each in self.findings if each.holds is False), None)


def to_compare(num_bytes: int) -> str:
    """One line on what is to be compared."""
    return f"{format_size(num_bytes)} of weights to compare with those of the dense model"


class DifferentError(Exception):
    """A finding after which nothing more can be found."""


class Findings:
    """The findings as they are made."""

    def __init__(self) -> None:
        self.dropped: tuple[int, ...] | None = None
        self.findings: list[Finding] = []

    def found(self, what: str, holds: bool | None, words: str) -> None:
        """One more."""
        self.findings.append(Finding(what, holds, words))

    def stop(self, what: str, words: str) -> NoReturn:
        """The last one, as it speaks against the pair."""
        self.found(what, False, words)
        raise DifferentError

    def check_order(self, matches: Sequence[Match], claimed: Sequence[int] | None, num_layers: int) -> None:
        """Every layer is one of the dense model, in its order; which went follows from that.

        Args:
            matches: for each layer of the pruned model, what it is.
            claimed: what it is said to be.
            num_layers: of the dense model.

        Raises:
            DifferentError: if that is not so.
        """
        last = -1
        for layer, match in enumerate(matches):
            if match.source is None:
                self.stop(
                    "layers",
                    f"layer {layer} is like none of the dense model; if it was trained, say which went with --layers",
                )
            if claimed is not None and match.source != claimed[layer]:
                self.stop(
                    "layers",
                    f"layer {layer} is the dense model's {match.source}, and is said to be its {claimed[layer]}",
                )
            if match.source <= last:
                self.stop("layers", f"layer {layer} is the dense model's {match.source}, and comes after its {last}")
            last = match.source
        sources = {match.source for match in matches}
        self.dropped = tuple(layer for layer in range(num_layers) if layer not in sources)
        changed = [layer for layer, match in enumerate(matches) if not match.exact]
        words = f"{_listed(self.dropped)} of {num_layers} went, the others are there in their order"
        if changed:
            words += f"; of these {_listed(changed)} changed since, by a training or a merge"
        self.found("layers", True, words)


def _listed(layers: Collection[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
