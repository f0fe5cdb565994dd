"""Cutting a GGUF file: layers leave, and the bytes of all other tensors are copied, quantised as they are.

What the header says of layers is made right (`gguf_layers`); every other byte of it stays, tokenizer and all.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from secateur.disk import flush, full_disk_named
from secateur.errors import OutputError, PlanError, WriteError
from secateur.plan import PruningPlan
from secateur.progress import Progress, Silent, in_megabytes
from secateur.surgery.copying import NewFile, new_file, reading
from secateur.surgery.files import CutReport, ahead, check_apart
from secateur.surgery.gguf_header import MAGIC, Entry, Header, padded, read_gguf, text_bytes
from secateur.surgery.gguf_layers import BLOCK, count_layers, cut_entries

__all__ = ["cut_gguf", "cut_header", "is_gguf", "looks_like_gguf"]


def is_gguf(source: str | Path) -> bool:
    """Whether a model is given as one file, which can only be a GGUF file."""
    path = Path(source).expanduser()
    return path.suffix == ".gguf" or path.is_file()


def looks_like_gguf(source: str | Path) -> bool:
    """Whether a model is a GGUF file by its name or by how it begins."""
    path = Path(source).expanduser()
    with reading(path):
        return not path.is_dir() and (path.suffix == ".gguf" or (path.is_file() and _begins_like_gguf(path)))


def cut_gguf(
    source: str | Path,
    target: str | Path,
    dropped: Collection[int] | PruningPlan,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> CutReport:
    """Write the GGUF file `source` without some decoder layers to `target`.

    No tensor is decoded, and the memory needed does not grow with them. Blocks that predict further tokens (`nextn`) stay.

    Args:
        source: a GGUF file with a language model, not one of several parts.
        target: the new file; it is there whole at the end, or not at all.
        dropped: layers of the dense model, 0 the first; or a plan.
        overwrite: replace a GGUF file that is at `target`.
        dry_run: check everything and write nothing.
        progress: told of the bytes copied.

    Raises:
        ModelError: if the file is damaged, or no whole language model.
        UnsupportedModelError: if the kept layers could not be described in such a file.
        PlanError: if a layer does not exist, none would be left, or the plan is of another depth or merges layers.
        OutputError: if `target` cannot be written to.
        RequestError: if the package gguf is not installed.
        WriteError: if writing fails half-way. On any of these errors, nothing is left at `target`.
    """
    path, out = Path(source).expanduser(), Path(target).expanduser().absolute()
    _check_output(out, target, overwrite)
    check_apart(path, out)
    header = read_gguf(path)
    num_layers, extra = count_layers(path, header)
    plan = _plan(dropped, num_layers)
    cut = cut_header(header, num_layers, extra, list(plan.kept))
    num_bytes = sum(tensor.num_bytes for tensor in cut.tensors)
    if not dry_run:
        progress = progress or Silent()
        progress.note(ahead(num_bytes, out))
        with (
            full_disk_named(out, needs=num_bytes, then="nothing is left there: make room, or choose another --out"),
            _replacing(out) as temporary,
            new_file(temporary, num_bytes) as file,
            in_megabytes(progress, "copying the weights", num_bytes) as advance,
        ):
            _write(path, file, cut, advance)
    return CutReport(
        target=out,
        dropped=plan.dropped,
        num_layers=num_layers,
        num_tensors=len(cut.tensors),
        num_folded=0,
        num_bytes=num_bytes,
        removed_bytes=sum(tensor.num_bytes for tensor in header.tensors) - num_bytes,
        weights=(out.name,),
        copied=(),
        left=(),
    )


def _plan(dropped: Collection[int] | PruningPlan, num_layers: int) -> PruningPlan:
    plan = PruningPlan.of_layers(dropped, num_layers)
    if plan.merges:
        raise PlanError(
            f"the plan merges layer {min(plan.merges)} into another, and quantised layers cannot be merged; "
            "cut the checkpoint the file was made from, and convert that"
        )
    return plan


def cut_header(header: Header, num_layers: int, extra: int, kept: list[int]) -> Header:
    """What the file says that has only some layers; its tensors have their new names, and lie where they are now.

    Args:
        header: of the dense file.
        num_layers: its decoder layers.
        extra: the blocks behind them, which stay.
        kept: the layers that stay, ascending.

    Raises:
        UnsupportedModelError: if the kept layers could not be described in such a file.
    """
    blocks = [*kept, *range(num_layers, num_layers + extra)]
    new = {block: index for index, block in enumerate(blocks)}
    tensors = []
    for tensor in header.tensors:
        block = BLOCK.match(tensor.name)
        if block is None:
            tensors.append(tensor)
        elif (number := int(block[1])) in new:
            tensors.append(replace(tensor, name=f"blk.{new[number]}.{tensor.name[block.end() :]}"))
    entries = (
        _with_tensor_count(entry, len(header.tensors), len(tensors))
        for entry in cut_entries(header, num_layers, kept, blocks)
    )
    return replace(header, entries=tuple(entries), tensors=tuple(tensors))


def _with_tensor_count(entry: Entry, dense: int, cut: int) -> Entry:
    """A file joined from parts goes on counting its tensors."""
    return entry.with_number(cut) if entry.name == "split.tensors.count" and entry.value == dense else entry


# ---- writing ----------------------------------------------------------------------------------------------------------


def _write(source: Path, out: NewFile, cut: Header, done: Callable[[int], None]) -> None:
    """Write the header of `cut`, and its tensors from where they lie in `source`."""
    raw = bytearray(MAGIC + struct.pack("<IQQ", cut.version, len(cut.tensors), len(cut.entries)))
    for entry in cut.entries:
        raw += text_bytes(entry.name) + struct.pack("<I", entry.kind) + entry.raw
    place = 0
    for tensor in cut.tensors:
        raw += text_bytes(tensor.name) + struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        raw += struct.pack("<IQ", tensor.kind, place)
        place = padded(place + tensor.num_bytes, cut.alignment)
    out.write(bytes(raw.ljust(padded(len(raw), cut.alignment), b"\0")))
    for tensor in cut.tensors:
        out.copy(source, tensor.start, tensor.num_bytes)
        out.write(b"\0" * (-tensor.num_bytes % cut.alignment))
        done(tensor.num_bytes)


def _check_output(out: Path, target: str | Path, overwrite: bool) -> None:
    """Make sure that a GGUF file can be written there, before anything else."""
    try:
        if out.suffix != ".gguf" or out.is_dir():
            raise OutputError(f"{target} is no name for a GGUF file; choose an --out that ends in .gguf")
        if os.path.lexists(out):
            if not overwrite:
                raise OutputError(f"{target} is there already; choose another --out, or give --overwrite to replace it")
            if not out.is_file() or not _begins_like_gguf(out):
                raise OutputError(f"{target} is not a GGUF file, so it is not replaced; choose another --out")
        if not out.parent.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK):
            raise OutputError(f"cannot write to {out.parent}; choose an --out in a directory of yours that exists")
    except OSError as error:  # a name too long, a folder that must not be read
        raise OutputError(f"cannot write to {target}: {error.strerror or error}; choose another --out") from error


def _begins_like_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A temporary file beside `out` that becomes `out` when the block ends well, and vanishes when it does not."""
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp")
        temporary = Path(name)
        os.close(handle)
        yield temporary
        flush(temporary)
        temporary.chmod(0o644)
        temporary.replace(out)
    except OSError as error:
        raise WriteError(
            f"cannot write {out}: {error.strerror or error}; nothing is left there: make room, or choose another --out"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
