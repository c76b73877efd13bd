from __future__ import annotations

import pytest

from diablo_ds.config.choices import SCHEDULES
from diablo_ds.config.run import RunConfig
from diablo_ds.config.schedule import describe_warmup, learning_rate, lr_factor
from diablo_ds.errors import UserError


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_rises_from_above_zero_to_one(schedule):
    factors = [lr_factor(schedule, s, num_steps=20, warmup_steps=4) for s in range(5)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_falls_to_zero_one_step_after_the_last(schedule):
    factors = [lr_factor(schedule, s, num_steps=10, warmup_steps=0) for s in range(11)]
    assert factors[0] == 1.0
    assert factors == sorted(factors, reverse=True)
    assert factors[9] > 0
    assert factors[10] == pytest.approx(0.0)


def test_linear_and_cosine_meet_halfway_and_constant_stays():
    for schedule, expected in (("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)):
        assert lr_factor(schedule, 5, num_steps=10, warmup_steps=0) == pytest.approx(expected)


def test_an_open_rate_has_to_be_chosen_before_the_first_step():
    with pytest.raises(ValueError, match="an open learning_rate is chosen by resolve_run"):
        learning_rate(RunConfig(), 0, 10)


def test_unknown_schedule_is_refused():
    with pytest.raises(UserError, match="schedule must be one of linear, cosine, constant"):
        lr_factor("step", 5, num_steps=10, warmup_steps=0)


@pytest.mark.parametrize(("num_steps", "share"), [(3, "6%"), (50, "98%"), (51, "")])
def test_a_warm_up_that_the_run_does_not_finish_is_said(num_steps, share):
    text = describe_warmup(num_steps, 50)
    factors = [lr_factor("linear", s, num_steps=num_steps, warmup_steps=50) for s in range(51)]
    assert (share in text) if share else not text
    assert not share or share == f"{max(factors[:num_steps]):.0%}"
