"""Products with a delta alone: ``X D`` and the gradients of ``X`` and ``D``, block by block.

By PyTorch's batched products or, on a path of Triton's, by the kernels of
`diablo_ds.adapter.kernels.triton_blocks`. Rows are tokens, ``[tokens, features]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diablo_ds.adapter.kernels import triton_blocks
from diablo_ds.adapter.paths import TRITON_PATHS


def delta_gradient(x_rows: Tensor, grad_rows: Tensor, delta: Tensor, path: str) -> Tensor:
    """Return ``X_i^T dY_i`` of each block, shaped like ``delta``, from ``[tokens, features]``."""
    if path in TRITON_PATHS:
        return triton_blocks.delta_gradient(x_rows, grad_rows, delta.shape[0])
    x_blocks = _block_view(x_rows, delta.shape[0])  # [N, tokens, in_block]
    grad_blocks = _block_view(grad_rows, delta.shape[0])  # [N, tokens, out_block]
    if x_rows.device.type == "cpu" and x_rows.dtype != torch.float32:
        # oneDNN's half-precision products of strided blocks take up to twice as long as the
        # copies and the product of contiguous ones (benchmarks/layer.py).
        x_blocks, grad_blocks = x_blocks.contiguous(), grad_blocks.contiguous()
    return torch.bmm(x_blocks.transpose(1, 2), grad_blocks)


def _block_view(x: Tensor, num_blocks: int) -> Tensor:
    """View ``[tokens, num_blocks * block]`` as ``[num_blocks, tokens, block]``, without a copy."""
    num_tokens, width = x.shape
    return x.view(num_tokens, num_blocks, width // num_blocks).transpose(0, 1)


def write_block_product(
    rows: Tensor, delta: Tensor, y: Tensor, path: str, bias: Tensor | None = None
) -> Tensor:
    """Write ``b + rows D`` to ``y``, ``[tokens, features]``, through its block view."""
    if path in TRITON_PATHS:
        return triton_blocks.block_product(rows, delta, y, bias)
    num_blocks = delta.shape[0]
    row_blocks, y_blocks = _block_view(rows, num_blocks), _block_view(y, num_blocks)
    if bias is None:
        torch.bmm(row_blocks, delta, out=y_blocks)
    else:
        torch.baddbmm(bias.view(num_blocks, 1, -1), row_blocks, delta, out=y_blocks)
    return y


def add_block_product(rows: Tensor, delta: Tensor, y: Tensor, path: str) -> Tensor:
    """Add ``rows D`` to ``y``, ``[tokens, features]``, through its block view."""
    if path in TRITON_PATHS:
        return triton_blocks.block_product(rows, delta, y, accumulate=True)
    num_blocks = delta.shape[0]
    _block_view(y, num_blocks).baddbmm_(_block_view(rows, num_blocks), delta)
    return y


def block_gradients(
    rows: Tensor,
    grad_rows: Tensor,
    delta: Tensor,
    target: Tensor | None,
    path: str,
    needs_delta: bool,
    *,
    accumulate: bool,
) -> Tensor | None:
    """Write ``dY D^T`` to the target, or add it; return the delta's gradient where it is needed."""
    if target is not None:
        if needs_delta and path in TRITON_PATHS:
            return triton_blocks.block_gradients(
                rows, grad_rows, delta, target, accumulate=accumulate
            )
        transposed = delta.transpose(1, 2)  # [N, out_block, in_block]
        if accumulate:
            add_block_product(grad_rows, transposed, target, path)
        else:
            write_block_product(grad_rows, transposed, target, path)
    return delta_gradient(rows, grad_rows, delta, path) if needs_delta else None
