"""Gradients of the deltas: accumulated in fp32, reduced over ranks once a step, or dropped.

DeepSpeed 0.19 accumulates the micro batches of a step in the model's dtype wherever their reduction
is deferred. In bf16 a sum of many small parts then stops growing: each part is rounded away once
the sum is a few hundred times larger. Here each delta's gradient is an fp32 tensor from the start,
to which PyTorch adds every micro batch's, and it stays fp32 through the reduction (unless the
DeepSpeed config names another `communication_data_type`) up to AdamW.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn


def keep_fp32_gradients(engine: Any) -> None:
    """Let the ZeRO-1 or 2 optimizer of a new engine keep fp32 gradients as they are.

    By `grad_accum_dtype` DeepSpeed would take another optimizer at stage 1, which cannot defer the
    reduction, and at stage 2 still round to the model's dtype ahead of the reduction. At stage 3
    that setting is enough, and stage 0 keeps what it finds.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer.gradient_accumulation_dtype = torch.float32
        engine.optimizer._gradient_reduction_buffer_dtype = lambda: torch.float32


@contextlib.contextmanager
def one_gradient_reduction(engine: Any, deltas: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Accumulate delta gradients in fp32, and reduce them over ranks once, when the block ends.

    Where the block is left by an exception, the gradients are dropped and nothing is reduced, so
    that no rank waits in a collective for one that failed.

    Collective: every rank must enter it, once per optimizer step, around all backward passes.
    """
    _start_from_zero(deltas.values())
    if engine.zero_optimization_stage():
        with _forgetting(engine), engine.coalesce_grad_reduction(), _dropping(deltas.values()):
            yield
    else:
        with engine.no_sync(), _dropping(deltas.values()):
            yield
        engine.allreduce_gradients()


def _start_from_zero(deltas: Iterable[nn.Parameter]) -> None:
    """Give each delta an fp32 gradient of zeros, ``[num_blocks, in_block, out_block]``.

    PyTorch then adds in place and in fp32. So a delta that no micro batch of this rank uses has a
    gradient too, and every rank reduces the same tensors.
    """
    for delta in deltas:
        # Under ZeRO-3 a delta may be partitioned now; its own shape is then [0].
        shape = getattr(delta, "ds_shape", delta.shape)
        delta.grad = torch.empty_like(delta)
        delta.grad.data = torch.zeros(shape, dtype=torch.float32, device=delta.device)


@contextlib.contextmanager
def _dropping(deltas: Iterable[nn.Parameter]) -> Iterator[None]:
    """Leave no gradient to reduce where the block is left by an exception."""
    try:
        yield
    except BaseException:
        for delta in deltas:
            delta.grad = None
        raise


@contextlib.contextmanager
def _forgetting(engine: Any) -> Iterator[None]:
    """Let DeepSpeed count the next reduction as the step's first, after one of nothing."""
    try:
        yield
    except BaseException:
        engine.optimizer.zero_grad()
        raise
