from __future__ import annotations

import random

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.training.time_left import Schedule, describe_estimate, thinned, time_left_s


def _simulate(schedule, step_s, *, evaluation_s, saving_s, tasks_s=0.0, first_step=1):
    """Return the points of a run, and the seconds that it took after each."""
    points, took, carried = [], [], {}
    for step in range(first_step, schedule.num_steps + 1):
        point = {"step": step, "step_s": step_s(step), **carried}
        points.append(point)
        carried = {}
        is_last = step == schedule.num_steps
        if step % schedule.eval_every == 0 or is_last:
            # The first evaluation compiles.
            carried["evaluation_s"] = evaluation_s * (3 if step == schedule.eval_every else 1)
        if step % schedule.save_every == 0 or is_last:
            carried["saving_s"] = saving_s
        if schedule.task_every and (step % schedule.task_every == 0 or is_last):
            carried["tasks_s"] = tasks_s
        took.append(point["step_s"] + sum(carried.values()))
    ends = [sum(took[i:]) - points[i]["step_s"] for i in range(len(points))]
    return points, ends


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(40, 10, 10),
        Schedule(400, 7, 30),
        Schedule(403, 100, 50, task_every=100),
        Schedule(300, 100, 100, keep_best=True),
    ],
)
@pytest.mark.parametrize("first_step", [1, 14])
def test_within_a_tenth_from_the_second_evaluation_on(schedule, first_step):
    generator = random.Random(0)

    def step_s(step):  # batches differ in length; the first step compiles
        return 90.0 if step == first_step else generator.uniform(3.5, 4.5)

    points, ends = _simulate(
        schedule,
        step_s,
        evaluation_s=60.0,
        saving_s=20.0,
        tasks_s=200.0,
        first_step=first_step,
    )
    num_evaluations = 0
    for i, point in enumerate(points):
        num_evaluations += "evaluation_s" in point
        if num_evaluations >= 2:
            left = time_left_s(points[: i + 1], schedule)
            assert left == pytest.approx(ends[i], rel=0.1, abs=1.0), point["step"]
            assert left == time_left_s(thinned(points[: i + 1]), schedule)


def test_steps_alone_are_known_before_the_first_evaluation():
    schedule = Schedule(10, 5, 5)
    assert time_left_s([], schedule) is None
    assert time_left_s([{"step": 0, "heldout_loss": 1.0}], schedule) is None
    compiling, unknown = {"step": 3, "step_s": 9.0}, {"evaluation_s": float("nan")}
    assert time_left_s([compiling], schedule) is None
    assert time_left_s([compiling, {"step": 4, "step_s": 2.0}], schedule) == 12.0
    assert time_left_s([compiling, {"step": 4, "step_s": 2.0, **unknown}], schedule) == 12.0


def test_the_estimate_says_what_it_is_made_of():
    schedule = Schedule(10, 5, 8)
    points = [{"step": 1, "step_s": 30.0, "evaluation_s": 7.0}, {"step": 2, "step_s": 2.5}]
    assert describe_estimate(points, schedule) == (
        "Estimated time left: 0:34, for 8 steps of 2.5 s, 2 evaluations of 7 s, "
        "2 checkpoints not measured yet"
    )
    assert time_left_s(points, schedule) == 34.0
    assert describe_estimate(points[:1], schedule) == ""


@pytest.mark.parametrize("num_steps", [1, 7, 12])
def test_events_are_those_that_a_run_has(num_steps):
    run = RunConfig(eval_every=4, save_every=3, keep_best=True)
    schedule = Schedule.of(run, num_steps)
    for step in range(1, num_steps + 1):
        rest = range(step, num_steps + 1)
        evaluated = {s for s in rest if s % 4 == 0 or s == num_steps}
        saved = {s for s in rest if s % 3 == 0 or s == num_steps}
        assert schedule.evaluations_from(step) == len(evaluated)
        assert schedule.savings_from(step) == len(evaluated | saved)
        assert schedule.tasks_from(step) == 0
