"""Gradients of the deltas: accumulated in fp32, reduced over ranks once per step, or dropped.

DeepSpeed 0.19 accumulates the micro batches of a step in the model's dtype wherever their reduction
is deferred. In bf16 a sum of many small parts then stops growing: each part is rounded away once
the sum is a few hundred times larger. Here each delta's gradient is an fp32 tensor from the start,
to which PyTorch adds every micro batch's, and it stays fp32 through the reduction (unless the
DeepSpeed config names another `communication_data_type`) up to AdamW.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn
from torch.profiler import record_function

from diablo_ds.adapter.gradients import start_from_zero
from diablo_ds.zero.phases import REDUCE, named_exit


@contextlib.contextmanager
def one_gradient_reduction(ds_engine: Any, deltas: Collection[nn.Parameter]) -> Iterator[None]:
    """Accumulate delta gradients in fp32, and reduce them over ranks once, when the block ends.

    Where the block is left by an exception, the gradients are dropped and nothing is reduced, so
    that no rank waits in a collective for one that failed.

    Collective: every rank must enter it, once per optimizer step, around all backward passes.
    """
    start_from_zero(deltas)
    if ds_engine.zero_optimization_stage():
        reduction = named_exit(REDUCE, ds_engine.coalesce_grad_reduction())
        with _forgetting(ds_engine), reduction, _dropping(deltas):
            yield
    else:
        with ds_engine.no_sync(), _dropping(deltas):
            yield
        with record_function(REDUCE):
            ds_engine.allreduce_gradients()


@contextlib.contextmanager
def _dropping(deltas: Collection[nn.Parameter]) -> Iterator[None]:
    """Leave no gradient to reduce where the block is left by an exception."""
    try:
        yield
    except BaseException:
        for delta in deltas:
            delta.grad = None
        raise


@contextlib.contextmanager
def _forgetting(ds_engine: Any) -> Iterator[None]:
    """Let DeepSpeed count the next reduction as the step's first, after one of nothing."""
    try:
        yield
    except BaseException:
        ds_engine.optimizer.zero_grad()
        raise
