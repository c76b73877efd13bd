"""Triton kernels of the block product; imports triton, so it is imported where they run.

Shapes are those of `diablo_ds.adapter.block_products`: rows are tokens, of one row stride and
contiguous along the features; a delta is ``[num_blocks, in_block, out_block]``. Sums are in fp32.
Each element of an output is written by one program, which alone reads it: no atomics, no race, the
same bits in each run.
Along the summed dimension the step is a function of the shape, so that a choice of tiles by time
changes no sum's order.

A block's width is given as a number of units: the unit, a power of two up to 16, is known when a
kernel is compiled and says how wide loads may be; the number is not, so that layers of many shapes
share what was compiled.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_tokens", "num_blocks", "in_units", "out_units"])
def block_product(
    x,
    delta,
    bias,
    y,
    num_tokens,
    num_blocks,
    x_stride,
    y_stride,
    delta_stride_block,
    delta_stride_in,
    delta_stride_out,
    in_units,
    out_units,
    in_unit: tl.constexpr,
    out_unit: tl.constexpr,
    has_bias: tl.constexpr,
    accumulate: tl.constexpr,
    in_fp32: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    step: tl.constexpr,
):
    """Compute ``Y = b + X D``, or ``Y += X D``, in a tile of ``rows`` tokens of one block.

    The grid is one-dimensional: column tiles of a block, then blocks, then row tiles, so that
    programs that run together read and write neighbouring memory.
    """
    in_block = in_units * in_unit
    out_block = out_units * out_unit
    column_tiles = tl.cdiv(out_block, columns)
    program = tl.program_id(0)
    column_tile = program % column_tiles
    block = (program // column_tiles) % num_blocks
    first = (program // (column_tiles * num_blocks)).to(tl.int64) * rows
    num_rows = num_tokens - first

    row = tl.arange(0, rows)
    column = column_tile * columns + tl.arange(0, columns)
    inner = tl.arange(0, step)
    is_row = (row < num_rows)[:, None]
    is_column = (column < out_block)[None, :]

    x += first * x_stride + block * in_block
    delta += block.to(tl.int64) * delta_stride_block
    y += first * y_stride + block * out_block
    target = y + row[:, None] * y_stride + column[None, :]
    # Loaded first, so that the waits for memory overlap.
    if accumulate:
        sums = tl.load(target, mask=is_row & is_column, other=0.0).to(tl.float32)
    else:
        sums = tl.zeros((rows, columns), tl.float32)
    if has_bias:
        b = tl.load(bias + block * out_block + column, mask=column < out_block, other=0.0)
        sums += b.to(tl.float32)[None, :]
    for start in range(0, in_block, step):
        k = start + inner
        x_tile = tl.load(
            x + row[:, None] * x_stride + k[None, :],
            mask=is_row & (k < in_block)[None, :],
            other=0.0,
        )
        delta_tile = tl.load(
            delta + k[:, None] * delta_stride_in + column[None, :] * delta_stride_out,
            mask=(k < in_block)[:, None] & is_column,
            other=0.0,
        )
        if in_fp32:
            x_tile = x_tile.to(tl.float32)
            delta_tile = delta_tile.to(tl.float32)
        sums = tl.dot(x_tile, delta_tile, sums, input_precision="ieee")
    tl.store(target, sums.to(y.dtype.element_ty), mask=is_row & is_column)


@triton.jit(
    do_not_specialize=["num_tokens", "num_blocks", "tokens_per_split", "in_units", "out_units"]
)
def delta_gradient(
    x,
    grad_y,
    grad_delta,
    num_tokens,
    num_blocks,
    tokens_per_split,
    x_stride,
    grad_y_stride,
    in_units,
    out_units,
    in_unit: tl.constexpr,
    out_unit: tl.constexpr,
    in_fp32: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    step: tl.constexpr,
):
    """Compute ``dD_i = X_i^T dY_i`` over one split of the tokens, in one tile of one block.

    ``grad_delta`` is ``[splits, num_blocks, in_block, out_block]``. The grid is one-dimensional:
    tiles of a block, then blocks, then splits.
    """
    in_block = in_units * in_unit
    out_block = out_units * out_unit
    column_tiles = tl.cdiv(out_block, columns)
    tiles = column_tiles * tl.cdiv(in_block, rows)
    program = tl.program_id(0)
    tile = program % tiles
    block = (program // tiles) % num_blocks
    split = (program // (tiles * num_blocks)).to(tl.int64)
    first = split * tokens_per_split
    count = tl.minimum(num_tokens - first, tokens_per_split).to(tl.int32)

    row = (tile // column_tiles) * rows + tl.arange(0, rows)
    column = (tile % column_tiles) * columns + tl.arange(0, columns)
    token = tl.arange(0, step)
    is_row = (row < in_block)[None, :]
    is_column = (column < out_block)[None, :]

    x += first * x_stride + block * in_block
    grad_y += first * grad_y_stride + block * out_block
    x_tiles = x + token[:, None] * x_stride + row[None, :]
    grad_tiles = grad_y + token[:, None] * grad_y_stride + column[None, :]
    sums = tl.zeros((rows, columns), tl.float32)
    for start in range(0, count, step):
        is_token = (token < count - start)[:, None]
        x_tile = tl.load(x_tiles, mask=is_token & is_row, other=0.0)
        grad_tile = tl.load(grad_tiles, mask=is_token & is_column, other=0.0)
        if in_fp32:
            x_tile = x_tile.to(tl.float32)
            grad_tile = grad_tile.to(tl.float32)
        sums = tl.dot(tl.trans(x_tile), grad_tile, sums, input_precision="ieee")
        x_tiles += step * x_stride
        grad_tiles += step * grad_y_stride

    grad_delta += (split * num_blocks + block) * in_block * out_block
    tl.store(
        grad_delta + row[:, None] * out_block + column[None, :],
        sums.to(grad_delta.dtype.element_ty),
        mask=(row < in_block)[:, None] & is_column,
    )


@triton.jit(
    do_not_specialize=["num_tokens", "num_blocks", "tokens_per_split", "in_units", "out_units"]
)
def block_gradients(
    x,
    grad_y,
    delta,
    grad_x,
    grad_delta,
    num_tokens,
    num_blocks,
    tokens_per_split,
    x_stride,
    grad_y_stride,
    grad_x_stride,
    delta_stride_block,
    delta_stride_in,
    delta_stride_out,
    in_units,
    out_units,
    in_unit: tl.constexpr,
    out_unit: tl.constexpr,
    accumulate: tl.constexpr,
    in_fp32: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    step: tl.constexpr,
):
    """Compute ``dX = dY D^T``, or add it, and ``dD_i = X_i^T dY_i``, reading ``dY`` once.

    One program takes an entire block, ``rows`` and ``columns`` being at least its widths, and one
    split of the tokens. ``grad_delta`` is ``[splits, num_blocks, in_block, out_block]``. The grid
    is one-dimensional: blocks, then splits.
    """
    in_block = in_units * in_unit
    out_block = out_units * out_unit
    program = tl.program_id(0)
    block = program % num_blocks
    split = (program // num_blocks).to(tl.int64)
    first = split * tokens_per_split
    count = tl.minimum(num_tokens - first, tokens_per_split).to(tl.int32)

    row = tl.arange(0, rows)
    column = tl.arange(0, columns)
    token = tl.arange(0, step)
    is_row = row < in_block
    is_column = column < out_block

    delta += block.to(tl.int64) * delta_stride_block
    transposed = tl.load(
        delta + column[:, None] * delta_stride_out + row[None, :] * delta_stride_in,
        mask=is_column[:, None] & is_row[None, :],
        other=0.0,
    )
    if in_fp32:
        transposed = transposed.to(tl.float32)
    x += first * x_stride + block * in_block
    grad_x += first * grad_x_stride + block * in_block
    grad_y += first * grad_y_stride + block * out_block
    x_tiles = x + token[:, None] * x_stride + row[None, :]
    grad_x_tiles = grad_x + token[:, None] * grad_x_stride + row[None, :]
    grad_y_tiles = grad_y + token[:, None] * grad_y_stride + column[None, :]
    delta_sums = tl.zeros((rows, columns), tl.float32)
    for start in range(0, count, step):
        is_token = (token < count - start)[:, None]
        is_inside = is_token & is_row[None, :]
        x_tile = tl.load(x_tiles, mask=is_inside, other=0.0)
        grad_tile = tl.load(grad_y_tiles, mask=is_token & is_column[None, :], other=0.0)
        if in_fp32:
            x_tile = x_tile.to(tl.float32)
            grad_tile = grad_tile.to(tl.float32)
        if accumulate:
            x_sums = tl.load(grad_x_tiles, mask=is_inside, other=0.0).to(tl.float32)
        else:
            x_sums = tl.zeros((step, rows), tl.float32)
        x_sums = tl.dot(grad_tile, transposed, x_sums, input_precision="ieee")
        tl.store(grad_x_tiles, x_sums.to(grad_x.dtype.element_ty), mask=is_inside)
        delta_sums = tl.dot(tl.trans(x_tile), grad_tile, delta_sums, input_precision="ieee")
        x_tiles += step * x_stride
        grad_x_tiles += step * grad_x_stride
        grad_y_tiles += step * grad_y_stride

    grad_delta += (split * num_blocks + block) * in_block * out_block
    tl.store(
        grad_delta + row[:, None] * out_block + column[None, :],
        delta_sums.to(grad_delta.dtype.element_ty),
        mask=is_row[:, None] & is_column[None, :],
    )


@triton.jit(do_not_specialize=["in_units", "out_units"])
def add_to_diagonal(
    weight,
    delta,
    saved,
    weight_stride,
    delta_stride_block,
    delta_stride_in,
    delta_stride_out,
    in_units,
    out_units,
    in_unit: tl.constexpr,
    out_unit: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """Add a delta to the diagonal blocks of ``[out_features, in_features]``; save what was there.

    ``saved`` is ``[num_blocks, out_block, in_block]``. The grid is one-dimensional: tiles of a
    block, then blocks. One rounding, as that of PyTorch's sum.
    """
    in_block = in_units * in_unit
    out_block = out_units * out_unit
    column_tiles = tl.cdiv(in_block, columns)
    tiles = column_tiles * tl.cdiv(out_block, rows)
    program = tl.program_id(0)
    tile = program % tiles
    block = (program // tiles).to(tl.int64)
    row = ((tile // column_tiles) * rows + tl.arange(0, rows))[:, None]
    column = ((tile % column_tiles) * columns + tl.arange(0, columns))[None, :]
    is_inside = (row < out_block) & (column < in_block)

    weight += block * (out_block * weight_stride + in_block) + row * weight_stride + column
    delta += block * delta_stride_block + column * delta_stride_in + row * delta_stride_out
    saved += block * (out_block * in_block) + row * in_block + column
    before = tl.load(weight, mask=is_inside)
    change = tl.load(delta, mask=is_inside)
    tl.store(saved, before, mask=is_inside)
    sums = before.to(tl.float32) + change.to(tl.float32)
    tl.store(weight, sums.to(weight.dtype.element_ty), mask=is_inside)
