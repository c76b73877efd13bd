"""Layouts of a run on a cluster, and the choice among them."""

from __future__ import annotations

import dataclasses

from diablo_ds.config.run import RunConfig
from diablo_ds.model.published import find_model_config
from diablo_ds.model.shape import Shape
from diablo_ds.planning.candidate import EQUAL_SPEED, VARIANTS, fastest
from diablo_ds.planning.hardware import Assumptions, ClusterSize
from diablo_ds.planning.plan import Planner
from diablo_ds.planning.search import advice, best_of, safer_than, scaling, search
from diablo_ds.zero.traffic import BASE_GATHERS
from tests.unit.planning.clusters import CLUSTER, RUN, with_memory


def test_higher_stages_need_less_memory_and_stage_3_moves_the_base(planner):
    found = [c for c in planner.candidates(CLUSTER) if not c.recomputation.num_layers]
    base = [c.memory.base for c in found if not c.variant.hpz]
    optimizer = [c.memory.optimizer for c in found if not c.variant.hpz]
    assert base == sorted(base, reverse=True)
    assert optimizer == sorted(optimizer, reverse=True)
    moved = {c.variant.name: {kind for kind, _ in c.traffic} for c in found}
    assert all((BASE_GATHERS in moved[v.name]) == (v.stage == 3) for v in VARIANTS)


def test_recomputation_trades_time_for_activations(planner):
    own = [c for c in planner.candidates(CLUSTER) if c.variant.name == "ZeRO-2"]
    assert len(own) == 3  # none, half, all of two layers
    activations = [c.memory.activations for c in own]
    assert activations == sorted(activations, reverse=True)
    assert [c.time.compute for c in own] == sorted(c.time.compute for c in own)


def test_the_best_is_the_fastest_that_fits(llama):
    candidates = list(llama.candidates(CLUSTER))
    least = min(c.memory.total for c in candidates)
    for num_bytes in sorted({c.memory.total for c in candidates}):
        cluster = with_memory(num_bytes)
        best = best_of(list(llama.candidates(cluster)))
        assert best is not None
        assert best.memory.total <= num_bytes
        rivals = [c for c in llama.candidates(cluster) if c.memory.total <= num_bytes]
        assert best.tokens_per_s >= (1 - EQUAL_SPEED) * max(c.tokens_per_s for c in rivals)
    assert best_of(list(llama.candidates(with_memory(least - 1)))) is None


def test_a_smaller_micro_batch_is_tried_before_nothing_fits(llama):
    least = min(llama.candidates(CLUSTER), key=lambda c: c.memory.total)
    cluster = with_memory(least.memory.total * 0.9)
    assert not any(c.fits for c in llama.candidates(cluster))
    found = search(llama, cluster, RUN)
    assert {c.run_config.micro_batch for c in found} == {1, 2}
    assert {c.run_config.global_batch for c in found} == {RUN.global_batch}
    assert best_of(found).run_config.micro_batch == 1


def test_llama_405b_on_512_gpus_is_tried_below_the_micro_batch_that_does_not_fit():
    config, _ = find_model_config("llama-3-405b", Shape(), 4096)
    run = RunConfig(
        num_blocks="64", micro_batch=4, global_batch=2048, max_length=4096, precision="bf16"
    )
    cluster = ClusterSize(
        num_nodes=64,
        ranks_per_node=8,
        memory_bytes=80e9,
        reserved_bytes=2e9,
        node_memory_bytes=1e12,
        flops=989e12,
        memory_bandwidth=3.35e12,
        inside_bandwidth=4.5e11,
        between_bandwidth=4e11,
    )
    found = search(Planner(config, run, Assumptions()), cluster, run, must_keep=True)
    assert not any(c.fits for c in found if c.run_config.micro_batch == 4)
    best = best_of(found)
    assert best.run_config.micro_batch < 4
    assert best.run_config.global_batch == 2048


def test_scaling_tries_smaller_micro_batches_where_a_variant_does_not_fit(llama):
    # On one GPU nothing is divided: there only the smaller micro batch fits.
    alone = dataclasses.replace(CLUSTER, num_nodes=1, ranks_per_node=1)
    least = min(
        c.memory.total for c in llama.candidates(alone, dataclasses.replace(RUN, global_batch=2))
    )
    found = scaling(llama, with_memory(least - 1), RUN)
    of_one = [c.run_config.micro_batch for c in found if c.cluster.world_size == 1]
    assert set(of_one) == {1}
    of_many = [c.run_config.micro_batch for c in found if c.cluster.world_size == 1024]
    assert max(of_many) == RUN.micro_batch


