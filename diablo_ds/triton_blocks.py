"""The block product by Triton kernels: what it needs, its tiles and its launches.

The kernels' module is imported with the first launch, and triton with it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

_PROGRAMS = 256
"""Programs that fill a large GPU, two for each multiprocessor. A constant, so that the splits of a
sum, and with them its bits, do not depend on the card."""
_LEAST_TOKENS_PER_SPLIT = 256
_LEAST_TOKENS_TO_TUNE = 1024


class Tile(NamedTuple):
    """The part of an output that one program computes, and how."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int


# The first of each is taken where nothing is measured. Products in fp32 use no tensor cores, and
# larger tiles would be unrolled into code of many thousand instructions.
_PRODUCT_TILES = (
    Tile(128, 128, 8, 2),
    Tile(128, 128, 4, 2),
    Tile(64, 256, 8, 2),
    Tile(128, 64, 4, 3),
)
_GRADIENT_TILES = (
    Tile(64, 128, 4, 4),
    Tile(64, 256, 8, 3),
    Tile(128, 128, 8, 3),
    Tile(128, 64, 4, 4),
)
_FP32_TILES = (Tile(64, 64, 4, 2),)
_chosen: dict[Any, Tile] = {}


@functools.cache
def has_package() -> bool:
    """Return whether the package triton is installed; does not import it."""
    return importlib.util.find_spec("triton") is not None


