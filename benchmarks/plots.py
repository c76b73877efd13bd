"""Plots of reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from diablo_ds.files.atomic import new_file


def plot_bars(
    path: Path,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    label: str,
    *,
    baseline: float | None = None,
) -> None:
    """Draw horizontal bars: one group per row, one bar per series.

    Args:
        path: the PNG to write.
        groups: names of the rows.
        series: a value for each group, by name.
        label: of the values.
        baseline: a value to draw a line at.
    """
    figure = Figure(figsize=(8, 1.2 + 0.17 * len(groups) * (len(series) + 1)), layout="constrained")
    axes = figure.subplots()
    height = 0.85 / len(series)
    for number, (name, values) in enumerate(series.items()):
        places = [index + height * number for index in range(len(groups))]
        axes.barh(places, values, height, label=name)
    middle = 0.5 * height * (len(series) - 1)
    axes.set_yticks([index + middle for index in range(len(groups))], groups)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    if baseline is not None:
        axes.axvline(baseline, color="k", linestyle=":", linewidth=1)
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_lines(
    path: Path,
    panels: Mapping[str, Mapping[str, Mapping[float, float]]],
    label: str,
    *,
    log: bool = True,
) -> None:
    """Draw one panel per quantity, with a line per series.

    Args:
        path: the PNG to write.
        panels: by the name of the horizontal axis: by series, y over x.
        label: of the vertical axes.
        log: whether the horizontal axes are logarithmic.
    """
    figure = Figure(figsize=(3.4 * len(panels), 3.4), layout="constrained")
    for axes, (name, series) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for number, (line, points) in enumerate(series.items()):
            axes.plot(list(points), list(points.values()), marker="osv^D*"[number], label=line)
        if log:
            axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(name)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
