"""The metrics file: one JSON object per point; read without torch, written line by line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from diablo_ds.files.bounds import read_lines
from diablo_ds.files.strict_json import finite

_MAX_NUMBER = 1e12
"""Of steps, seconds and rates, by which nothing that is computed of them overflows."""


def read_metrics(path: Path) -> tuple[list[dict[str, float]], int]:
    """Read a metrics file.

    Returns:
        Its points, each with a step, and the number of lines that are none, as the last one that a
        crash cut short. Values that were not finite are NaN.
    """
    points, num_bad = [], 0
    if not path.is_file():
        return [], 0
    with path.open("rb") as file:
        for line in read_lines(file):
            point = _parse_point(line)
            if point is None:
                num_bad += 1
            else:
                points.append(point)
    return points, num_bad


def lowest_heldout(points: Iterable[Mapping[str, float]]) -> tuple[int, float] | None:
    """Return step and value of the lowest held-out loss, the earlier of equal ones, if any."""
    losses = [(p["heldout_loss"], int(p["step"])) for p in points if "heldout_loss" in p]
    loss, step = min((pair for pair in losses if math.isfinite(pair[0])), default=(math.nan, -1))
    return None if step < 0 else (step, loss)


def format_point(point: Mapping[str, float]) -> str:
    """Return a point as a line of the file."""
    return json.dumps({name: finite(value) for name, value in point.items()}) + "\n"


def _parse_point(line: bytes) -> dict[str, float] | None:
    try:
        values = json.loads(line)
        point = {name: math.nan if v is None else float(v) for name, v in values.items()}
        step = int(point["step"])
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    is_one = step == point["step"] and all(
        0 <= value <= _MAX_NUMBER or math.isnan(value)
        for name, value in point.items()
        if name == "step" or name.endswith("_s")
    )
    return {**point, "step": step} if is_one else None
