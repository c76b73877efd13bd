"""The block product by Triton kernels: its tiles and its launches.

The kernels' module is imported with the first launch, and triton with it. Dtypes are those of
`diablo_ds.adapter.kernels.triton_support.DTYPES`.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor

from diablo_ds.adapter.kernels.triton_support import is_interpreted
from diablo_ds.adapter.kernels.triton_tiles import (
    FP32_TILES,
    GRADIENT_TILES,
    MOST_SUMS,
    PRODUCT_TILES,
    TWO_LAUNCHES,
    Tile,
    count_splits,
    fastest,
    padded,
    step_of,
)


def block_product(
    x: Tensor,
    delta: Tensor,
    y: Tensor,
    bias: Tensor | None = None,
    *,
    accumulate: bool = False,
) -> Tensor:
    """Write ``b + X D`` to ``y``, or add ``X D`` to it in place, all blocks in one launch.

    Args:
        x: ``[tokens, num_blocks * in_block]``, of any row stride.
        delta: ``[num_blocks, in_block, out_block]``, of any strides.
        y: ``[tokens, num_blocks * out_block]``, contiguous rows of any stride.
        bias: ``[num_blocks * out_block]`` or None.
        accumulate: add to what ``y`` holds.

    Returns:
        ``y``. All tensors are of one dtype; sums are in fp32.
    """
    from diablo_ds.adapter.kernels import triton_kernels

    num_blocks, in_block, out_block = delta.shape
    num_tokens = x.shape[0]
    if not y.numel():
        return y
    x = _with_contiguous_rows(x)
    step = step_of(x.dtype, in_block)
    counts, units = _in_units(in_block, out_block)

    def launch(tile: Tile, target: Tensor) -> None:
        column_tiles = -(-out_block // tile.columns)
        grid = (-(-num_tokens // tile.rows) * num_blocks * column_tiles,)
        triton_kernels.block_product[grid](
            x,
            delta,
            bias,
            target,
            num_tokens,
            num_blocks,
            x.stride(0),
            target.stride(0),
            *delta.stride(),
            *counts,
            **units,
            has_bias=bias is not None,
            accumulate=accumulate,
            in_fp32=_in_fp32(x.dtype),
            step=step,
            **tile._asdict(),
        )

    tiles = [
        tile._replace(columns=min(tile.columns, padded(out_block)))
        for tile in (FP32_TILES if x.dtype == torch.float32 else PRODUCT_TILES)
    ]
    is_transposed = delta.stride(2) != 1
    key = ("product", x.dtype, in_block, out_block, is_transposed)
    with _on_device_of(x):
        # Tried on an output of its own: y must be added to only once.
        tile = fastest(key, tiles, x, lambda tile: launch(tile, torch.empty_like(y)))
        launch(tile, y)
    return y


def delta_gradient(
    x: Tensor, grad_y: Tensor, num_blocks: int, *, num_splits: int | None = None
) -> Tensor:
    """Return ``dD_i = X_i^T dY_i`` of all blocks, in one launch that reads both inputs once.

    The tokens are split so that there are programs enough to fill a GPU. Each split's sum is
    written in fp32, and these are added in their order.

    Args:
        x: ``[tokens, num_blocks * in_block]``, of any row stride.
        grad_y: ``[tokens, num_blocks * out_block]``, likewise, of the same dtype.
        num_blocks: number of diagonal blocks.
        num_splits: splits of the tokens; by default by `count_splits`.

    Returns:
        ``[num_blocks, in_block, out_block]``, in the dtype of ``x``.
    """
    from diablo_ds.adapter.kernels import triton_kernels

    num_tokens = x.shape[0]
    in_block, out_block = x.shape[1] // num_blocks, grad_y.shape[1] // num_blocks
    shape = (num_blocks, in_block, out_block)
    if not num_tokens:
        return x.new_zeros(shape)
    x, grad_y = _with_contiguous_rows(x), _with_contiguous_rows(grad_y)
    step = step_of(x.dtype)
    counts, units = _in_units(in_block, out_block)
    if num_splits is None:
        tiles_of_block = -(-in_block // 64) * -(-out_block // 128)
        num_splits = count_splits(num_tokens, num_blocks * tiles_of_block, 64 * 128)
    tokens_per_split, sums = _splits(x, num_splits, step, shape)

    def launch(tile: Tile) -> None:
        tiles = -(-in_block // tile.rows) * -(-out_block // tile.columns)
        triton_kernels.delta_gradient[(sums.shape[0] * num_blocks * tiles,)](
            x,
            grad_y,
            sums,
            num_tokens,
            num_blocks,
            tokens_per_split,
            x.stride(0),
            grad_y.stride(0),
            *counts,
            **units,
            in_fp32=_in_fp32(x.dtype),
            step=step,
            **tile._asdict(),
        )

    tiles = [
        tile._replace(
            rows=min(tile.rows, padded(in_block)), columns=min(tile.columns, padded(out_block))
        )
        for tile in (FP32_TILES if x.dtype == torch.float32 else GRADIENT_TILES)
    ]
    with _on_device_of(x):
        launch(fastest(("gradient", x.dtype, in_block, out_block), tiles, x, launch))
    return _sum_of_splits(sums, x.dtype)


def block_gradients(
    x: Tensor, grad_y: Tensor, delta: Tensor, grad_x: Tensor, *, accumulate: bool = False
) -> Tensor:
    """Write ``dY D^T`` to ``grad_x``, or add it, and return ``dD_i = X_i^T dY_i``.

    Where a program can hold a block's sums, both are computed in one launch that reads ``dY`` once,
    if that is faster; else in two.

    Args:
        x: ``[tokens, num_blocks * in_block]``, of any row stride.
        grad_y: ``[tokens, num_blocks * out_block]``, likewise.
        delta: ``[num_blocks, in_block, out_block]``, of any strides.
        grad_x: ``[tokens, num_blocks * in_block]``, contiguous rows of any stride.
        accumulate: add to what ``grad_x`` holds.

    Returns:
        ``[num_blocks, in_block, out_block]``. All tensors are of one dtype.
    """
    from diablo_ds.adapter.kernels import triton_kernels

    num_blocks, in_block, out_block = delta.shape
    x, grad_y = _with_contiguous_rows(x), _with_contiguous_rows(grad_y)
    rows, columns = padded(in_block), padded(out_block)
    fits = x.dtype != torch.float32 and rows * columns <= MOST_SUMS

    def launch_two(target: Tensor, num_splits: int | None = None) -> Tensor:
        block_product(grad_y, delta.transpose(1, 2), target, accumulate=accumulate)
        return delta_gradient(x, grad_y, num_blocks, num_splits=num_splits)

    if not fits or not x.shape[0]:
        return launch_two(grad_x)
    step = step_of(x.dtype)
    counts, units = _in_units(in_block, out_block)
    num_splits = count_splits(x.shape[0], num_blocks, rows * columns)

    def launch(tile: Tile, target: Tensor) -> Tensor:
        if tile == TWO_LAUNCHES:
            return launch_two(target, num_splits)
        tokens_per_split, sums = _splits(x, num_splits, step, tuple(delta.shape))
        triton_kernels.block_gradients[(sums.shape[0] * num_blocks,)](
            x,
            grad_y,
            delta,
            target,
            sums,
            x.shape[0],
            num_blocks,
            tokens_per_split,
            x.stride(0),
            grad_y.stride(0),
            target.stride(0),
            *delta.stride(),
            *counts,
            **units,
            accumulate=accumulate,
            in_fp32=_in_fp32(x.dtype),
            step=step,
            **tile._asdict(),
        )
        return _sum_of_splits(sums, x.dtype)

    warps = 8 if rows * columns > MOST_SUMS // 4 else 4
    tiles = [Tile(rows, columns, warps, 3), TWO_LAUNCHES]
    key = ("gradients", x.dtype, in_block, out_block, num_blocks, accumulate)
    with _on_device_of(x):
        tile = fastest(key, tiles, x, lambda tile: launch(tile, torch.empty_like(grad_x)))
        return launch(tile, grad_x)


def add_to_diagonal(weight: Tensor, delta: Tensor) -> Tensor:
    """Add a delta to the diagonal blocks of a weight in place; return what was there.

    Args:
        weight: ``[out_features, in_features]``, contiguous.
        delta: ``[num_blocks, in_block, out_block]``, of the same dtype.

    Returns:
        ``[num_blocks, out_block, in_block]``.
    """
    from diablo_ds.adapter.kernels import triton_kernels

    num_blocks, in_block, out_block = delta.shape
    counts, units = _in_units(in_block, out_block)
    saved = weight.new_empty((num_blocks, out_block, in_block))
    rows, columns = min(64, padded(out_block)), min(64, padded(in_block))
    tiles = -(-out_block // rows) * -(-in_block // columns)
    with _on_device_of(weight):
        triton_kernels.add_to_diagonal[(num_blocks * tiles,)](
            weight,
            delta,
            saved,
            weight.stride(0),
            *delta.stride(),
            *counts,
            **units,
            rows=rows,
            columns=columns,
        )
    return saved


def _splits(x: Tensor, num_splits: int, step: int, shape: tuple[int, ...]) -> tuple[int, Tensor]:
    """Return the tokens of a split, a multiple of the step, and room for the sums of each."""
    tokens_per_split = -(-x.shape[0] // (num_splits * step)) * step
    splits = -(-x.shape[0] // tokens_per_split)
    dtype = x.dtype if splits == 1 else torch.float32
    return tokens_per_split, x.new_empty((splits, *shape), dtype=dtype)


def _sum_of_splits(sums: Tensor, dtype: torch.dtype) -> Tensor:
    return sums[0] if len(sums) == 1 else sums.sum(0).to(dtype)


def _in_units(in_block: int, out_block: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Return a block's widths as counts of units, and the units, as the kernels take them."""
    in_unit, out_unit = math.gcd(in_block, 16), math.gcd(out_block, 16)
    return (in_block // in_unit, out_block // out_unit), {"in_unit": in_unit, "out_unit": out_unit}


def _with_contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _in_fp32(dtype: torch.dtype) -> bool:
    """Return whether operands are cast first: the interpreter has no product in bf16."""
    return dtype == torch.bfloat16 and is_interpreted()


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
