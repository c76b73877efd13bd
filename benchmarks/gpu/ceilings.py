"""What this card reaches at most: a large product, a large copy."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.models import device, synchronize
from benchmarks.gpu.records import Case


def cases(scale: str) -> Iterator[Case]:
    """Yield the two ceilings."""
    width, copied = (8192, 2**32) if scale == "full" else (64, 2**16)
    yield Case("product", partial(_product, width))
    yield Case("copy", partial(_copy, copied))


def milliseconds(function: Callable[[], object], repeats: int = 10, warm_up: int = 3) -> float:
    """Return the median time of a call on the device, by events; on a CPU, by the clock."""
    for _ in range(warm_up):
        function()
    synchronize()
    times: list[float] = []
    if torch.cuda.is_available():
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        marks[0].record()
        for mark in marks[1:]:
            function()
            mark.record()
        synchronize()
        times = [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
    else:
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - start))
    return float(statistics.median(times))


def _product(width: int) -> dict[str, Any]:
    a, b = (torch.randn(width, width, device=device(), dtype=torch.bfloat16) for _ in range(2))
    ms = milliseconds(lambda: a @ b, repeats=30)
    return {"width": width, "ms": ms, "tflops": 2 * width**3 / ms / 1e9}


def _copy(num_bytes: int) -> dict[str, Any]:
    source = torch.randint(256, (num_bytes,), device=device(), dtype=torch.uint8)
    target = torch.empty_like(source)
    ms = milliseconds(lambda: target.copy_(source))
    return {"bytes": num_bytes, "ms": ms, "gbs": 2 * num_bytes / ms / 1e6}
