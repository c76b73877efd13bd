"""Micro batch and recomputation by a plan: what fits, the same on all ranks, kept on resume."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest

from diablo_ds.config.continuation import FREE_ON_RESUME, differing_fields
from diablo_ds.config.run import RunConfig
from diablo_ds.model.architecture import build_meta_model
from diablo_ds.model.published import find_model_config
from diablo_ds.model.shape import Shape
from diablo_ds.training.machine import Machine
from diablo_ds.training.plan_estimate import estimate_plan
from diablo_ds.training.resolution import resolve_run

RUN = RunConfig(global_batch=8, max_length=4096)
SMALL = Machine("s", "cuda", device_name="NVIDIA A10G", device_bytes=24 * 10**9)
H100 = Machine("a", "cuda", device_name="NVIDIA H100 80GB HBM3", device_bytes=80 * 10**9)
H200 = Machine("b", "cuda", device_name="NVIDIA H200", device_bytes=141 * 10**9)
CHOSEN = {"micro_batch", "recompute", "recomputed_layers"}


@cache
def _shapes():
    return build_meta_model(find_model_config("llama-3-8b", Shape(), 4096)[0])


def _resolve(machines, run_config=RUN, stage=2, **options):
    policy = {"zero_optimization": {"stage": stage}}
    return resolve_run(run_config, machines, _shapes(), policy=policy, **options)


def _num_recomputed(run_config):
    return (run_config.recomputed_layers or 32) if run_config.recompute else 0


def _differing(one, other):
    values = dataclasses.asdict(other)
    return {name for name, value in dataclasses.asdict(one).items() if value != values[name]}


def test_what_is_chosen_moves_work_and_changes_no_number():
    """The same global batch on every card; the settings that differ may change on resume too."""
    (small, _), (large, lines) = [
        (found.run_config, found.lines) for found in (_resolve([H100]), _resolve([H200]))
    ]
    assert large.recompute is False
    assert large.micro_batch in (1, 2, 4)
    assert "0 of 32 decoder layers recomputed: all of it fits, planned" in "\n".join(lines)
    assert f"global batch 8 = micro batch {large.micro_batch} x accumulation" in lines[0]
    assert sum("micro batch" in line for line in lines) == 1
    assert _differing(small, large) <= CHOSEN <= FREE_ON_RESUME
    assert differing_fields(small, large) == []


def test_less_memory_recomputes_more_and_never_more_than_it_has_to():
    given = dataclasses.replace(RUN, micro_batch=4)
    counts = []
    for gb in (141, 80, 70, 60, 50, 42, 36):
        found = _resolve([dataclasses.replace(H100, device_bytes=gb * 10**9)], given)
        run_config = found.run_config
        assert run_config.micro_batch == 4
        counts.append(_num_recomputed(run_config))
        assert not found.warnings
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] > 20
    assert len(set(counts)) > 4


def test_what_is_given_stays():
    for given in ({"recompute": False}, {"recompute": True}, {"recomputed_layers": 3}):
        config = _resolve([SMALL], dataclasses.replace(RUN, **given)).run_config
        assert {name: getattr(config, name) for name in given} == given
    budget = _resolve([H100], dataclasses.replace(RUN, memory_budget=30.0)).run_config
    assert (budget.micro_batch, budget.recompute) == (4, None)
    policy = {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 2}
    assert resolve_run(RUN, [H100], _shapes(), policy=policy).run_config.micro_batch == 2
    tokens = _resolve([SMALL], dataclasses.replace(RUN, micro_batch_tokens=8192)).run_config
    assert (tokens.micro_batch, tokens.micro_batch_tokens, tokens.recompute) == (0, 8192, True)


def test_on_a_cpu_or_without_known_memory_nothing_is_planned():
    for machine in (Machine("c", "cpu", bf16_factor=1.0), Machine("g", "cuda")):
        config = _resolve([machine]).run_config
        assert (config.micro_batch, config.recompute) == (4, None)


def test_the_smallest_and_fullest_gpu_counts_for_all_ranks():
    mixed = [H200, SMALL]
    alone = _resolve([SMALL] * 2).run_config
    assert _resolve(mixed).run_config == _resolve(mixed[::-1]).run_config == alone
    given = dataclasses.replace(RUN, micro_batch=4)
    shared = dataclasses.replace(H200, taken_bytes=90 * 10**9)
    assert _resolve([shared], given).run_config.recompute is True
    assert _resolve([H200], given).run_config.recompute is False


def test_sharded_weights_leave_more_to_activations():
    layers = [_num_recomputed(_resolve([SMALL] * 8, stage=s).run_config) for s in (2, 3)]
    assert layers[1] < layers[0]


def test_a_resumed_run_keeps_what_it_has_where_that_fits():
    first = _resolve([H100]).run_config
    resumed = _resolve([H200], recorded=first)
    assert resumed.run_config == first
    assert "as this run has it" in resumed.text()
    large = _resolve([H200]).run_config
    half = dataclasses.replace(H100, device_bytes=40 * 10**9)
    assert _resolve([half], recorded=large).run_config == _resolve([half]).run_config != large
    # Memory that is taken for the moment changes nothing.
    full = dataclasses.replace(H100, taken_bytes=40 * 10**9)
    assert _resolve([full], recorded=first).run_config == first
    assert _resolve([H100], first).run_config == first


def test_what_fits_nowhere_takes_least_and_is_told():
    tiny = dataclasses.replace(SMALL, device_bytes=8 * 10**9)
    found = _resolve([tiny])
    assert (found.run_config.micro_batch, found.run_config.recompute) == (1, True)
    assert found.run_config.recomputed_layers == 0
    assert "needs" in found.warnings[0]
    assert "the least memory" in found.text()


def test_a_model_that_cannot_be_traced_runs_as_before(monkeypatch: pytest.MonkeyPatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no meta kernel")

    monkeypatch.setattr("diablo_ds.planning.plan.measure_model", fail)
    found = _resolve([H100])
    assert (found.run_config.micro_batch, found.run_config.recompute) == (4, None)
    assert "no meta kernel" in found.warnings[0]


def test_what_a_run_is_expected_to_do_is_what_its_choice_was_made_by():
    chosen = _resolve([H100] * 2)
    policy = {"zero_optimization": {"stage": 2}}
    plan = estimate_plan(chosen.run_config, [H100] * 2, _shapes(), policy, None)
    assert f"planned {plan['memory_bytes'] / 1e9:.1f} GB" in " ".join(chosen.lines)
    tokens = chosen.run_config.global_batch * chosen.run_config.max_length
    assert plan["tokens_per_s"] == pytest.approx(tokens / plan["step_s"])
    assert 0 < plan["mfu"] < 1
    on_cpu = [Machine("c", "cpu", bf16_factor=1.0)]
    assert estimate_plan(chosen.run_config, on_cpu, _shapes(), policy, None) is None
