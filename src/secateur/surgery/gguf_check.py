"""Is a GGUF file another one without some layers? The proof by the bytes, whoever made it.

What a cut file must be is said by what cuts one: every kept tensor under its new number, and the metadata of the kept layers.
Nothing is decoded and nothing runs. Where all of that is the same, the file is the one that `secateur cut` writes, whose tests
hold it to the dense file with the layers bypassed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from secateur.errors import ModelError
from secateur.plan import PruningPlan
from secateur.progress import Progress, Silent
from secateur.surgery.findings import Check, DifferentError, Findings, to_compare
from secateur.surgery.gguf_files import cut_header
from secateur.surgery.gguf_header import Entry, Header, Tensor, read_gguf
from secateur.surgery.gguf_layers import BLOCK, count_layers
from secateur.surgery.matching import Match, changed_tensors, match_layers
from secateur.surgery.shards import StoredTensor, file_size, quoted

__all__ = ["check_gguf_pair"]

_SHOWN = 20
"""Items of an array that are quoted."""


def check_gguf_pair(
    dense: str | Path,
    pruned: str | Path,
    *,
    dropped: Collection[int] | None = None,
    progress: Progress | None = None,
) -> Check:
    """Find out whether one GGUF file is another without some layers.

    Args:
        dense: a GGUF file with a language model.
        pruned: the other one.
        dropped: the layers that went; found by comparing the files if None.
        progress: told of the bytes compared.

    Raises:
        ModelError: if there is no file at one of the places, or the dense one is damaged.
        UnsupportedModelError: if the dense file cannot be cut, so that it cannot be said what it would be.
        PlanError: if `dropped` are not layers of it.
        RequestError: if the package gguf is not installed.
    """
    path, other = Path(dense).expanduser(), Path(pruned).expanduser()
    header = read_gguf(path)
    file_size(other)
    num_layers, extra = count_layers(path, header)
    claimed = None if dropped is None else PruningPlan.of_layers(dropped, num_layers).kept
    pair = _Pair(path, header, num_layers, extra)
    with suppress(DifferentError):
        found = pair.read(other)
        progress = progress or Silent()
        progress.note(to_compare(sum(tensor.num_bytes for tensor in found.tensors)))
        matches = pair.match(other, found, claimed, progress)
        wanted = cut_header(header, num_layers, extra, [match.source for match in matches if match.source is not None])
        pair.compare_tensors(wanted, other, found, matches, progress)
        pair.compare_metadata(wanted, found)
        for what in ("reload", "logits", "generation"):
            pair.found(what, None, "not looked at: GGUF files are compared, and not run")
    return Check(
        dense=str(dense),
        pruned=str(pruned),
        dropped=pair.dropped,
        layer_by_layer=False,
        findings=tuple(pair.findings),
    )


class _Pair(Findings):
    """The findings as they are made."""

    def __init__(self, path: Path, header: Header, num_layers: int, extra: int) -> None:
        super().__init__()
        self.path, self.header, self.num_layers, self.extra = path, header, num_layers, extra

    def read(self, other: Path) -> Header:
        """The header of the pruned file; what is wrong with it is a finding."""
        try:
            found = read_gguf(other)
        except ModelError as error:
            self.stop("files", str(error))
        self.found("files", True, f"{len(found.tensors)} tensors, the file is whole")
        architectures = [each.value("general.architecture") for each in (self.header, found)]
        if architectures[0] != architectures[1]:
            self.stop(
                "family", f"it is a {quoted(architectures[1])} model, and the dense one {quoted(architectures[0])}"
            )
        return found

    def match(self, other: Path, found: Header, claimed: Sequence[int] | None, progress: Progress) -> list[Match]:
        """Which layer of the dense file each layer is."""
        try:
            count, extra = count_layers(other, found)
        except ModelError as error:
            self.stop("layers", str(error))
        if count >= self.num_layers:
            self.stop("layers", f"it has {count} layers, and the dense model {self.num_layers}: none went")
        if extra != self.extra:
            self.stop("layers", f"it has {extra} blocks that predict further tokens, and the dense model {self.extra}")
        if claimed is not None and count != len(claimed):
            self.stop("layers", f"it has {count}, and {len(claimed)} are said to be left")
        matches = match_layers(
            _layers(self.path, self.header, self.num_layers), _layers(other, found, count), claimed=claimed,
            progress=progress,
        )  # fmt: skip
        self.check_order(matches, claimed, self.num_layers)
        return matches

    def compare_tensors(
        self, wanted: Header, other: Path, found: Header, matches: Sequence[Match], progress: Progress
    ) -> None:
        """Every tensor of one is a tensor of the other, and the same."""
        ours, theirs = _stored(self.path, wanted.tensors), _stored(other, found.tensors)
        exact = tuple(f"blk.{layer}." for layer, match in enumerate(matches) if match.exact)
        both = sorted(ours.keys() & theirs.keys())
        changed = changed_tensors(ours, theirs, [name for name in both if not name.startswith(exact)], progress)
        if missing := sorted(ours.keys() - theirs.keys()):
            self.found("tensors", False, f"{quoted(missing[0])} is missing")
        elif more := sorted(theirs.keys() - ours.keys()):
            self.found("tensors", False, f"{quoted(more[0])} is none of the dense model")
        elif changed:
            words = f"{quoted(changed[0])} is not as in the dense model, {len(changed)} of {len(both)} are not"
            self.found("tensors", False, words)
        else:
            self.found("tensors", True, f"all {len(both)} are those of the dense model, bit for bit")

    def compare_metadata(self, wanted: Header, found: Header) -> None:
        """What is said of layers must be that of the layers that are left, and all else as it was."""
        entries, others = ({entry.name: entry for entry in each.entries} for each in (wanted, found))
        for name in sorted(entries.keys() | others.keys()):
            right, wrong = entries.get(name), others.get(name)
            if right != wrong:
                words = f"{quoted(name)} is {_said(wrong)}, and must be {_said(right)} for the layers that are left"
                return self.found("configuration", False, words)
        return self.found(
            "configuration", True, f"all {len(entries)} entries of the metadata are those of the layers that are left"
        )


def _said(entry: Entry | None) -> str:
    """Its value; of a long array only that it is another, as what is quoted would be the same of both."""
    if entry is None:
        return "not there"
    if entry.length is not None and (entry.value is None or entry.length > _SHOWN):
        return f"another array of {entry.length} items"
    return quoted(entry.value)


def _stored(path: Path, tensors: Collection[Tensor]) -> dict[str, StoredTensor]:
    """Tensors by their names; what the numbers of a type mean is of no interest, only that it is the same."""
    return {
        tensor.name: StoredTensor(
            file=path, dtype=f"ggml {tensor.kind}", shape=tensor.shape, start=tensor.start, num_bytes=tensor.num_bytes
        )
        for tensor in tensors
    }


def _layers(path: Path, header: Header, count: int) -> list[Mapping[str, StoredTensor]]:
    """The tensors of each layer, by their names within it."""
    found: list[dict[str, StoredTensor]] = [{} for _ in range(count)]
    for name, tensor in _stored(path, header.tensors).items():
        block = BLOCK.match(name)
        if block is not None and int(block[1]) < count:
            found[int(block[1])][name[block.end() :]] = tensor
    return list(found)
