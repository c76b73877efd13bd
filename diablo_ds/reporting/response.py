"""The response of a sweep: held-out loss over one swept setting, a line for each of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diablo_ds.files.layout import Kind, kind_of
from diablo_ds.launcher.sweep_report import Result, read_sweep
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


def find_response(results: Sequence[Result]) -> Response | None:
    """Return the response of a sweep, over the setting with the most numbers.

    Returns:
        None where no setting was swept over at least two numbers with losses.
    """
    losses = [(r, r.adapter_loss) for r in results]
    known = [(r, loss) for r, loss in losses if loss is not None and is_drawable(loss)]
    options = [name for name in (results[0].values if results else ()) if _are_numbers(known, name)]
    counts = {name: len({r.values[name] for r, _ in known}) for name in options}
    option = max(counts, key=lambda name: counts[name], default="")
    if counts.get(option, 0) < 2:
        return None
    lines: dict[str, list[tuple[float, float]]] = {}
    for result, loss in known:
        others = (f"{name}={value}" for name, value in result.values.items() if name != option)
        lines.setdefault(", ".join(others), []).append((float(result.values[option]), loss))
    values = [x for points in lines.values() for x, _ in points]
    return Response(
        option,
        tuple((name, tuple(sorted(points))) for name, points in lines.items()),
        is_log=min(values) > 0 and max(values) >= LOG_FROM * min(values),
    )


def response_of_folder(folder: Path, runs: Sequence[RunRecord]) -> Response | None:
    """Return the response of a sweep's folder, of these of its runs; None for another folder.

    Raises:
        UserError: if the sweep's record is damaged.
    """
    if kind_of(folder) is not Kind.SWEEP:
        return None
    names = {run.folder.name for run in runs}
    return find_response([result for result in read_sweep(folder)[0] if result.name in names])


def _are_numbers(known: Sequence[tuple[Result, float]], name: str) -> bool:
    try:
        return all(is_drawable(float(result.values[name])) for result, _ in known)
    except ValueError:
        return False
