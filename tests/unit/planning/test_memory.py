"""Memory of a rank by kind."""

from __future__ import annotations

import dataclasses

from diablo_ds.model.recomputation import Recomputation
from diablo_ds.planning.communication import Layout
from diablo_ds.planning.memory import rank_memory
from tests.unit.planning.clusters import CLUSTER, RUN


def test_weights_of_a_rank_are_those_of_the_placement(planner):
    model = planner.model(RUN)
    for world_size in (1, 8):
        layout = Layout(stage=3, world_size=world_size, ranks_per_node=4)
        memory = rank_memory(model, layout, Recomputation(0), 128, gathers=None, buckets=(0, 1))
        placed = sum(p.bytes_per_rank(world_size, 3) for p in model.parameters)
        # All deltas count as one here, so that each may be padded less.
        assert 0 <= placed - (memory.base + memory.deltas) < 2 * world_size * len(model.parameters)
        assert memory.gathered == 0


def test_host_memory_limits_offload(llama):
    cluster = dataclasses.replace(CLUSTER, node_memory_bytes=1)
    offloaded = [c for c in llama.candidates(cluster) if c.variant.offload]
    assert offloaded
    assert not any(c.fits for c in offloaded)
