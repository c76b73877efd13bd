"""A run config and a cluster that plans are made for."""

from __future__ import annotations

import dataclasses

from diablo_ds.config.run import RunConfig
from diablo_ds.planning.hardware import ClusterSize

RUN = RunConfig(num_blocks="4", micro_batch=2, global_batch=16, max_length=64, precision="bf16")
CLUSTER = ClusterSize(
    num_nodes=2,
    ranks_per_node=4,
    memory_bytes=1e9,
    reserved_bytes=0,
    node_memory_bytes=1e12,
    flops=1e12,
    memory_bandwidth=1e11,
    inside_bandwidth=1e10,
    between_bandwidth=1e9,
)


def with_memory(num_bytes: float) -> ClusterSize:
    """The cluster, with another memory of each GPU."""
    return dataclasses.replace(CLUSTER, memory_bytes=num_bytes)