def test_a_given_micro_batch_stays_where_it_fits(llama):
    found = search(llama, CLUSTER, RUN, must_keep=True)
    assert {c.run_config.micro_batch for c in found} == {RUN.micro_batch}


def test_as_few_layers_are_recomputed_as_fit():
    config, _ = find_model_config("smollm2-135m", Shape(num_hidden_layers=9), 64)
    planner = Planner(config, RUN, Assumptions())
    own = [c for c in planner.candidates(with_memory(1e12)) if c.variant.name == "ZeRO-2"]
    none, all_layers = own[0].memory.total, own[-1].memory.total
    between = with_memory((none + all_layers) / 2)
    counts = {
        c.recomputation.num_layers: c.fits
        for c in planner.candidates(between)
        if c.variant.name == "ZeRO-2"
    }
    fewest = min(count for count, fits in counts.items() if fits)
    assert 0 < fewest < 9
    assert counts[fewest] is True
    assert counts.get(fewest - 1) is False  # bisection saw that one fewer does not fit


def test_what_leaves_little_memory_is_tight_and_another_one_is_named(llama):
    candidates = list(llama.candidates(CLUSTER))
    best = best_of(candidates)
    assert not best.is_tight
    assert safer_than(best, candidates) is None
    least = min(c.memory.total for c in candidates)
    seen = []
    for num_bytes in (least * 1.01, *(c.memory.total * 1.01 for c in candidates)):
        cluster = with_memory(num_bytes)
        candidates = list(llama.candidates(cluster))
        best = best_of(candidates)
        assert best.is_tight == (best.memory.total > 0.95 * num_bytes)
        safer = safer_than(best, candidates)
        if safer is not None:  # where it were as fast, it would be the best one
            assert safer.memory.total <= 0.95 * num_bytes
            assert safer.variant.offload or safer.tokens_per_s < best.tokens_per_s
        seen.append((best.is_tight, safer is not None))
    assert seen[0] == (True, False)
    assert (True, True) in seen


def test_of_equal_speed_the_larger_micro_batch_is_taken(llama):
    found = [c for c in search(llama, CLUSTER, RUN) if c.variant.name == "ZeRO-1"]
    assert fastest(found).run_config.micro_batch == RUN.micro_batch


def test_where_nothing_fits_it_says_what_would(llama):
    smaller = dataclasses.replace(RUN, micro_batch=1)
    least = min(llama.candidates(CLUSTER, smaller), key=lambda c: c.memory.total)
    cluster = with_memory(least.memory.total * 0.9)
    text = advice(llama, cluster, RUN)
    assert f"GPUs of {least.memory.total / 1e9:,.0f} GB" in text
    assert "micro batch 1" in text
    # What it needs is enough.
    assert best_of(search(llama, with_memory(least.memory.total), RUN)) is not None


def test_offload_is_never_faster_than_the_same_layout_without(llama):
    own = {(c.variant.name, c.recomputation): c for c in llama.candidates(CLUSTER)}
    for (name, recomputation), c in own.items():
        if name == "ZeRO-3 offload":
            plain = own["ZeRO-3", recomputation]
            assert c.time.total > plain.time.total
            assert c.time.base_gathers > plain.time.base_gathers


def test_on_two_small_gpus_offload_is_not_the_best():
    config, _ = find_model_config("llama-3-8b", Shape(), 2048)
    run = RunConfig(
        num_blocks="64", micro_batch=4, global_batch=8, max_length=2048, precision="bf16"
    )
    cluster = ClusterSize(
        num_nodes=1,
        ranks_per_node=2,
        memory_bytes=40e9,
        reserved_bytes=2e9,
        node_memory_bytes=1e12,
        flops=312e12,
        memory_bandwidth=1.555e12,
        inside_bandwidth=3e11,
        between_bandwidth=1e11,
    )
    best = best_of(search(Planner(config, run, Assumptions()), cluster, run))
    assert not best.variant.offload


def test_scaling_keeps_the_work_of_a_rank(llama):
    found = scaling(llama, CLUSTER, RUN)
    assert {c.run_config.global_batch // c.cluster.world_size for c in found} == {2}
    of_one = [c for c in found if c.cluster.world_size == 1]
    assert fastest(of_one).traffic == {}
