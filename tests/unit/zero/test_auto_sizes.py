"""What "auto" stands for, at several numbers of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.model.architecture import BaseSizes
from diablo_ds.planning.hardware import DEVICES, Assumptions
from diablo_ds.ranks.nodes import NodeSizes
from diablo_ds.zero import auto_sizes
from diablo_ds.zero.auto_sizes import efficient_bucket, gather_sizes, reduce_bucket
from diablo_ds.zero.ds_config import complete_ds_config, load_ds_config, zero_stage

SHIPPED = sorted((Path(__file__).parents[3] / "ds_configs").glob("*.json"))
LARGE = BaseSizes(hidden_size=8192, total=70_553_706_496, layer=855_654_400, head=1_050_673_152)


def test_they_rest_on_the_figures_that_plans_assume():
    assumed, device = Assumptions(), DEVICES["h100"]
    assert pytest.approx(assumed.latency_us * 1e-6) == auto_sizes.LATENCY_S
    inside, between = device.inside_gbs * 1e9, device.between_gbs * 1e9
    assert pytest.approx(assumed.link_share * inside) == auto_sizes.INSIDE_BYTES_PER_S
    assert pytest.approx(assumed.link_share * between) == auto_sizes.BETWEEN_BYTES_PER_S


def test_buckets_grow_with_the_latency_and_are_no_larger_than_what_fills_them():
    found = [efficient_bucket(world_size, 8) for world_size in (8, 64, 512)]
    assert found == sorted(set(found))
    assert [reduce_bucket(LARGE, world_size, 8) for world_size in (8, 64, 512)] == found
    small = BaseSizes(hidden_size=64, total=640_000_000, layer=1, head=1)
    assert reduce_bucket(small, 512, 8) == 10_000_000


@pytest.mark.parametrize("world_size", [8, 64, 512])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_take_them(path, world_size):
    run = RunConfig(micro_batch=1, global_batch=512, precision="bf16")
    complete = complete_ds_config(
        load_ds_config(path),
        run,
        world_size=world_size,
        base=LARGE,
        nodes=NodeSizes(8, 78e9),
        source=path.name,
    )
    zero = complete["zero_optimization"]
    assert "auto" not in json.dumps(zero)
    if zero_stage(complete):
        assert zero["reduce_bucket_size"] == efficient_bucket(world_size, 8)
    if zero_stage(complete) == 3:
        sizes = gather_sizes(LARGE)
        assert zero["stage3_prefetch_bucket_size"] == sizes.prefetch == LARGE.layer
        assert zero["stage3_max_live_parameters"] == sizes.live
        assert zero["stage3_max_reuse_distance"] == sizes.reuse
        # Room for the layer that computes, the next one and the head.
        assert sizes.live >= 2 * LARGE.layer + LARGE.head
