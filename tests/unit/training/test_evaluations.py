"""What a run remembers of its held-out evaluations."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.training.evaluations import Evaluations, check_evaluated, interval

FILE = Path("state.json")


def _after(*losses: float) -> Evaluations:
    evaluations = Evaluations()
    for step, loss in enumerate(losses):
        evaluations = evaluations.including(step, loss)
    return evaluations


@pytest.mark.parametrize(
    ("losses", "best", "num_without_better"),
    [
        ((), None, 0),
        ((2.0,), (0, 2.0), 0),
        ((2.0, 1.0, 1.5), (1, 1.0), 1),
        ((2.0, 1.0, 1.0, 3.0), (1, 1.0), 2),  # of equal ones the earlier stays
        ((math.nan, 2.0, math.nan, math.inf), (1, 2.0), 2),
        ((math.nan, math.nan), None, 2),
    ],
)
def test_the_best_is_the_first_lowest_finite_loss(losses, best, num_without_better):
    evaluations = _after(*losses)
    assert evaluations.best == best
    assert evaluations.num_without_better == num_without_better
    assert evaluations.last_step == (len(losses) - 1 if losses else None)


def test_a_lost_best_is_forgotten_and_the_next_one_becomes_it():
    evaluations = _after(2.0, 1.0, 1.5).without_best()
    assert evaluations.best is None
    assert evaluations.num_without_better == 1
    assert evaluations.including(3, 1.8).best == (3, 1.8)


@pytest.mark.parametrize("losses", [(), (2.0, 1.0, 1.5), (math.nan,)])
def test_a_checkpoint_gives_back_what_it_was_given(losses):
    evaluations = _after(*losses)
    text = json.dumps(evaluations.as_json(), allow_nan=False)
    assert Evaluations.from_json(json.loads(text), 9, FILE) == evaluations
    assert Evaluations.from_json(None, 9, FILE) == Evaluations()


@pytest.mark.parametrize(
    "changes",
    [
        {"last_step": 10},
        {"best_step": -1},
        {"best_step": None},
        {"best_step": True},
        {"best_loss": "1"},
        {"best_loss": math.nan},
        {"num_without_better": 1.5},
        {"num_without_better": -1},
        {"more": 1},
    ],
)
def test_other_values_in_a_checkpoint_are_refused(changes):
    values = {**_after(2.0, 1.0).as_json(), **changes}
    with pytest.raises(UserError, match=r"evaluations of a checkpoint must have .* state\.json"):
        Evaluations.from_json(values, 9, FILE)
    with pytest.raises(UserError):
        Evaluations.from_json([], 9, FILE)


@pytest.mark.parametrize(("every", "num_steps", "steps"), [(0, 10, 3), (0, 2, 1), (7, 10, 7)])
def test_the_interval_is_a_quarter_of_the_run_where_it_is_open(every, num_steps, steps):
    assert interval(every, num_steps) == steps


@pytest.mark.parametrize(
    ("changes", "has_heldout", "message"),
    [
        ({"keep_best": True}, False, "keep_best needs held-out data"),
        ({"patience": 1}, False, "patience needs held-out data"),
        ({"patience": 4}, True, "patience=4 with an evaluation every 3 of 10 .* at most 3"),
        ({"patience": 1, "eval_every": 10}, True, "steps; give a smaller --eval-every"),
        ({"patience": 3}, True, ""),
        ({"keep_best": True}, True, ""),
        ({}, False, ""),
    ],
)
def test_settings_that_cannot_act_are_refused(changes, has_heldout, message):
    run_config = dataclasses.replace(RunConfig(), **changes)
    if not message:
        check_evaluated(run_config, 10, has_heldout=has_heldout)
        return
    with pytest.raises(UserError, match=message):
        check_evaluated(run_config, 10, has_heldout=has_heldout)
