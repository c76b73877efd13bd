"""A plan's plot: rate, rate per GPU with MFU, and memory from 1 to 1,024 GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diablo_ds.errors import UserError
from diablo_ds.files.atomic import new_file
from diablo_ds.files.figures import figure_class
from diablo_ds.planning.candidate import VARIANTS, Candidate
from diablo_ds.planning.hardware import GB

_MARKERS = "osv^D*"
"""Of `VARIANTS`, in their order; curves of equal rate cover each other."""


def scaling_figure(candidates: Sequence[Candidate], title: str) -> Any:
    """Return a matplotlib figure of the planned rate, rate per GPU, MFU and memory.

    Args:
        candidates: of one model and run, as `diablo_ds.planning.search.scaling` returns them.
        title: what was planned.

    Raises:
        UserError: if matplotlib is not installed.
    """
    try:
        figure_of = figure_class()
        from matplotlib.ticker import PercentFormatter
    except ModuleNotFoundError:
        raise UserError("a plot needs matplotlib; got none; run `pip install matplotlib`") from None
    figure = figure_of(figsize=(13, 8), layout="constrained")
    (rate, of_one), (mfu, memory) = figure.subplots(2, 2)
    for number, variant in enumerate(VARIANTS):
        own = [c for c in candidates if c.variant == variant]
        if own:
            sizes = [c.cluster.world_size for c in own]
            # The first curves are drawn larger, so that equal ones remain visible.
            style = {"marker": _MARKERS[number], "label": variant.name, "linewidth": 1.5}
            style |= {"markersize": 10 - number, "alpha": 0.8}
            rate.plot(sizes, [c.tokens_per_s for c in own], **style)
            of_one.plot(sizes, [c.tokens_per_s_per_gpu for c in own], **style)
            mfu.plot(sizes, [c.mfu for c in own], **style)
            memory.plot(sizes, [c.memory.total / GB for c in own], **style)
    if candidates:
        one = max(c.tokens_per_s_per_gpu for c in candidates)
        sizes = [c.cluster.world_size for c in candidates]
        ends = [min(sizes), max(sizes)]
        rate.plot(ends, [one * n for n in ends], "k:", label="proportional", linewidth=1)
        usable = candidates[0].cluster.usable_bytes / GB
        memory.axhline(usable, color="k", linestyle=":", linewidth=1, label="usable")
    labels = (
        (rate, "tokens/s of all GPUs, planned"),
        (of_one, "tokens/s per GPU, planned"),
        (mfu, "MFU, planned"),
        (memory, "memory per GPU (GB), planned"),
    )
    for axes, label in labels:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("GPUs")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    rate.set_yscale("log")
    mfu.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axes in (of_one, mfu, memory):
        axes.set_ylim(0, 1.1 * axes.dataLim.y1)  # the highest curve stays clear of the frame
    figure.suptitle(title, fontsize=11)
    return figure


def plot_scaling(candidates: Sequence[Candidate], path: Path, title: str) -> None:
    """Write `scaling_figure` as a PNG.

    Raises:
        UserError: if matplotlib is not installed.
    """
    figure = scaling_figure(candidates, title)
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
