"""The curves of runs: which values are drawn over the steps, and how many points of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from diablo_ds.training.metrics_file import TASK_PREFIX

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
    has_markers: bool = False
    """Whether its points are few."""


CHARTS = (
    Chart("heldout_loss", "held-out loss (nats per target token)", has_markers=True),
    Chart("loss", "training loss (nats per target token)"),
    Chart("learning_rate", "learning rate"),
    Chart("grad_norm", "gradient norm, before clipping"),
    Chart("tokens_per_s", "tokens/s, all ranks"),
    Chart("memory_bytes", "peak memory of rank 0 (GB)", 1e-9),
)
"""What any run may have; scores of tasks are drawn beside these."""
_MOST_SCORES = 100
"""Charts of scores of one run; a run of our own has one for each metric of its tasks."""


def in_order(charts: Iterable[Chart]) -> list[Chart]:
    """Return charts in the order of interest: losses, scores by their names, all others."""
    losses, others = CHARTS[:2], CHARTS[2:]
    found = set(charts)
    scores = sorted(found.difference(CHARTS))
    return [chart for chart in (*losses, *scores, *others) if chart in found]


def is_drawable(value: float) -> bool:
    """Return whether an axis can reach a value without overflow: finite, of a usual size."""
    return value == 0 or _SMALLEST < abs(value) < _LARGEST


def curves_of(points: Iterable[Mapping[str, float]]) -> dict[Chart, Curve]:
    """Return a run's values over the steps by chart, each thinned to at most `MOST_POINTS`."""
    curves: dict[Chart, Curve] = {chart: [] for chart in CHARTS}
    seen: set[str] = set()
    for point in points:
        for field in point.keys() - seen:
            seen.add(field)
            if _is_score(field) and len(curves) < len(CHARTS) + _MOST_SCORES:
                curves[_chart_of_score(field)] = []
        for chart, curve in curves.items():
            if is_drawable(value := point.get(chart.field, math.nan)):
                curve.append((point["step"], value * chart.scale))
    return {chart: thinned(curve) for chart, curve in curves.items() if curve}


def _is_score(field: str) -> bool:
    return field.startswith(TASK_PREFIX) and not field.endswith("/n")  # of questions


def _chart_of_score(field: str) -> Chart:
    from diablo_ds.evaluation.tables import NATURAL  # only where there are scores: it is slow

    task, _, metric = field.removeprefix(TASK_PREFIX).rpartition("/")
    is_share = metric not in NATURAL
    title = f"{task}: {metric}{' (%)' if is_share else ''}"
    return Chart(field, title, 100.0 if is_share else 1.0, has_markers=True)


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
