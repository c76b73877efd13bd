"""How fast this CPU multiplies in bf16, on which the choice of a precision depends."""

from __future__ import annotations

import time

import torch
from torch.nn.functional import linear

_PROBE_ELEMENTS = 1 << 18
_LEAST_ROWS, _MOST_ROWS = 8, 1024
_PROBE_REPEATS = 3
_PROBE_ROUND_S = 0.04
"""Longest round of the probe, after the first."""
_PAIR = (torch.float32, torch.bfloat16)


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
