"""The metrics file: one JSON object per point; read without torch, written line by line."""

from __future__ import annotations

import json
import math
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

from diablo_ds.files.bounds import read_lines
from diablo_ds.files.strict_json import finite
from diablo_ds.training.step_clock import EVALUATION, SAVING, TASKS

_MAX_NUMBER = 1e12
"""Of steps, seconds and rates, by which nothing that is computed of them overflows."""
TASK_PREFIX = "task/"
"""Before the names of a task and a metric, in the names of scores."""
_RECENT_LINES = 400
_MARKS = (b"heldout_loss", EVALUATION.encode(), SAVING.encode(), TASKS.encode())
"""In lines of evaluations, and of steps after which a run did something else."""
_STEP = re.compile(rb'\{"step": ([0-9]{1,12})[,}]')
"""How a line of our own begins."""


def read_metrics(path: Path) -> tuple[list[dict[str, float]], int]:
    """Read a metrics file.

    Returns:
        Its points, each with a step, and the number of lines that are none, as the last one that a
        crash cut short. Values that were not finite are NaN.
    """
    points = list(parsed_lines(path))
    good = [point for point in points if point is not None]
    return good, len(points) - len(good)


def each_point(path: Path) -> Iterator[dict[str, float]]:
    """Yield the points that `read_metrics` returns, of which a million take a gigabyte together."""
    return filter(None, parsed_lines(path))


def parsed_lines(path: Path) -> Iterator[dict[str, float] | None]:
    """Yield the point in each line of a metrics file; None for a line in which there is none."""
    if path.is_file():
        with path.open("rb") as file:
            yield from map(_parse_point, read_lines(file))


class RecentPoints:
    """The points of a metrics file that tell how a run stands: the last ones, and all evaluations.

    The file is read on from where it was read before, so that looking again at a run of a million
    steps takes no longer than at a short one.

    Args:
        path: the metrics file.
        last_step: up to which points are wanted; all by default.
    """

    def __init__(self, path: Path, last_step: float = math.inf) -> None:
        self._path, self._last_step = path, last_step
        self._begin(0)

    def _begin(self, inode: int) -> None:
        self._inode, self._offset = inode, 0
        self._told: list[dict[str, float]] = []
        self._lines: deque[bytes] = deque()

    def read(self) -> list[dict[str, float]]:
        """Return the points so far, in their order."""
        if not self._path.is_file():
            return []
        unfinished = b""
        with self._path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_ino != self._inode or found.st_size < self._offset:  # a run that continues
                self._begin(found.st_ino)
            file.seek(self._offset)
            for line in read_lines(file):
                if not line.endswith(b"\n"):
                    unfinished = line
                    break
                self._offset += len(line)
                self._keep(line)
        parsed = map(_parse_point, (*self._lines, unfinished))
        points = (*self._told, *filter(None, parsed))
        return [point for point in points if point["step"] <= self._last_step]

    def _keep(self, line: bytes) -> None:
        step = _STEP.match(line)
        if step is not None and int(step[1]) > self._last_step:
            return
        self._lines.append(line)
        if len(self._lines) > _RECENT_LINES:
            oldest = self._lines.popleft()
            is_told = any(map(oldest.__contains__, _MARKS))
            point = _parse_point(oldest) if is_told else None
            self._told += [] if point is None else [point]


def format_point(point: Mapping[str, float]) -> str:
    """Return a point as a line of the file."""
    return json.dumps({name: finite(value) for name, value in point.items()}) + "\n"


def _parse_point(line: bytes) -> dict[str, float] | None:
    try:
        point = json.loads(line.decode())
        for name, value in point.items():
            if type(value) is not float:
                point[name] = value = math.nan if value is None else float(value)
            is_bounded = name == "step" or name.endswith("_s")
            if is_bounded and not (0 <= value <= _MAX_NUMBER or math.isnan(value)):
                return None
        step = int(point["step"])
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    if step != point["step"]:
        return None
    point["step"] = step
    return point  # type: ignore[no-any-return]
