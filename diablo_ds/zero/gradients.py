"""Gradients of the deltas: accumulated in fp32, reduced over ranks once a step, or dropped.

DeepSpeed 0.19 accumulates the micro batches of a step in the model's dtype wherever their reduction
is deferred. In bf16 a sum of many small parts then stops growing: each part is rounded away once
the sum is a few hundred times larger. Here each delta's gradient is an fp32 tensor from the start,
to which PyTorch adds every micro batch's, and it stays fp32 through the reduction (unless the
DeepSpeed config names another `communication_data_type`) up to AdamW.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diablo_ds.adapter.gradients import start_from_zero


def keep_fp32_gradients(engine: Any) -> None:
    """Let the ZeRO-1 or 2 optimizer of a new engine keep fp32 gradients as they are.

    By `grad_accum_dtype` DeepSpeed would take another optimizer at stage 1, which cannot defer the
    reduction, and at stage 2 still round to the model's dtype ahead of the reduction. At stage 3
    that setting is enough, and stage 0 keeps what it finds.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer.gradient_accumulation_dtype = torch.float32
        engine.optimizer._gradient_reduction_buffer_dtype = lambda: torch.float32


def check_gradients_once(engine: Any) -> None:
    """Let the ZeRO-1 or 2 optimizer of a new engine find infinite gradients by their norm alone.

    DeepSpeed looks for them in each gradient, by a dozen small kernels, and then computes the norm,
    tensor by tensor. That of one infinite gradient is infinite itself, and DeepSpeed then skips the
    update as well; and all tensors' norms take one kernel. With some 160 deltas that is most of
    what an update launches.
    """
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() in (1, 2) and not optimizer.cpu_offload:
        optimizer.check_overflow = lambda partition_gradients=True: None
        optimizer.get_grad_norm_direct = functools.partial(_gradient_norm, optimizer)


def _gradient_norm(
    optimizer: Any, gradients: Iterable[Tensor], parameters: Iterable[nn.Parameter]
) -> Tensor:
    """Return the norm of a group's gradients over all ranks, ``[]`` in fp32; may not be finite.

    Collective: every rank must call this.

    Args:
        optimizer: DeepSpeed's optimizer of ZeRO-1 or 2.
        gradients: this rank's part of them, with DeepSpeed's padding.
        parameters: theirs; not needed.
    """
    own = [grad for grad in gradients if not getattr(grad, "_zero_padding", False)]
    norms = torch._foreach_norm(own, 2, dtype=torch.float64)
    total = torch.stack(norms).square().sum() if norms else torch.zeros((), dtype=torch.float64)
    squares = total.to(torch.float32).to(optimizer.device)
    torch.distributed.all_reduce(squares, group=optimizer.dp_process_group)
    return squares.sqrt()


@contextlib.contextmanager
def one_gradient_reduction(engine: Any, deltas: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Accumulate delta gradients in fp32, and reduce them over ranks once, when the block ends.

    Where the block is left by an exception, the gradients are dropped and nothing is reduced, so
    that no rank waits in a collective for one that failed.

    Collective: every rank must enter it, once per optimizer step, around all backward passes.
    """
    start_from_zero(deltas.values())
    if engine.zero_optimization_stage():
        with _forgetting(engine), engine.coalesce_grad_reduction(), _dropping(deltas.values()):
            yield
    else:
        with engine.no_sync(), _dropping(deltas.values()):
            yield
        engine.allreduce_gradients()


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
