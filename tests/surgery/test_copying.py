"""Bytes that go past the cache are the ones that go through it, wherever they begin, and whatever the system refuses."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secateur.errors import ModelError
from secateur.surgery import copying
from secateur.surgery.copying import new_file

SIZE = 50_001
"""Bytes of the source: no whole number of blocks, and more than a buffer holds."""

PIECES = st.lists(
    st.one_of(
        st.binary(max_size=300),
        st.tuples(st.integers(0, SIZE), st.integers(0, SIZE))
        .map(sorted)
        .map(lambda ends: (ends[0], ends[1] - ends[0])),
    ),
    max_size=12,
)
"""Bytes to be written, or a place in the source and a number of bytes."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as large, and buffers are of two blocks."""
    monkeypatch.setattr(copying, "LARGE", 0)
    monkeypatch.setattr(copying, "_BUFFER", 8192)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


@pytest.fixture
def directly(tmp_path: Path) -> None:
    """Only where files can be read and written past the cache at all."""
    (tmp_path / "probe").touch()
    handle = copying._opened_directly(tmp_path / "probe", os.O_RDONLY)
    if handle is None:
        pytest.skip("this file system, or system, reads nothing past its cache")
    os.close(handle)


def num_open() -> int:
    """How many files this process has open."""
    return sum(1 for _ in Path("/dev/fd").iterdir())


def write(path: Path, source: Path, pieces: list[bytes | tuple[int, int]]) -> None:
    with new_file(path, SIZE) as file:
        for piece in pieces:
            file.write(piece) if isinstance(piece, bytes) else file.copy(source, *piece)


def expected(source: Path, pieces: list[bytes | tuple[int, int]]) -> bytes:
    raw = source.read_bytes()
    return b"".join(each if isinstance(each, bytes) else raw[each[0] : sum(each)] for each in pieces)


@given(pieces=PIECES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_pieces_come_out_as_they_are(tmp_path, source, pieces):
    write(tmp_path / "out", source, pieces)
    assert (tmp_path / "out").read_bytes() == expected(source, pieces)


def test_a_file_that_was_there_and_longer_is_replaced(tmp_path, source):
    (tmp_path / "out").write_bytes(bytes(2 * SIZE))
    write(tmp_path / "out", source, [(7, 4096)])
    assert (tmp_path / "out").read_bytes() == source.read_bytes()[7:4103]


def test_two_sources_in_turn_and_no_file_stays_open(tmp_path, source, directly):
    other = tmp_path / "other"
    other.write_bytes(np.random.default_rng(1).bytes(SIZE))
    before = num_open()
    with new_file(tmp_path / "out", SIZE) as file:
        for start in range(0, 30_000, 5000):
            file.copy(source if start % 10_000 else other, start + 1, 5000)
    wanted = [
        (source if start % 10_000 else other).read_bytes()[start + 1 : start + 5001] for start in range(0, 30_000, 5000)
    ]
    assert (tmp_path / "out").read_bytes() == b"".join(wanted)
    assert num_open() == before


@pytest.mark.parametrize("call", ["preadv", "write"])
def test_a_file_system_that_refuses_once_it_is_open_is_gone_through_its_cache(
    tmp_path, source, directly, monkeypatch, call
):
    import fcntl

    real, refused = getattr(os, call), []

    def refusing(handle, *args):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(handle)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(handle, *args)

    monkeypatch.setattr(os, call, refusing)
    write(tmp_path / "out", source, [b"head", (1, 20_000), (20_003, 20_000)])
    monkeypatch.undo()
    assert (tmp_path / "out").read_bytes() == expected(source, [b"head", (1, 20_000), (20_003, 20_000)])
    assert len(refused) == 1


@pytest.mark.parametrize("refuses", ["the source", "the target", "both", "no such flag"])
def test_a_file_system_that_opens_nothing_directly_is_gone_through_its_cache(tmp_path, source, monkeypatch, refuses):
    real = os.open

    def refusing(path, flags, *args, **named):
        who = "the source" if Path(path) == source else "the target"
        if flags & getattr(os, "O_DIRECT", 0) and refuses in (who, "both"):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *args, **named)

    if refuses == "no such flag":
        monkeypatch.delattr(os, "O_DIRECT", raising=False)
    else:
        monkeypatch.setattr(os, "open", refusing)
    write(tmp_path / "out", source, [(3, 40_000)])
    monkeypatch.undo()
    assert (tmp_path / "out").read_bytes() == expected(source, [(3, 40_000)])


def test_writes_that_stop_short_go_on_where_they_stopped(tmp_path, source, directly, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[: min(len(data), 4096)]))
    write(tmp_path / "out", source, [(5, 40_000)])
    assert (tmp_path / "out").read_bytes() == expected(source, [(5, 40_000)])


def test_a_source_that_became_shorter_is_damaged(tmp_path, source):
    with pytest.raises(ModelError, match="source is damaged: it became shorter"):
        write(tmp_path / "out", source, [(SIZE - 10, 11)])
    with pytest.raises(ModelError, match="source is damaged: it became shorter"):
        write(tmp_path / "out", source, [(SIZE + 8192, 1)])


def test_a_source_that_is_gone_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"cannot read .*gone: No such file"):
        write(tmp_path / "out", tmp_path / "gone", [(0, 1)])


def test_other_errors_pass_and_close_the_file(tmp_path, source, directly, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = num_open()
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "out", source, [(0, SIZE)])
    monkeypatch.undo()
    assert num_open() == before
