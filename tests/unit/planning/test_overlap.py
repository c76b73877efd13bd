"""Gathers beside computing: the model of two queues, and the sizes that follow from it."""

from __future__ import annotations

import dataclasses

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.model.published import find_model_config
from diablo_ds.model.shape import Shape
from diablo_ds.planning.communication import Layout, gathers_per_micro_step, step_traffic
from diablo_ds.planning.gathers import Limits, Visit, simulate
from diablo_ds.planning.hardware import DEVICES, Assumptions, ClusterSize
from diablo_ds.planning.overlap import play, visit_seconds
from diablo_ds.planning.plan import Planner
from diablo_ds.planning.step_time import Work, compute_seconds, layer_overlap, step_time
from diablo_ds.zero.auto_sizes import gather_sizes

LENGTH = 4096
ASSUMED = Assumptions()
SIZES = {number: 100 for number in range(5)}
LAYERS = [Visit((number,), (number,), True) for number in range(5)]
FORWARD_AND_BACKWARD = [*LAYERS, *reversed(LAYERS)]


def _rounds(prefetch: int):
    return simulate(FORWARD_AND_BACKWARD, SIZES, (), Limits(prefetch, 10**9, 1)).rounds


def test_every_gather_is_in_one_round():
    gathers = simulate(FORWARD_AND_BACKWARD, SIZES, (), Limits(100, 10**9, 1))
    gathered = sum(each.now + each.ahead for each in gathers.rounds)
    assert gathered == 100 * gathers.counts.total()


def test_without_prefetch_computing_waits_for_all_gathers():
    busy, waited = play(_rounds(0), [2.0] * 10, lambda n: n / 100)
    assert busy == waited > 0


def test_one_layer_ahead_hides_all_but_the_first_gather():
    busy, waited = play(_rounds(100), [2.0] * 10, lambda n: n / 100)
    assert waited == 1.0 < busy


def test_a_gather_longer_than_computing_shows_by_the_difference():
    rounds = simulate(LAYERS, SIZES, (), Limits(100, 10**9, 1)).rounds
    busy, waited = play(rounds, [2.0] * 5, lambda n: 3 * n / 100)
    assert busy == 5 * 3
    # The first is awaited in full, each of the others for 3 - 2 seconds.
    assert waited == 3 + 4 * (3 - 2)


def test_deeper_prefetch_does_not_help_where_links_are_the_limit():
    slow = [play(_rounds(depth * 100), [2.0] * 10, lambda n: 3 * n / 100) for depth in (1, 2)]
    ends = [sum([2.0] * 10) + waited for _, waited in slow]
    # All that is gathered is the least that a step can take.
    assert all(end >= busy for end, (busy, _) in zip(ends, slow, strict=True))


def _cluster(num_nodes: int) -> ClusterSize:
    device = DEVICES["h100"]
    return ClusterSize(
        num_nodes=num_nodes,
        ranks_per_node=8,
        memory_bytes=device.memory_gb * 1e9,
        reserved_bytes=2e9,
        node_memory_bytes=1e12,
        flops=device.tflops * 1e12,
        memory_bandwidth=device.memory_gbs * 1e9,
        inside_bandwidth=device.inside_gbs * 1e9,
        between_bandwidth=device.between_gbs * 1e9,
    )


@pytest.fixture(scope="module", params=["llama-3-8b", "llama-3-70b", "qwen3-32b"])
def model(request):
    run = RunConfig(
        num_blocks="64", micro_batch=4, global_batch=2048, max_length=LENGTH, precision="bf16"
    )
    config, _ = find_model_config(request.param, Shape(), LENGTH)
    return Planner(config, run, ASSUMED).model(run)


def _layout(model, num_nodes, *, hpz=1, **changes):
    sizes = gather_sizes(model.base)
    limits = Limits(sizes.prefetch, sizes.live, sizes.reuse)._replace(**changes)
    world_size = 8 * num_nodes
    return Layout(stage=3, world_size=world_size, ranks_per_node=8, hpz=hpz, limits=limits)


def _time(model, layout, num_nodes, num_rows):
    gathers = gathers_per_micro_step(model, layout)
    traffic = step_traffic(model, layout, gathers)
    work = Work(num_rows, LENGTH, 0)
    return step_time(model, layout, work, _cluster(num_nodes), ASSUMED, traffic, gathers)


@pytest.mark.parametrize("num_nodes", [1, 8, 64])
def test_the_sizes_that_auto_fills_in_hide_the_gathers_on_8_64_and_512_gpus(model, num_nodes):
    layout = _layout(model, num_nodes)
    overlap = layer_overlap(model, layout, Work(LENGTH, LENGTH, 0), _cluster(num_nodes), ASSUMED)
    assert overlap.is_hidden
    time = _time(model, layout, num_nodes, LENGTH)
    assert time.exposed_gathers < 0.025 * time.total
    # Gathered when needed, all of it is awaited.
    alone = _time(model, _layout(model, num_nodes, prefetch=0), num_nodes, LENGTH)
    assert alone.exposed_gathers == pytest.approx(alone.base_gathers)
    # Nothing is won by gathering more ahead.
    deeper = _layout(model, num_nodes, prefetch=2 * layout.limits.prefetch)
    assert time.total <= _time(model, deeper, num_nodes, LENGTH).total * 1.01


def test_a_micro_batch_of_the_tokens_named_hides_the_gather_and_half_of_them_does_not(model):
    cluster, layout = _cluster(8), _layout(model, 8)
    overlap = layer_overlap(model, layout, Work(LENGTH, LENGTH, 0), cluster, ASSUMED)
    assert 0 < overlap.tokens_to_hide < LENGTH
    for num_rows, hidden in (
        (overlap.tokens_to_hide, True),
        (overlap.tokens_to_hide // 2, False),
    ):
        # What a layer keeps for its backward is in proportion to the tokens.
        layer = model.activations.layer * num_rows // (4 * LENGTH)
        activations = dataclasses.replace(model.activations, layer=layer)
        smaller = dataclasses.replace(model, activations=activations)
        found = layer_overlap(smaller, layout, Work(num_rows, LENGTH, 0), cluster, ASSUMED)
        assert found.is_hidden == hidden


def test_secondary_shards_gather_on_512_gpus_as_fast_as_one_node(model):
    work = Work(LENGTH, LENGTH, 0)
    inside = layer_overlap(model, _layout(model, 64, hpz=8), work, _cluster(64), ASSUMED)
    assert inside == layer_overlap(model, _layout(model, 1), work, _cluster(1), ASSUMED)
    plain = layer_overlap(model, _layout(model, 64), work, _cluster(64), ASSUMED)
    assert inside.gather < plain.gather


def test_visits_compute_as_long_as_the_micro_step(model):
    work = Work(LENGTH, LENGTH, 0)
    forward, backward = compute_seconds(model, work, _cluster(1), ASSUMED)
    sizes = [p.num_elements for p in model.parameters]
    each = visit_seconds(model.visits, sizes, 2.0, 3.0, 5.0)
    assert sum(each) == model.num_layers * (2 + 3) + 5
    head = each.index(5.0)
    assert sum(sizes[p] for p in model.visits[head].parameters) == model.base.head
    time = _time(model, _layout(model, 1), 1, LENGTH)
    assert time.compute == pytest.approx(forward + backward)
