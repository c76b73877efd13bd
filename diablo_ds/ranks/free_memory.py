"""How much memory this process can still take."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


def device_at_hand() -> torch.device:
    """Return the first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free_bytes(device: torch.device) -> int:
    """Return the bytes of weights that this process can still load to a GPU or main memory."""
    # They pass through main memory.
    return min(free_device_bytes(device), _free_main_memory())


def free_device_bytes(device: torch.device) -> int:
    """Return the bytes that this process can still take on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What PyTorch has taken and does not use.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + kept
    return _free_main_memory()


def _free_main_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    values = {
        name: int(rest.split()[0]) * 1024 for name, _, rest in (s.partition(":") for s in lines)
    }
    free = values.get("MemAvailable", values.get("MemFree", 0))
    with contextlib.suppress(OSError, ValueError):  # "max", or no control group of version 2
        limit = int((_CGROUP / "memory.max").read_text())
        free = min(free, limit - int((_CGROUP / "memory.current").read_text()))
    return free
