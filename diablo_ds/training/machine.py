"""What each rank finds on its machine that open settings depend on, gathered over all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from diablo_ds.adapter.kernels import triton_support
from diablo_ds.config.run import RunConfig
from diablo_ds.model.attention import attentions_by_length
from diablo_ds.model.bf16_speed import measure_bf16_factor
from diablo_ds.ranks import distributed
from diablo_ds.ranks.free_memory import free_device_bytes
from diablo_ds.zero.support import has_bf16


@dataclass(frozen=True)
class Machine:
    """What a rank found on its machine that open settings depend on."""

    host: str
    device_type: str
    """ "cpu", "cuda" and so on."""
    has_bf16: bool = True
    """Whether the device has bf16 instructions; on a CPU the factor tells it."""
    bf16_factor: float | None = None
    """Time of products in bf16 over that in fp32, on a CPU; None where it was not measured."""
    attentions_by_length: tuple[str, ...] = ()
    """Attentions of variable length that can be used, the best first: FlashAttention's packages,
    newest first, and PyTorch's own kernel."""
    has_triton: bool = False
    """Whether the package triton is installed."""
    num_threads: int = 1
    """Threads of a rank's products on a CPU."""
    device_name: str = ""
    """What the driver calls the GPU."""
    device_bytes: int = 0
    """Memory of the GPU; 0 on a CPU, or where it is not known."""
    taken_bytes: int = 0
    """What other processes and the driver have taken of it."""
    num_local_ranks: int = 1
    """Ranks on the rank's node."""


def look_at_machines(run_config: RunConfig, shapes: Any, device: torch.device) -> list[Machine]:
    """Return what every rank found, in the order of the ranks.

    Collective, where the ranks have joined: every rank must call this. A dry run joins no others;
    they then stand for machines like this one.

    Args:
        run_config: the run config; bf16 is measured where it may be taken.
        shapes: the base model on the meta device.
        device: this rank's device.
    """
    may_be_bf16 = run_config.precision in ("auto", "bf16")
    width = shapes.config.get_text_config().hidden_size
    measured = device.type == "cpu" and may_be_bf16
    name, total, taken = _look_at_gpu(device)
    mine = Machine(
        host=distributed.host_name(),
        device_type=device.type,
        has_bf16=has_bf16(device),
        bf16_factor=measure_bf16_factor(width) if measured else None,
        attentions_by_length=attentions_by_length(),
        has_triton=triton_support.has_package(),
        num_threads=torch.get_num_threads(),
        device_name=name,
        device_bytes=total,
        taken_bytes=taken,
        num_local_ranks=distributed.local_world_size(),
    )
    found = distributed.gather_values(mine)
    return found if len(found) > 1 else found * distributed.world_size()


def _look_at_gpu(device: torch.device) -> tuple[str, int, int]:
    """Return a GPU's name, its memory, and what of it is taken already, in bytes."""
    if device.type != "cuda":
        return "", 0, 0
    total = int(torch.cuda.get_device_properties(device).total_memory)
    return torch.cuda.get_device_name(device), total, max(0, total - free_device_bytes(device))
