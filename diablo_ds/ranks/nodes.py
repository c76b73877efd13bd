"""The nodes of a run: how many ranks share one, and the memory of a rank's device."""

from __future__ import annotations

from dataclasses import dataclass

from diablo_ds.ranks import distributed


@dataclass(frozen=True)
class NodeSizes:
    """Sizes of a node, from which values for "auto" are derived."""

    num_ranks: int = 1
    """Ranks per node; 1 where nodes differ in it."""
    device_bytes: float = 0
    """Memory of one rank's device, in bytes; the least of all ranks."""


UNKNOWN_NODES = NodeSizes()
"""One rank per node, of unknown memory."""


def measure_nodes() -> NodeSizes:
    """Return the sizes of this run's nodes.

    Collective, where the ranks have joined: every rank must call this.
    """
    mine = (distributed.device_memory_bytes(), distributed.local_world_size())
    memory, ranks = zip(*distributed.gather_values(mine), strict=True)
    return NodeSizes(
        num_ranks=int(min(ranks)) if min(ranks) == max(ranks) else 1, device_bytes=min(memory)
    )