def is_interpreted() -> bool:
    """Return whether Triton's interpreter runs kernels, on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def is_available() -> bool:
    """Return whether the kernels can run here: on a GPU, or interpreted."""
    return has_package() and (torch.cuda.is_available() or is_interpreted())


def check_usable(path: str, device_type: str, *, has_triton: bool, where: str = "") -> None:
    """Raise ValueError unless a path of Triton's can run on a device.

    Args:
        path: the delta path, for the message.
        device_type: "cuda", "cpu" and so on.
        has_triton: whether the package is installed there.
        where: the host, for the message.
    """
    if has_triton and (device_type == "cuda" or is_interpreted()):
        return
    installed = "installed" if has_triton else "not installed"
    raise ValueError(
        f"delta_path {path!r} needs a GPU and the package triton; got device {device_type}, triton "
        f"{installed}{where}; use 'fused'"
    )


def check_operand(path: str, x: Tensor) -> None:
    """Raise ValueError unless a path of Triton's takes a tensor's device and dtype."""
    if not x.is_cuda:
        check_usable(path, x.device.type, has_triton=has_package())
    if x.dtype not in DTYPES:
        raise ValueError(
            f"delta_path {path!r} needs bf16, fp16 or fp32; got dtype={x.dtype}; use 'fused'"
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
        ``y``. All tensors are of one dtype of `DTYPES`; sums are in fp32.
    """
    from diablo_ds import triton_kernels

    num_blocks, in_block, out_block = delta.shape
    num_tokens = x.shape[0]
    if not y.numel():
        return y
    x = _with_contiguous_rows(x)
    step = _step(x.dtype, in_block)
    in_unit, out_unit = math.gcd(in_block, 16), math.gcd(out_block, 16)

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
            in_block // in_unit,
            out_block // out_unit,
            in_unit=in_unit,
            out_unit=out_unit,
            has_bias=bias is not None,
            accumulate=accumulate,
            in_fp32=_in_fp32(x.dtype),
            rows=tile.rows,
            columns=tile.columns,
            step=step,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )

    tiles = [
        tile._replace(columns=min(tile.columns, _padded(out_block)))
        for tile in (_FP32_TILES if x.dtype == torch.float32 else _PRODUCT_TILES)
    ]
    is_transposed = delta.stride(2) != 1
    key = ("product", x.dtype, in_block, out_block, is_transposed)
    with _on_device_of(x):
        # Tried on an output of its own: y must be added to only once.
        tile = _fastest(key, tiles, x, lambda tile: launch(tile, torch.empty_like(y)))
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
        grad_y: ``[tokens, num_blocks * out_block]``, likewise, of the same dtype of `DTYPES`.
        num_blocks: number of diagonal blocks.
        num_splits: splits of the tokens; by default by `count_splits`.

    Returns:
        ``[num_blocks, in_block, out_block]``, in the dtype of ``x``.
    """
    from diablo_ds import triton_kernels

    num_tokens = x.shape[0]
    in_block, out_block = x.shape[1] // num_blocks, grad_y.shape[1] // num_blocks
    shape = (num_blocks, in_block, out_block)
    if not num_tokens:
        return x.new_zeros(shape)
    x, grad_y = _with_contiguous_rows(x), _with_contiguous_rows(grad_y)
    step = _step(x.dtype)
    in_unit, out_unit = math.gcd(in_block, 16), math.gcd(out_block, 16)
    wanted = count_splits(num_tokens, *shape) if num_splits is None else num_splits
    tokens_per_split = -(-num_tokens // (wanted * step)) * step
    splits = -(-num_tokens // tokens_per_split)
    sums = x.new_empty((splits, *shape), dtype=x.dtype if splits == 1 else torch.float32)

    def launch(tile: Tile) -> None:
        tiles = -(-in_block // tile.rows) * -(-out_block // tile.columns)
        triton_kernels.delta_gradient[(splits * num_blocks * tiles,)](
            x,
            grad_y,
            sums,
            num_tokens,
            num_blocks,
            tokens_per_split,
            x.stride(0),
            grad_y.stride(0),
            in_block // in_unit,
            out_block // out_unit,
            in_unit=in_unit,
            out_unit=out_unit,
            in_fp32=_in_fp32(x.dtype),
            rows=tile.rows,
            columns=tile.columns,
            step=step,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )

    tiles = [
        tile._replace(
            rows=min(tile.rows, _padded(in_block)), columns=min(tile.columns, _padded(out_block))
        )
        for tile in (_FP32_TILES if x.dtype == torch.float32 else _GRADIENT_TILES)
    ]
    with _on_device_of(x):
        launch(_fastest(("gradient", x.dtype, in_block, out_block), tiles, x, launch))
    return sums[0] if splits == 1 else sums.sum(0).to(x.dtype)


def add_to_diagonal(weight: Tensor, delta: Tensor) -> Tensor:
    """Add a delta to the diagonal blocks of a weight in place; return what was there.

    Args:
        weight: ``[out_features, in_features]``, contiguous.
        delta: ``[num_blocks, in_block, out_block]``, of the same dtype of `DTYPES`.

    Returns:
        ``[num_blocks, out_block, in_block]``.
    """
    from diablo_ds import triton_kernels

    num_blocks, in_block, out_block = delta.shape
    in_unit, out_unit = math.gcd(in_block, 16), math.gcd(out_block, 16)
    saved = weight.new_empty((num_blocks, out_block, in_block))
    rows, columns = min(64, _padded(out_block)), min(64, _padded(in_block))
    tiles = -(-out_block // rows) * -(-in_block // columns)
    with _on_device_of(weight):
        triton_kernels.add_to_diagonal[(num_blocks * tiles,)](
            weight,
            delta,
            saved,
            weight.stride(0),
            *delta.stride(),
            in_block // in_unit,
            out_block // out_unit,
            in_unit=in_unit,
            out_unit=out_unit,
            rows=rows,
            columns=columns,
        )
    return saved


def count_splits(num_tokens: int, num_blocks: int, in_block: int, out_block: int) -> int:
    """Return into how many parts the tokens are split for the gradients of all blocks.

    A function of the shape alone, so that the same bits come out on every card.
    """
    tiles = -(-in_block // 64) * -(-out_block // 128)
    most = max(1, num_tokens // _LEAST_TOKENS_PER_SPLIT)
    return min(most, max(1, _PROGRAMS // (num_blocks * tiles)))


def _fastest(key: Any, tiles: Sequence[Tile], x: Tensor, launch: Callable[[Tile], None]) -> Tile:
    """Return the tile that a kernel and shape was fastest with, measured at its first use.

    Tiles differ in speed alone: the order in which an element is summed is the same in all. So
    ranks, and the continuation of a run, may choose differently.
    """
    if key in _chosen:
        return _chosen[key]
    tiles = list(dict.fromkeys(tiles))
    if (
        len(tiles) == 1
        or not x.is_cuda
        or x.shape[0] < _LEAST_TOKENS_TO_TUNE
        or torch.cuda.is_current_stream_capturing()
    ):
        return tiles[0]
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    times = {}
    for tile in tiles:
        with contextlib.suppress(OutOfResources):
            times[tile] = do_bench(
                functools.partial(launch, tile), warmup=5, rep=20, return_mode="median"
            )
    _chosen[key] = min(times, key=lambda tile: times[tile]) if times else tiles[0]
    return _chosen[key]


def _with_contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _padded(width: int) -> int:
    """Return the width of the smallest tile that holds a block's width."""
    return max(16, 1 << (width - 1).bit_length())


def _step(dtype: torch.dtype, width: int | None = None) -> int:
    """Return how many terms of a sum are added at a time, at most ``width`` with its padding."""
    most = 16 if dtype == torch.float32 else 64
    return most if width is None else min(most, _padded(width))


def _in_fp32(dtype: torch.dtype) -> bool:
    """Return whether operands are cast first: the interpreter has no product in bf16."""
    return dtype == torch.bfloat16 and is_interpreted()


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
