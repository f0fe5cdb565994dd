"""How much memory a step takes at its worst moment."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil
import torch

__all__ = ["PeakMemory"]


class PeakMemory:
    """The most memory this process holds while the block runs.

    ```python
    with PeakMemory() as peak:
        ...
    peak.bytes
    ```
    """

    host_bytes: int
    """Largest resident set seen, bytes; looked at every `interval` seconds, and at both ends."""

    device_bytes: int
    """Most CUDA memory allocated, bytes, over all devices; 0 without CUDA."""

    def __init__(self, *, interval: float = 0.05) -> None:
        self.host_bytes = 0
        self.device_bytes = 0
        self._interval = interval
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def bytes(self) -> int:
        """The scarcer memory's peak, bytes: the CUDA devices' if they were used, else the process's."""
        return self.device_bytes or self.host_bytes

    def __enter__(self) -> PeakMemory:
        for device in _cuda_devices():
            torch.cuda.reset_peak_memory_stats(device)
        self._look()
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, name="secateur-peak-memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._look()
        self.device_bytes = sum(torch.cuda.max_memory_allocated(device) for device in _cuda_devices())

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self._look()

    def _look(self) -> None:
        self.host_bytes = max(self.host_bytes, self._process.memory_info().rss)


def _cuda_devices() -> range:
    """The CUDA devices in use; none while nothing has been put on one."""
    used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch has no types here
    return range(torch.cuda.device_count() if used else 0)
