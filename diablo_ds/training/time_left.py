"""How long a run still takes, from what its metrics file says of the steps that were taken."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from diablo_ds.config.run import RunConfig
from diablo_ds.ranks.progress import format_seconds
from diablo_ds.training.evaluations import interval
from diablo_ds.training.step_clock import EVALUATION, SAVING, STEP, TASKS

ESTIMATE_STEPS = 3
"""Steps of a process after which it tells how long the run takes: the first one compiles."""
_RECENT_STEPS = 50
_RECENT_EVENTS = 5
_OUTLIER = 10.0
"""A step that took so many times the median is left out: the machine stood still."""


@dataclass(frozen=True)
class Schedule:
    """At which steps a run evaluates and saves: at multiples, and at its last one.

    A run with `keep_best` may also save where it evaluates, which is counted as if it did.
    """

    num_steps: int
    eval_every: int
    save_every: int
    task_every: int = 0
    """0 where no tasks are asked."""
    keep_best: bool = False

    @classmethod
    def of(cls, run_config: RunConfig, num_steps: int) -> Schedule:
        """Return that of a run."""
        return cls(
            num_steps,
            interval(run_config.eval_every, num_steps),
            interval(run_config.save_every, num_steps),
            interval(run_config.eval_task_every, num_steps) if run_config.eval_tasks else 0,
            run_config.keep_best,
        )

    def evaluations_from(self, step: int) -> int:
        """Return the evaluations that follow once a step was taken, its own included."""
        return self._count(step, self.eval_every)

    def savings_from(self, step: int) -> int:
        """Return the checkpoints that are written once a step was taken, its own included."""
        if not self.keep_best:
            return self._count(step, self.save_every)
        both = self._count(step, math.lcm(self.save_every, self.eval_every))
        return self._count(step, self.save_every) + self._count(step, self.eval_every) - both

    def tasks_from(self, step: int) -> int:
        """Return how many times the tasks are asked once a step was taken."""
        return self._count(step, self.task_every) if self.task_every else 0

    def _count(self, step: int, every: int) -> int:
        """Return the multiples from a step on, with the last step of the run."""
        return self.num_steps // every - (step - 1) // every + (self.num_steps % every != 0)


def time_left_s(points: Sequence[Mapping[str, float]], schedule: Schedule) -> float | None:
    """Return the seconds that a run still took as the last point of a step was written.

    They are steps, evaluations and checkpoints to come, each times its own recent seconds. What was
    never measured, as the first checkpoint is, counts as nothing.

    Args:
        points: of the metrics file, in their order; best of the running process alone.
        schedule: of the run.

    Returns:
        None before the second step: the first one compiles, and tells nothing of the others.
    """
    parts = _parts_left(points, schedule)
    return None if parts is None else _seconds_of(parts)


def describe_estimate(points: Sequence[Mapping[str, float]], schedule: Schedule) -> str:
    """Return what a run still takes and what of, as a sentence; empty where nothing is known."""
    parts = [part for part in _parts_left(points, schedule) or () if part.number]
    if not parts:
        return ""
    shown = [
        f"{part.number:,} {part.name}{'s' if part.number > 1 else ''}"
        + (" not measured yet" if part.seconds is None else f" of {part.seconds:.3g} s")
        for part in parts
    ]
    return f"Estimated time left: {format_seconds(_seconds_of(parts))}, for {', '.join(shown)}"


class _Part(NamedTuple):
    """What is still to be done, of one kind."""

    name: str
    number: int
    seconds: float | None
    """Of each; None where none was measured."""


def _seconds_of(parts: Sequence[_Part]) -> float:
    return sum(part.number * (part.seconds or 0.0) for part in parts)


def _parts_left(points: Sequence[Mapping[str, float]], schedule: Schedule) -> list[_Part] | None:
    steps = [point for point in points if math.isfinite(point.get(STEP, math.nan))]
    if not steps:
        return None
    step = int(steps[-1]["step"])
    if len(steps) == 1 and step < schedule.num_steps:
        return None
    return [
        _Part("step", schedule.num_steps - step, step_seconds(steps)),
        _Part("evaluation", schedule.evaluations_from(step), _event_seconds(steps, EVALUATION)),
        _Part("task round", schedule.tasks_from(step), _event_seconds(steps, TASKS)),
        _Part("checkpoint", schedule.savings_from(step), _event_seconds(steps, SAVING)),
    ]


def thinned(points: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    """Return the points that `time_left_s` looks at, of many: recent steps, and recent events."""
    cut = max(0, len(points) - _RECENT_STEPS - 1)
    events = [p for p in points[:cut] if not p.keys().isdisjoint((EVALUATION, SAVING, TASKS))]
    return [*events[-8 * _RECENT_EVENTS :], *points[cut:]]


def step_seconds(steps: Sequence[Mapping[str, float]]) -> float:
    """Return what a step takes: the mean of recent ones, without the first, which compiles."""
    recent = [point[STEP] for point in steps[1:][-_RECENT_STEPS:] or steps]
    usual = _OUTLIER * statistics.median(recent)
    return statistics.fmean(seconds for seconds in recent if seconds <= usual)


def _event_seconds(points: Sequence[Mapping[str, float]], name: str) -> float | None:
    """Return what an event takes: the mean of recent ones, without the first of several."""
    found = [point[name] for point in points if math.isfinite(point.get(name, math.nan))]
    recent = found[1:][-_RECENT_EVENTS:] or found
    return statistics.fmean(recent) if recent else None
