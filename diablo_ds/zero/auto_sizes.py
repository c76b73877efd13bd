"""What "auto" stands for in a DeepSpeed config: sizes that follow from the model of its gathers.

docs/planning.md derives them. They are pure functions of the base model's sizes and the ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from diablo_ds.model.architecture import BaseSizes

DEEPSPEED_KEPT_ELEMENTS = 1_000_000_000
"""DeepSpeed's default of how many gathered elements it may keep for a later use."""
LATENCY_S = 15e-6
"""Of one collective in a node, in seconds; an assumption."""
INSIDE_BYTES_PER_S = 0.7 * 450e9
"""From one GPU to its node: 0.7 of an H100's NVLink."""
BETWEEN_BYTES_PER_S = 0.7 * 400e9
"""Of a node's network: 0.7 of eight adapters of 50 GB/s."""
LATENCIES_PER_BUCKET = 20
"""A bucket is as large as what moves in this many latencies, so that they take 5 % at most."""
_GRADIENT_BYTES = 4
_LEAST_BUCKET = 1_000_000
_DELTA_SHARE = 64
"""Deltas of 64 blocks have this part of the base's elements; larger buckets would not fill."""


@dataclass(frozen=True)
class GatherSizes:
    """DeepSpeed's stage-3 settings about gathers, in elements."""

    prefetch: int
    """Gathered ahead by each module: it is no depth, since what is under way does not count."""
    live: int
    """Unsharded at once before nothing is gathered ahead."""
    reuse: int
    """A weight is kept if it is used again within this number of elements."""


def gather_sizes(base: BaseSizes) -> GatherSizes:
    """Return sizes with which a layer is gathered while the one before it computes.

    One layer ahead is enough where a gather takes no longer than computing a layer, and where it
    takes longer no depth helps: the links are busy all the time then. What may be unsharded has
    room for two layers, and for the head twice, since it is gathered in one piece into a buffer.
    """
    kept = max(DEEPSPEED_KEPT_ELEMENTS, 2 * (base.layer + base.head))
    return GatherSizes(prefetch=base.layer, live=kept, reuse=kept)


def latency_seconds(group: int, ranks_per_node: int, latency_s: float = LATENCY_S) -> float:
    """Return the latency of one collective: larger across nodes, by one more for each tenfold."""
    return latency_s * (1 + math.log10(group) if group > ranks_per_node else 1)


def efficient_bucket(world_size: int, ranks_per_node: int) -> int:
    """Return the elements of a gradient bucket whose latency is a small part of its time."""
    is_inside = world_size <= ranks_per_node
    bandwidth = INSIDE_BYTES_PER_S if is_inside else BETWEEN_BYTES_PER_S
    latency = latency_seconds(world_size, ranks_per_node)
    return round(LATENCIES_PER_BUCKET * latency * bandwidth / _GRADIENT_BYTES)


def reduce_bucket(base: BaseSizes, world_size: int, ranks_per_node: int) -> int:
    """Return the elements of a gradient bucket, where the deltas' sizes are not known."""
    largest = efficient_bucket(world_size, ranks_per_node)
    return max(_LEAST_BUCKET, min(largest, base.total // _DELTA_SHARE))
