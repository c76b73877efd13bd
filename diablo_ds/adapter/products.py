"""The product of a layer with a delta, ``Y = X W + b + X_a D``, and its exact gradients.

Plain functions of tensors; `diablo_ds.adapter.autograd` makes them differentiable.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from diablo_ds.adapter.block_products import (
    add_block_product,
    block_gradients,
    delta_gradient,
    write_block_product,
)
from diablo_ds.adapter.blocks import diagonal_blocks
from diablo_ds.adapter.kernels import triton_blocks
from diablo_ds.adapter.paths import PREFILLED_PATHS, SUMMED_PATHS, TRITON_PATHS


@contextmanager
def summed_weight(weight: Tensor, delta: Tensor, path: str = "summed") -> Iterator[Tensor]:
    """Add a delta to the diagonal blocks of a weight, and restore their bits on leaving.

    Only the blocks are copied and put back, ``1 / num_blocks`` of the weight, so nothing of the
    weight's size is allocated, and its bits are the same afterwards.

    Args:
        weight: ``[out_features, in_features]``, contiguous.
        delta: ``[num_blocks, in_block, out_block]``, of the same dtype.
        path: one of `SUMMED_PATHS`.

    Yields:
        The weight's data, which autograd does not see.
    """
    data = weight.data
    blocks = diagonal_blocks(data, delta.shape[0]).transpose(1, 2)  # [N, out_block, in_block]
    if path in TRITON_PATHS:
        saved = triton_blocks.add_to_diagonal(data, delta.data)
    else:
        saved = blocks.clone()
        blocks.add_(delta.data.transpose(1, 2))
    try:
        yield data
    finally:
        blocks.copy_(saved)


def product(
    x: Tensor,
    x_adapter: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    delta: Tensor,
    path: str,
) -> Tensor:
    """Return ``Y = X W + b + X_a D``, ``[..., out_features]``; see
    `diablo_ds.adapter.autograd.DiaBloProduct`.

    Args:
        x: ``[..., in_features]``.
        x_adapter: the same shape, or None where the adapter sees ``x``.
        weight: ``[out_features, in_features]``.
        bias: ``[out_features]`` or None.
        delta: ``[num_blocks, in_block, out_block]``.
        path: one of `diablo_ds.adapter.paths.DELTA_PATHS`.
    """
    # The original linear: DeepSpeed replaces F.linear, which we must not nest in here.
    if path in SUMMED_PATHS:
        with summed_weight(weight, delta, path) as sum_of_both:
            summed: Tensor = torch.ops.aten.linear(x, sum_of_both, bias)
        return summed
    x_rows = x.reshape(-1, x.shape[-1])
    adapter_rows = x_rows if x_adapter is None else x_adapter.reshape(-1, x.shape[-1])
    if path in PREFILLED_PATHS:
        y = x.new_empty((x_rows.shape[0], weight.shape[0]))
        write_block_product(adapter_rows, delta, y, path, bias)
        y.addmm_(x_rows, weight.t())
    else:
        y = torch.ops.aten.linear(x_rows, weight, bias)
        add_block_product(adapter_rows, delta, y, path)
    return y.view(*x.shape[:-1], y.shape[1])


def product_gradients(
    grad_y: Tensor,
    x: Tensor,
    x_adapter: Tensor | None,
    weight: Tensor,
    delta: Tensor,
    path: str,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of ``x``, ``x_adapter`` and ``delta`` that are needed, else None.

    Args:
        grad_y: ``[..., out_features]``.
        x: as in `product`, like the next four.
        x_adapter: see there.
        weight: see there.
        delta: see there.
        path: see there.
        needs: which of the three gradients are needed.
    """
    grad_rows = grad_y.reshape(-1, grad_y.shape[-1])
    rows = (x if x_adapter is None else x_adapter).reshape(-1, x.shape[-1])
    if path in SUMMED_PATHS:
        grad_x = None
        if needs[0]:
            with summed_weight(weight, delta, path) as sum_of_both:
                grad_x = torch.mm(grad_rows, sum_of_both).view(x.shape)
        return grad_x, None, delta_gradient(rows, grad_rows, delta, path) if needs[2] else None

    prefills = path in PREFILLED_PATHS and x_adapter is None
    adds = x_adapter is None and not prefills
    grad_x = torch.mm(grad_rows, weight) if needs[0] and not prefills else None
    # Where the delta's part goes: the gradient of x, or of the input that is the adapter's own.
    part = None  # [tokens, in_features]
    if needs[0] if x_adapter is None else needs[1]:
        part = grad_x if adds else rows.new_empty(rows.shape)
    grad_delta = block_gradients(rows, grad_rows, delta, part, path, needs[2], accumulate=adds)
    if x_adapter is not None:
        return _shaped_like(x, grad_x), _shaped_like(x_adapter, part), grad_delta
    if prefills and part is not None:
        part.addmm_(grad_rows, weight)
    return _shaped_like(x, part), None, grad_delta


def delta_product(x: Tensor, delta: Tensor, path: str) -> Tensor:
    """Return ``X D``, ``[..., out_features]``, of ``x`` ``[..., in_features]``."""
    rows = x.reshape(-1, x.shape[-1])
    y = x.new_empty((rows.shape[0], delta.shape[0] * delta.shape[2]))
    return write_block_product(rows, delta, y, path).view(*x.shape[:-1], y.shape[1])


def delta_product_gradients(
    grad_y: Tensor, x: Tensor, delta: Tensor, path: str, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return ``dY D^T`` and ``dD_i = X_i^T dY_i``, those that are needed, else None.

    Args:
        grad_y: ``[..., out_features]``.
        x: ``[..., in_features]``.
        delta: ``[num_blocks, in_block, out_block]``.
        path: as in the forward.
        needs: which of the two gradients are needed.
    """
    rows, grad_rows = x.reshape(-1, x.shape[-1]), grad_y.reshape(-1, grad_y.shape[-1])
    grad_x = rows.new_empty(rows.shape) if needs[0] else None
    grad_delta = block_gradients(rows, grad_rows, delta, grad_x, path, needs[1], accumulate=False)
    return _shaped_like(x, grad_x), grad_delta


def _shaped_like(x: Tensor, rows: Tensor | None) -> Tensor | None:
    return None if rows is None else rows.view(x.shape)
