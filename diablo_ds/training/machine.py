"""What each rank finds on its machine that open settings depend on, gathered over all ranks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear

from diablo_ds.adapter.kernels import triton_support
from diablo_ds.config.run import RunConfig
from diablo_ds.model.attention import attentions_by_length
from diablo_ds.ranks import distributed
from diablo_ds.zero.support import has_bf16

_PROBE_ELEMENTS = 1 << 18
_LEAST_ROWS, _MOST_ROWS = 8, 1024
_PROBE_REPEATS = 3
_PROBE_ROUND_S = 0.04
"""Longest round of the probe, after the first."""
_PAIR = (torch.float32, torch.bfloat16)


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
    mine = Machine(
        host=distributed.host_name(),
        device_type=device.type,
        has_bf16=has_bf16(device),
        bf16_factor=measure_bf16_factor(width) if measured else None,
        attentions_by_length=attentions_by_length(),
        has_triton=triton_support.has_package(),
        num_threads=torch.get_num_threads(),
    )
    found = distributed.gather_objects(mine)
    return found if len(found) > 1 else found * distributed.world_size()


def measure_bf16_factor(width: int) -> float:
    """Return the time of products in bf16 over that in fp32 on this CPU, in about 50 ms.

    A forward's product and the backward's to its input, ``[rows, width]`` with a weight of that
    width. There are as many rows as the time allows. One thread is used: several on a busy machine
    would measure how they wait for each other.

    Args:
        width: the model's hidden size.
    """
    outputs = max(16, min(width, _PROBE_ELEMENTS // width))
    num_threads = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    torch.set_num_threads(1)
    try:
        rows = _LEAST_ROWS
        while True:
            fp32, bf16 = (_product_s(rows, width, outputs, dtype, generator) for dtype in _PAIR)
            next_round_s = 4 * _PROBE_REPEATS * (fp32 + bf16)
            if next_round_s > _PROBE_ROUND_S or rows >= _MOST_ROWS:
                return bf16 / fp32
            rows *= 4
    finally:
        torch.set_num_threads(num_threads)


@torch.no_grad()
def _product_s(
    rows: int, width: int, outputs: int, dtype: torch.dtype, generator: torch.Generator
) -> float:
    """Return the least seconds of a product and of its backward."""
    x = torch.rand(rows, width, generator=generator).to(dtype)
    weight = torch.rand(outputs, width, generator=generator).to(dtype)
    seconds = []
    for _ in range(_PROBE_REPEATS):
        start = time.perf_counter()
        y = linear(x, weight)  # [rows, outputs]
        y @ weight  # [rows, width], as the gradient of x
        seconds.append(time.perf_counter() - start)
    return min(seconds)
