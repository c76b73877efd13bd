"""What a run keeps of its points in memory: what its reports ask for, some 40 bytes a step.

The points themselves are in the metrics file; a million of them would take a gigabyte.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import overload

from diablo_ds.training.metrics_file import TASK_PREFIX
from diablo_ds.training.run_numbers import Measured, RunNumbers


class Curve(Sequence[tuple[int, float]]):
    """Steps with their values, in the order in which they were measured."""

    def __init__(self) -> None:
        self.steps, self.values = array("q"), array("d")

    def add(self, step: int, value: float) -> None:
        """Add a value."""
        self.steps.append(step)
        self.values.append(value)

    def __len__(self) -> int:
        return len(self.steps)

    @overload
    def __getitem__(self, place: int) -> tuple[int, float]: ...
    @overload
    def __getitem__(self, place: slice) -> list[tuple[int, float]]: ...
    def __getitem__(self, place: int | slice) -> tuple[int, float] | list[tuple[int, float]]:
        if isinstance(place, slice):
            return list(zip(self.steps[place], self.values[place], strict=True))
        return self.steps[place], self.values[place]


class History:
    """The points of a run so far, as far as they are asked for."""

    def __init__(self) -> None:
        self.losses, self.heldout = Curve(), Curve()
        """In nats per target token."""
        self.scores: dict[str, float] = {}
        """The last ones, by task and metric."""
        self.tokens_seen: float | None = None
        """In training; None where no point tells."""
        self._measured = Measured()
        self._tasks: dict[int, set[str]] = {}
        """Those that have scores, by step."""

    def add(self, point: Mapping[str, float]) -> None:
        """Add the next point."""
        step = int(point["step"])
        self._measured.add(point)
        self.tokens_seen = point.get("tokens_seen", self.tokens_seen)
        if "loss" in point:
            self.losses.add(step, point["loss"])
            return
        if "heldout_loss" in point:
            self.heldout.add(step, point["heldout_loss"])
        for name in point:
            if name.startswith(TASK_PREFIX):
                task, _, metric = name.removeprefix(TASK_PREFIX).rpartition("/")
                self._tasks.setdefault(step, set()).add(task)
                if metric != "n":
                    self.scores[f"{task}/{metric}"] = point[name]

    def numbers(self) -> RunNumbers:
        """Return what the run came to so far."""
        return self._measured.numbers()

    def heldout_loss(self, step: int) -> float | None:
        """Return the held-out loss of a step, the last one of several."""
        return dict(self.heldout).get(step)

    def scored_tasks(self, step: int) -> set[str]:
        """Return the tasks that have scores of a step."""
        return self._tasks.get(step, set())
