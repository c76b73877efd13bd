"""The curves of runs: which values are drawn over the steps, and how many points of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

MOST_POINTS = 400
"""Of one curve; more would not be told apart."""
_SMALLEST, _LARGEST = 1e-100, 1e100
Curve = list[tuple[float, float]]
"""Points of step and value."""


class Chart(NamedTuple):
    """What is drawn into one chart."""

    field: str
    """Of the metrics file."""
    title: str
    scale: float = 1.0


CHARTS = (
    Chart("heldout_loss", "held-out loss (nats per target token)"),
    Chart("loss", "training loss (nats per target token)"),
    Chart("learning_rate", "learning rate"),
    Chart("grad_norm", "gradient norm, before clipping"),
    Chart("tokens_per_s", "tokens/s, all ranks"),
    Chart("memory_bytes", "peak memory of rank 0 (GB)", 1e-9),
)


def is_drawable(value: float) -> bool:
    """Return whether an axis can reach a value without overflow: finite, of a usual size."""
    return value == 0 or _SMALLEST < abs(value) < _LARGEST


def curves_of(points: Iterable[Mapping[str, float]]) -> dict[Chart, Curve]:
    """Return a run's values over the steps by chart, each thinned to at most `MOST_POINTS`."""
    curves: dict[Chart, Curve] = {chart: [] for chart in CHARTS}
    for point in points:
        for chart, curve in curves.items():
            if is_drawable(value := point.get(chart.field, math.nan)):
                curve.append((point["step"], value * chart.scale))
    return {chart: thinned(curve) for chart, curve in curves.items() if curve}


def thinned(points: Curve, most: int = MOST_POINTS) -> Curve:
    """Return about as many points as can be seen: of each stretch the lowest and the highest."""
    if len(points) <= most:
        return points
    length = math.ceil(len(points) / (most // 2))
    kept: Curve = []
    for start in range(0, len(points), length):
        stretch = points[start : start + length]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept
