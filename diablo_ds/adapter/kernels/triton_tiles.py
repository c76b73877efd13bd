"""Tiles of the Triton kernels: which are tried, which was fastest, how sums are split."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_PROGRAMS = 256
"""Programs that fill a large GPU, two for each multiprocessor. A constant, so that the splits of a
sum, and with them its bits, do not depend on the card."""
_LEAST_TOKENS_PER_SPLIT = 256
_MANY_TOKENS = 1024
"""From here on a choice of tile is that of long inputs."""


class Tile(NamedTuple):
    """The part of an output that one program computes, and how."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int


# The first of each is taken where nothing is measured. They are few, since each is compiled first.
# Products in fp32 use no tensor cores, and larger tiles would be unrolled into code of many
# thousand instructions.
PRODUCT_TILES = (Tile(128, 128, 8, 2), Tile(128, 64, 4, 2))
GRADIENT_TILES = (Tile(64, 128, 4, 4), Tile(128, 128, 8, 3))
FP32_TILES = (Tile(64, 64, 4, 2),)
MOST_SUMS = 1 << 14
"""Sums in fp32 that one program may hold: those of an entire block, padded to this."""
TWO_LAUNCHES = Tile(0, 0, 0, 0)
"""Stands among the tiles of both gradients for a launch of its own for each."""
_chosen: dict[Any, Tile] = {}


def padded(width: int) -> int:
    """Return the width of the smallest tile that holds a block's width."""
    return max(16, 1 << (width - 1).bit_length())


def step_of(dtype: torch.dtype, width: int | None = None) -> int:
    """Return how many terms of a sum are added at a time, at most ``width`` with its padding."""
    most = 16 if dtype == torch.float32 else 64
    return most if width is None else min(most, padded(width))


def count_splits(num_tokens: int, num_tiles: int, sums: int) -> int:
    """Return into how many parts the tokens of a sum are split, so that programs fill a GPU.

    A function of the shape alone, so that the same bits come out on every card.

    Args:
        num_tokens: terms of the sum.
        num_tiles: programs that there are without a split.
        sums: elements that one program sums. With many, it takes a multiprocessor for itself.
    """
    programs = _PROGRAMS if sums <= MOST_SUMS // 2 else _PROGRAMS // 2
    most = max(1, num_tokens // _LEAST_TOKENS_PER_SPLIT)
    return min(most, max(1, programs // num_tiles))


def fastest(key: Any, tiles: Sequence[Tile], x: Tensor, launch: Callable[[Tile], object]) -> Tile:
    """Return the tile that a kernel and shape was fastest with, measured at its first use.

    Tiles differ in speed alone: the order in which an element is summed is the same in all. So
    ranks, and the continuation of a run, may choose differently.
    """
    tiles = list(dict.fromkeys(tiles))
    if len(tiles) == 1 or not x.is_cuda:
        return tiles[0]
    key = (key, x.shape[0] >= _MANY_TOKENS)
    if key not in _chosen:
        if torch.cuda.is_current_stream_capturing():
            return tiles[0]
        _chosen[key] = _measure(tiles, launch)
    return _chosen[key]


def _measure(tiles: Sequence[Tile], launch: Callable[[Tile], object]) -> Tile:
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    times = {}
    for tile in tiles:
        with contextlib.suppress(OutOfResources):  # a smaller GPU
            times[tile] = do_bench(
                functools.partial(launch, tile), warmup=5, rep=20, return_mode="median"
            )
    return min(times, key=lambda tile: times[tile]) if times else tiles[0]
