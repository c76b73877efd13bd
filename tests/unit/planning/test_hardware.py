"""Clusters as numbers."""

from __future__ import annotations

from diablo_ds.planning.hardware import cluster_sizes
from tests.unit.planning.clusters import CLUSTER


def test_clusters_grow_from_one_gpu_to_1024():
    sizes = [size.world_size for size in cluster_sizes(CLUSTER)]
    assert sizes == [2**n for n in range(11)]
