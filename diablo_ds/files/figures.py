"""Plots in the user's style or matplotlib's own, never in that of the working folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def figure_class() -> Any:
    """Return `matplotlib.figure.Figure`.

    matplotlib reads a file `matplotlibrc` of the working folder before the user's own, whoever put
    it there: it can have LaTeX typeset the texts and read other files into them. It also fails
    where a notebook named its own way of showing figures to its commands; ours go to files.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    os.environ.pop("MPLBACKEND", None)
    import matplotlib
    import matplotlib.style
    from matplotlib.figure import Figure

    if Path(matplotlib.matplotlib_fname()).absolute().parent == Path.cwd():
        matplotlib.style.use("default")
    return Figure
