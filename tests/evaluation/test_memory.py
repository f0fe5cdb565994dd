import threading
import time

import psutil
import pytest

from secateur.evaluation.memory import PeakMemory


def test_a_large_allocation_shows_after_it_is_gone():
    size = 200_000_000
    before = psutil.Process().memory_info().rss
    with PeakMemory(interval=0.005) as peak:
        block = bytearray(size)
        block[::4096] = b"x" * len(block[::4096])
        time.sleep(0.1)
        del block
    assert peak.bytes == peak.host_bytes
    assert peak.bytes > before + 0.9 * size


def test_a_block_of_no_time_has_a_peak():
    with PeakMemory() as peak:
        pass
    assert peak.bytes > 1_000_000


def test_the_watcher_ends_also_on_error():
    with pytest.raises(KeyError), PeakMemory():
        raise KeyError
    assert not [thread for thread in threading.enumerate() if thread.name == "secateur-peak-memory"]
