"""A memory budget recomputes no more layers than it has to."""

from __future__ import annotations

import dataclasses

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import DTYPES, build_meta_model, measure_base
from diablo_ds.model.published import find_model_config
from diablo_ds.model.shape import Shape
from diablo_ds.planning.budget import fit_memory
from diablo_ds.zero.ds_config import complete_ds_config

RUN = RunConfig(micro_batch=2, global_batch=16, max_length=2048, num_blocks="64", precision="bf16")


@pytest.fixture(scope="module")
def config():
    return find_model_config("llama-3-8b", Shape(), 2048)[0]


def _fit(config, budget, stage=3, **changes):
    run = dataclasses.replace(RUN, memory_budget=budget, **changes)
    base = measure_base(build_meta_model(config), DTYPES["bf16"])
    policy = {"zero_optimization": {"stage": stage}}
    complete = complete_ds_config(policy, run, world_size=8, base=base, source="test")
    return fit_memory(run, config, complete, 8, "cuda")


def test_a_larger_budget_recomputes_less_and_is_never_exceeded(config):
    fits = [_fit(config, budget) for budget in (10, 15, 20, 25, 30, 40, 60)]
    counts = [fit.recomputation.num_layers for fit in fits]
    assert counts[0] > 28
    assert counts[-1] == 0
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) > 4
    for fit in fits:
        assert fit.planned_bytes <= fit.budget * 1e9
        assert f"{fit.recomputation.num_layers} of 32" in fit.text()


def test_what_is_kept_more_would_not_fit(config):
    fit = _fit(config, 20)
    count = fit.recomputation.num_layers
    assert 0 < count < 32
    tighter = _fit(config, fit.planned_bytes / 1e9 - 1e-6)
    assert tighter.recomputation != fit.recomputation
    assert tighter.recomputation.num_layers >= count


def test_the_base_counts_whole_below_stage_3(config):
    assert _fit(config, 60, stage=2).planned_bytes > _fit(config, 60).planned_bytes + 8e9


def test_the_reentrant_form_keeps_no_attention(config):
    for budget in (10, 15, 20):
        assert not _fit(config, budget, reentrant=True).recomputation.keep_attention


def test_tokens_count_as_the_sequences_that_fill_them(config):
    by_tokens = _fit(config, 20, micro_batch=0, micro_batch_tokens=4096)
    assert by_tokens.planned_bytes == _fit(config, 20).planned_bytes


def test_a_budget_that_holds_nothing_says_what_would(config):
    with pytest.raises(UserError, match=r"memory_budget=1 GB, the least is \d+\.\d\d GB"):
        _fit(config, 1)
