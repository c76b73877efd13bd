"""What this rank has of its device's memory: now, at most, and at most inside a block."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from diablo_ds.ranks.free_memory import free_device_bytes

_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"
"""What `/proc/self/clear_refs` takes for a new peak of the resident memory, see proc(5)."""


class DeviceMemory:
    """Memory of one rank: allocated by PyTorch on a GPU, resident on a CPU.

    Args:
        device: the rank's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_gpu = device.type == "cuda"
        self._peak_before = 0

    @property
    def now(self) -> int:
        """In bytes."""
        if self._is_gpu:
            return torch.cuda.memory_allocated(self._device)
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    @property
    def peak(self) -> int:
        """In bytes, since the start; without what was in `apart` on a GPU."""
        if self._is_gpu:
            return max(torch.cuda.max_memory_allocated(self._device), self._peak_before)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @property
    def limit(self) -> int:
        """What this rank could have of the device in all, in bytes."""
        return self.now + free_device_bytes(self._device)

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Leave what training does not need now of a GPU's memory to what is inside.

        It does not count for `peak`, which is the memory that training needs; on a CPU it does.
        """
        if not self._is_gpu:
            yield
            return
        peak = self.peak
        torch.cuda.empty_cache()
        try:
            yield
        finally:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
            self._peak_before = peak

    @contextlib.contextmanager
    def measuring(self) -> Iterator[Callable[[], int]]:
        """Give a function that returns the peak since the block was entered, in bytes.

        On a CPU it is that of all threads of the process, and `peak` begins anew.
        """
        if self._is_gpu:
            with self.apart():
                torch.cuda.reset_peak_memory_stats(self._device)
                yield lambda: torch.cuda.max_memory_allocated(self._device)
            return
        reset_resident_peak()
        yield resident_peak


def reset_resident_peak() -> None:
    """Let `resident_peak` begin anew, where the system can.

    Raises:
        OSError: if it cannot.
    """
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")


def resident_peak() -> int:
    """Return the most bytes that were resident of this process since its start or the reset."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} must have VmHWM; got none")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a GPU or the host had no memory left."""
    # PyTorch's allocator on the CPU has no class of its own for it.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )
