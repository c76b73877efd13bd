"""Block geometry: which block counts a layer can have, and the shapes and places of its blocks.

A weight of a linear layer, written as ``W`` of ``[in_features, out_features]``, is cut into
``num_blocks x num_blocks`` blocks; DiaBlo (arXiv 2506.03230) trains only those on the diagonal.
They are kept as one tensor, the delta ``[num_blocks, in_block, out_block]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from diablo_ds.errors import UserError


def legal_num_blocks(in_features: int, out_features: int) -> list[int]:
    """Return every block count that divides both widths, in ascending order."""
    common = math.gcd(in_features, out_features)
    small = [n for n in range(1, math.isqrt(common) + 1) if common % n == 0]
    return sorted({*small, *(common // n for n in small)})


def nearest_num_blocks(in_features: int, out_features: int, wanted: float) -> list[int]:
    """Return the legal block counts next to ``wanted``: the one below and the one above it.

    A legal ``wanted`` is returned alone. The list is never empty, since 1 is always legal.
    """
    legal = legal_num_blocks(in_features, out_features)
    below = [n for n in legal if n <= wanted]
    above = [n for n in legal if n >= wanted]
    return sorted({*below[-1:], *above[:1]})


def num_blocks_for_share(in_features: int, out_features: int, share: float) -> int:
    """Return the legal block count whose trainable share, ``1 / num_blocks``, is nearest.

    Nearest is meant on a logarithmic scale; of two equally near counts the larger one (the
    smaller delta) is taken.
    """
    candidates = nearest_num_blocks(in_features, out_features, 1 / share)
    return min(candidates, key=lambda n: (abs(math.log(n * share)), -n))


def check_num_blocks(num_blocks: int, in_features: int, out_features: int) -> None:
    """Raise UserError unless ``num_blocks`` is positive and divides both widths."""
    if num_blocks < 1 or in_features % num_blocks or out_features % num_blocks:
        near = nearest_num_blocks(in_features, out_features, num_blocks)
        raise UserError(
            "num_blocks must be positive and divide in_features and out_features; got "
            f"num_blocks={num_blocks}, in_features={in_features}, out_features={out_features}; "
            f"nearest that work: {', '.join(map(str, near))}"
        )


def delta_shape(num_blocks: int, in_features: int, out_features: int) -> tuple[int, int, int]:
    """Return the shape of a delta, ``(num_blocks, in_block, out_block)``.

    Raises:
        UserError: if ``num_blocks`` does not divide both widths.
    """
    check_num_blocks(num_blocks, in_features, out_features)
    return num_blocks, in_features // num_blocks, out_features // num_blocks


def diagonal_blocks(weight: Tensor, num_blocks: int) -> Tensor:
    """Return a view of the diagonal blocks of a PyTorch weight, laid out like a delta.

    Args:
        weight: ``[out_features, in_features]``, of any strides.
        num_blocks: number of diagonal blocks; divides both widths.

    Returns:
        ``[num_blocks, in_block, out_block]``, sharing memory with ``weight``.
    """
    out_features, in_features = weight.shape
    _, in_block, out_block = delta_shape(num_blocks, in_features, out_features)
    by_row, by_column = weight.stride()
    stride = (out_block * by_row + in_block * by_column, by_column, by_row)
    return weight.as_strided((num_blocks, in_block, out_block), stride, weight.storage_offset())


class BlockPart(NamedTuple):
    """Where a diagonal block meets a range of rows of its weight."""

    block: int
    rows: slice
    """In the range."""
    columns: slice
    outputs: slice
    """The same rows, counted in the block."""


def block_parts(rows: range, in_block: int, out_block: int) -> Iterator[BlockPart]:
    """Yield the parts of diagonal blocks that lie in some rows of a weight."""
    for block in range(rows.start // out_block, (rows.stop - 1) // out_block + 1):
        first = max(rows.start, block * out_block)
        stop = min(rows.stop, (block + 1) * out_block)
        yield BlockPart(
            block,
            slice(first - rows.start, stop - rows.start),
            slice(block * in_block, (block + 1) * in_block),
            slice(first - block * out_block, stop - block * out_block),
        )
