"""Norms of the diagonal blocks of frozen weights, from the shards that the ranks have of them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diablo_ds.adapter.blocks import block_parts, delta_shape, diagonal_blocks
from diablo_ds.adapter.layer import DiaBloLinear
from diablo_ds.ranks import distributed
from diablo_ds.zero.private.parameters import full_shape, is_partitioned, shard


class DeltaNorm(NamedTuple):
    """How large a delta is."""

    norm: float
    """Frobenius norm of the delta."""
    base_norm: float
    """That of the diagonal blocks of the base weight; NaN where the weight is no dense matrix."""

    @property
    def relative(self) -> float:
        """The one as a share of the other; NaN where that is not known."""
        return self.norm / self.base_norm if self.base_norm else math.nan


@torch.no_grad()
def base_block_norms(model: nn.Module, device: torch.device) -> dict[str, float]:
    """Return the norm of the diagonal blocks of the base weight of each layer with a delta.

    Nothing is gathered but a number for each layer, in one collective; each rank reads its own
    shards only. Collective: every rank must call this.

    Args:
        model: the model, partitioned or not.
        device: where the ranks communicate.

    Returns:
        By the name of the delta; NaN where the weight is quantised, or not in memory.
    """
    layers = {
        f"{name}.delta": layer
        for name, layer in model.named_modules()
        if isinstance(layer, DiaBloLinear)
    }
    own = [_own_square_sum(layer) for layer in layers.values()]
    if not own:
        return {}
    on_device = torch.stack([value.to(device, torch.float64) for value in own])
    rows = distributed.gather_floats(on_device, device)
    totals = torch.tensor(rows, dtype=torch.float64)
    # Weights that are not partitioned are the same on every rank.
    weights: list[Any] = [layer.weight for layer in layers.values()]
    is_split = torch.tensor([is_partitioned(weight) for weight in weights])
    sums = torch.where(is_split, totals.sum(0), totals[0])
    return dict(zip(layers, sums.sqrt().tolist(), strict=True))


def _own_square_sum(layer: DiaBloLinear) -> Tensor:
    """Return this rank's part of the sum of squares of a layer's blocks, ``[]``."""
    weight: Any = layer.weight
    if not layer.base.is_dense:
        return torch.tensor(math.nan)
    if not is_partitioned(weight):
        return _square_sum(diagonal_blocks(weight.detach(), layer.num_blocks))
    own, num_elements = shard(weight), full_shape(weight).numel()
    if not own.is_floating_point() or own.numel() * distributed.world_size() < num_elements:
        return torch.tensor(math.nan)
    start = distributed.rank() * own.numel()
    num_own = max(0, min(own.numel(), num_elements - start))  # the rest is padding
    shape = delta_shape(layer.num_blocks, layer.in_features, layer.out_features)
    return shard_square_sum(own[:num_own], start, shape)


def shard_square_sum(own: Tensor, start: int, shape: tuple[int, int, int]) -> Tensor:
    """Return the sum of squares of what a shard has of a weight's diagonal blocks, ``[]``, fp32.

    Args:
        own: ``[num_elements]``, consecutive ones of the weight ``[out_features, in_features]``.
        start: index of the first one.
        shape: of the delta, ``(num_blocks, in_block, out_block)``.
    """
    num_blocks, in_block, out_block = shape
    width, stop = num_blocks * in_block, start + own.numel()
    total = torch.zeros((), device=own.device)
    # The ends of rows that another rank has the rest of, and the whole rows between them.
    first = min(stop, -(-start // width) * width)
    last = max(first, stop // width * width)
    for begin, end in ((start, first), (last, stop)):
        if begin < end:
            row, column = divmod(begin, width)
            left = row // out_block * in_block
            kept = slice(max(0, left - column), max(0, left + in_block - column))
            total += _square_sum(own[begin - start : end - start][kept])
    if first < last:
        rows = own[first - start : last - start].view(-1, width)
        for part in block_parts(range(first // width, last // width), in_block, out_block):
            total += _square_sum(rows[part.rows, part.columns])
    return total


def _square_sum(values: Tensor) -> Tensor:
    return values.float().square().sum()
