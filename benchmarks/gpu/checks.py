"""Right on the GPU: losses, gradients, packed rows, layers, whole steps, real runs, resume."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.gpu.check_layers import check_layer
from benchmarks.gpu.check_model import SIZES, attentions, check_packing, check_path
from benchmarks.gpu.check_runs import Runs
from benchmarks.gpu.check_training import check_steps
from benchmarks.gpu.models import device
from benchmarks.gpu.records import Case
from diablo_ds.blocks import TRITON_PATHS
from diablo_ds.layers import DELTA_PATHS

_LIMIT_S, _LONG_LIMIT_S, _RUN_LIMIT_S = 60.0, 120.0, 200.0
_CPU_FACTOR = 20
"""Limits on a CPU, which may be a busy one, in those on a GPU."""
_ZERO3 = "steps, ZeRO-3"
Check = Callable[[], dict[str, Any]]


def cases(scale: str) -> Iterator[Case]:
    """Yield the checks, the most telling first."""
    for name, check, limit_s in _checks(scale):
        factor = 1 if device().type == "cuda" else _CPU_FACTOR
        # Whatever ZeRO-3 has changed in libraries goes with its process.
        yield Case(name, check, factor * limit_s, alone=name == _ZERO3)


def _checks(scale: str) -> Iterator[tuple[str, Check, float]]:
    """Yield name, check and seconds that it may take."""
    for path in DELTA_PATHS:
        yield f"gradients, {path}", _on_device(path, partial(check_path, scale, path)), _LIMIT_S
    window = SIZES[scale].length // 8
    for attention in attentions():
        packed = partial(check_packing, scale, attention)
        yield f"packed, {attention}", packed, _LIMIT_S
        yield f"packed with a window, {attention}", partial(packed, window), _LIMIT_S
    yield "steps, ZeRO-2", partial(check_steps, scale, 2), _LONG_LIMIT_S
    for path in DELTA_PATHS:
        yield f"layer, {path}", _on_device(path, partial(check_layer, scale, path)), _LIMIT_S
    yield _ZERO3, partial(check_steps, scale, 3), _LONG_LIMIT_S
    runs = Runs()
    yield "run, bf16, ZeRO-3, resumed", runs.resumed, _RUN_LIMIT_S
    yield "run, fp16, ZeRO-2", runs.fp16, _RUN_LIMIT_S
    yield "run, packed", runs.packed, _RUN_LIMIT_S
    if importlib.util.find_spec("diablo_ds.compilation") is not None:
        for path in DELTA_PATHS:
            compiled = partial(check_path, scale, path, compiled=True, only=("bf16",))
            yield f"compiled, {path}", _on_device(path, compiled), _LONG_LIMIT_S


def _on_device(path: str, check: Check) -> Check:
    if path in TRITON_PATHS and device().type != "cuda":
        return lambda: {"skipped": f"{path} needs a GPU"}
    return check
