"""Right on the GPU: losses, gradients, packed rows, layers, whole steps, real runs, resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.gpu.check_layers import check_layer
from benchmarks.gpu.check_model import SIZES, check_path
from benchmarks.gpu.check_packing import attentions, check_packing, check_repeats
from benchmarks.gpu.check_runs import Runs
from benchmarks.gpu.check_training import check_steps
from benchmarks.gpu.models import device
from benchmarks.gpu.records import Case
from diablo_ds.adapter.paths import DELTA_PATHS, TRITON_PATHS

_LIMIT_S, _LONG_LIMIT_S, _RUN_LIMIT_S = 60.0, 120.0, 200.0
_CPU_FACTOR = 20
"""Limits on a CPU, which may be a busy one, in those on a GPU."""
_BF16 = ("bf16",)
_COMPILED = ("fused", "triton_prefilled")
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
    runs = Runs()
    plain = [path for path in DELTA_PATHS if path not in TRITON_PATHS]
    for path in plain:
        yield f"gradients, {path}", _with(runs, partial(check_path, scale, path)), _LIMIT_S
    window = SIZES[scale].length // 8
    for attention in attentions():
        packed = partial(check_packing, scale, attention)
        yield f"packed, {attention}", packed, _LIMIT_S
        yield f"packed with a window, {attention}", partial(packed, window), _LIMIT_S
    for attention in attentions():
        yield f"repeated, {attention}", partial(check_repeats, scale, attention), _LIMIT_S
    yield "steps, ZeRO-2", partial(check_steps, scale, 2), _LONG_LIMIT_S
    for path in plain:
        yield f"layer, {path}", partial(check_layer, scale, path), _LIMIT_S
    yield "run, bf16, ZeRO-3, resumed", runs.resumed, _RUN_LIMIT_S
    yield "run, fp16, ZeRO-2", runs.fp16, _RUN_LIMIT_S
    yield "run, packed", runs.packed, _RUN_LIMIT_S
    yield _ZERO3, partial(check_steps, scale, 3), _LONG_LIMIT_S
    # Kernels are compiled once for each shape and dtype, so these go through few of them.
    for path in TRITON_PATHS:
        few = partial(check_path, scale, path, only=("bf16", "fp16") if path == "triton" else _BF16)
        yield f"gradients, {path}", _on_gpu(path, few), _LONG_LIMIT_S
    for path in TRITON_PATHS:
        few_shapes = partial(check_layer, scale, path, few=True)
        yield f"layer, {path}", _on_gpu(path, few_shapes), _LONG_LIMIT_S
    for path in _COMPILED:
        compiled = partial(check_path, scale, path, compiled=True, only=_BF16)
        yield f"compiled, {path}", _on_gpu(path, compiled), _LONG_LIMIT_S


def _with(runs: Runs, check: Check) -> Check:
    """Return a check that starts the runs beside it, unless they run already."""

    def start_and_check() -> dict[str, Any]:
        runs.start()
        return check()

    return start_and_check


def _on_gpu(path: str, check: Check) -> Check:
    if path in TRITON_PATHS and device().type != "cuda":
        return lambda: {"skipped": f"{path} needs a GPU"}
    return check
