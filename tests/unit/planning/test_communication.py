"""Bytes on the links of a cluster."""

from __future__ import annotations

import dataclasses

import pytest

from diablo_ds.planning.communication import Layout, link_bytes, step_traffic
from diablo_ds.zero.traffic import BASE_GATHERS
from tests.unit.planning.clusters import CLUSTER, RUN


def test_with_secondary_shards_only_deltas_cross_nodes(planner):
    found = {c.variant.name: c for c in planner.candidates(CLUSTER)}
    whole, inside = found["ZeRO-3"], found["ZeRO-3 hpZ"]
    deltas = sum(n for (kind, _), n in inside.traffic.items() if kind != BASE_GATHERS)
    assert inside.links.between == pytest.approx(deltas * 7 / 8)
    assert whole.links.between > inside.links.between
    assert whole.memory.base < inside.memory.base


def test_a_ring_moves_each_part_over_every_link_once(llama):
    model = llama.model(RUN)
    layout = Layout(stage=2, world_size=8, ranks_per_node=4)
    traffic = step_traffic(model, layout)
    links = link_bytes(model, layout, traffic, None)
    # An all-reduce in fp32, which moves all twice, and a gather in bf16.
    assert links.inside == links.between == model.num_deltas * (2 * 4 + 2) * 7 / 8
    alone = dataclasses.replace(layout, world_size=4)
    assert link_bytes(model, alone, step_traffic(model, alone), None).between == 0
