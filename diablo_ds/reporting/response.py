"""The response of a sweep: held-out loss over one swept setting, a line for each of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diablo_ds.files.layout import Kind, kind_of
from diablo_ds.launcher.sweep_report import read_recorded
from diablo_ds.reporting.curves import is_drawable
from diablo_ds.reporting.record import RunRecord

LOG_FROM = 8.0
"""Largest over smallest value from which an axis of positive values is logarithmic."""


@dataclass(frozen=True)
class Response:
    """Held-out losses of adapters over a swept setting."""

    option: str
    """The setting of the axis."""
    lines: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]
    """Name, and points of value and loss in nats per target token, by value."""
    is_log: bool


def find_response(runs: Sequence[tuple[Mapping[str, str], float | None]]) -> Response | None:
    """Return the response of a sweep, over the setting with the most numbers.

    Args:
        runs: the values of the swept settings of each run, and the held-out loss of its adapter.

    Returns:
        None where no setting was swept over at least two numbers with losses.
    """
    known = [(values, loss) for values, loss in runs if loss is not None and is_drawable(loss)]
    numbers = {
        name: {values[name] for values, _ in known}
        for name in (runs[0][0] if runs else ())
        if all(_is_number(values[name]) for values, _ in known)
    }
    option = max(numbers, key=lambda name: len(numbers[name]), default="")
    if len(numbers.get(option, ())) < 2:
        return None
    lines: dict[str, list[tuple[float, float]]] = {}
    for values, loss in known:
        others = (f"{name}={value}" for name, value in values.items() if name != option)
        lines.setdefault(", ".join(others), []).append((float(values[option]), loss))
    places = [x for points in lines.values() for x, _ in points]
    return Response(
        option,
        tuple((name, tuple(sorted(points))) for name, points in lines.items()),
        is_log=min(places) > 0 and max(places) >= LOG_FROM * min(places),
    )


def response_of_folder(folder: Path, runs: Sequence[RunRecord]) -> Response | None:
    """Return the response of a sweep's folder, of these of its runs; None for another folder.

    Raises:
        UserError: if the sweep's record is damaged.
    """
    if kind_of(folder) is not Kind.SWEEP:
        return None
    values = {result.name: result.values for result in read_recorded(folder)[0]}
    of_sweep = [run for run in runs if run.folder.name in values]
    return find_response([(values[run.folder.name], run.adapter_loss) for run in of_sweep])


def _is_number(text: str) -> bool:
    try:
        return is_drawable(float(text))
    except ValueError:
        return False
