"""The curves of several runs in one picture, and the response curve of a sweep; by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diablo_ds.errors import UserError
from diablo_ds.files.atomic import new_file
from diablo_ds.files.figures import figure_class
from diablo_ds.reporting.columns import one_line
from diablo_ds.reporting.record import RunRecord, known_charts
from diablo_ds.reporting.response import Response

FORMATS = (".png", ".svg", ".pdf")
_DRAWN = ("heldout_loss", "loss", "tokens_per_s")


def check_plot(path: Path) -> None:
    """Raise UserError if a plot's file is no PNG, SVG or PDF file, or matplotlib is missing."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"a plot must be a .png, .svg or .pdf file; got {path}")
    try:
        figure_class()
    except ModuleNotFoundError:
        raise UserError("a plot needs matplotlib; got none; run `pip install matplotlib`") from None


def plot_runs(runs: Sequence[RunRecord], path: Path, response: Response | None = None) -> None:
    """Draw held-out loss, training loss and rate of runs over their steps.

    Args:
        runs: the runs.
        path: the file, which `check_plot` has passed.
        response: of the sweep that the runs are of.

    Raises:
        UserError: if no run has values.
    """
    charts = [(c, curves) for c, curves in known_charts(runs) if c.field in _DRAWN]
    if not charts:
        raise UserError(f"a plot needs runs with steps; got none among {len(runs)} runs")
    count = len(charts) + (response is not None)
    size = (6.5 * min(count, 2), 4.5 * -(-count // 2))
    figure = figure_class()(figsize=size, layout="constrained")
    axes = list(figure.subplots(-(-count // 2), min(count, 2), squeeze=False).flat)
    colors = {run.name: f"C{number % 10}" for number, run in enumerate(runs)}
    for place, (chart, curves) in zip(axes, charts, strict=False):
        for run, curve in curves:
            marker = "o" if chart.has_markers else ""
            style = {"marker": marker, "markersize": 3, "linewidth": 1, "color": colors[run.name]}
            place.plot(*zip(*curve, strict=True), label=_label(run.name), **style)
        _finish(place, "optimizer step", chart.title)
    _add_legend(figure, axes[: len(charts)])
    if response is not None:
        _draw_response(axes[len(charts)], response)
    for empty in axes[count:]:
        empty.remove()
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix.lower().removeprefix("."))


def _draw_response(axes: Any, response: Response) -> None:
    for name, points in response.lines:
        axes.plot(*zip(*points, strict=True), marker="o", label=_label(name))
    if response.is_log:
        axes.set_xscale("log")
    axes.legend()
    _finish(axes, response.option, "held-out loss of the adapter (nats per target token)")


def _add_legend(figure: Any, axes: Sequence[Any]) -> None:
    """Name the runs once, below the charts: their colours are the same in each."""
    handles: dict[str, Any] = {}
    for place in axes:
        drawn, labels = place.get_legend_handles_labels()
        handles |= dict(zip(labels, drawn, strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, fontsize=8)


def _finish(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(_label(x))
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)


def _label(text: str) -> str:
    """Return a text that matplotlib takes as it is: neither as maths nor as no label."""
    return " " * text.startswith("_") + one_line(text).replace("$", r"\$")
