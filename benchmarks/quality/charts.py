"""Plots of the study's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.quality.comparing import Mean
from diablo_ds.files.atomic import new_file

_MARKERS = "osv^D*Px<>"
Points = Mapping[float, Mean]
"""Means by their place on the horizontal axis."""


def plot_means(
    path: Path,
    panels: Mapping[str, Mapping[str, Points]],
    x_label: str,
    y_label: str,
    *,
    base: int = 2,
    zero: bool = False,
    least_range: bool = False,
) -> None:
    """Draw one panel per group, with a line per series and bars for intervals.

    Args:
        path: the PNG to write.
        panels: by title: by series, its points.
        x_label: of the horizontal axes, which are logarithmic.
        y_label: of the vertical axes, which the panels share.
        base: of the logarithm whose powers are marked.
        zero: whether a line marks 0.
        least_range: whether values far above the lowest ones are cut off, as of rates that are
            too high.
    """
    figure = Figure(figsize=(4.2 * len(panels), 3.8), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    numbers: dict[str, int] = {}
    for series in panels.values():
        for name in series:
            numbers.setdefault(name, len(numbers))
    for axes, (title, series) in zip(all_axes, panels.items(), strict=True):
        for name, points in series.items():
            places, number = sorted(points), numbers[name]
            axes.errorbar(
                places,
                [points[x].value for x in places],
                yerr=[points[x].half or 0.0 for x in places],
                color=f"C{number}",  # the same in all panels
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=4,
                capsize=2,
                linewidth=1,
                label=name,
            )
        axes.set_xscale("log", base=base)
        axes.set_xlabel(x_label)
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
        if zero:
            axes.axhline(0, color="k", linestyle=":", linewidth=1)
        axes.legend(fontsize=7)
    all_axes[0].set_ylabel(y_label)
    if least_range:
        values = [
            [point.value for point in points.values()]
            for series in panels.values()
            for points in series.values()
        ]
        all_axes[0].set_ylim(*_range(values))
    _save(figure, path)


def _range(series: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return limits that show the lowest value of each series with what lies around it."""
    lows = [min(values) for values in series if values]
    others = sorted(value for values in series for value in values)
    typical = others[len(others) // 2]
    margin = max(typical - min(lows), max(lows) - min(lows), 1e-3)
    return min(lows) - 0.15 * margin, max(max(lows), typical) + margin


def plot_shares(
    path: Path, estimates: Mapping[str, tuple[float, float, float]], label: str
) -> None:
    """Draw horizontal bars of shares with their intervals.

    Args:
        path: the PNG to write.
        estimates: by name: the share, and the ends of its interval.
        label: of the axis.
    """
    figure = Figure(figsize=(7, 1.2 + 0.35 * len(estimates)), layout="constrained")
    axes = figure.subplots()
    names = list(estimates)
    shares = [share for share, _, _ in estimates.values()]
    errors = [
        [max(0.0, share - low) for share, low, _ in estimates.values()],
        [max(0.0, high - share) for share, _, high in estimates.values()],
    ]
    axes.barh(range(len(names)), shares, 0.7, xerr=errors, capsize=2)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3, axis="x")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
