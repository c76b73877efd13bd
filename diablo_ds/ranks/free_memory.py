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
    """Return the bytes that this process can still take, on a GPU or in main memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return min(int(free), _free_main_memory())  # weights pass through main memory
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
