"""Layouts of a run on a cluster, and the choice among them."""

from __future__ import annotations

import dataclasses

from diablo_ds.planning.plan import VARIANTS, fastest
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
        best = llama.best(cluster)
        assert best is not None
        assert best.memory.total <= num_bytes
        rivals = [c for c in llama.candidates(cluster) if c.memory.total <= num_bytes]
        assert best.tokens_per_s == max(c.tokens_per_s for c in rivals)
    assert llama.best(with_memory(least - 1)) is None


def test_where_nothing_fits_it_says_what_would(llama):
    least = min(llama.candidates(CLUSTER), key=lambda c: c.memory.total)
    text = llama.advice(with_memory(least.memory.total * 0.9))
    assert f"GPUs of {least.memory.total / 1e9:,.0f} GB" in text
    assert "micro batch 1" in text
    # What it says does fit.
    smaller = dataclasses.replace(RUN, micro_batch=1)
    assert llama.best(with_memory(least.memory.total * 0.9), smaller) is not None


def test_scaling_keeps_the_work_of_a_rank(llama):
    found = llama.scaling(CLUSTER)
    assert {c.run_config.global_batch // c.cluster.world_size for c in found} == {2}
    of_one = [c for c in found if c.cluster.world_size == 1]
    assert fastest(of_one).traffic == {}
