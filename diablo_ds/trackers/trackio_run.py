"""A run of Trackio: in its file on this machine, unless its own variables name a place."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diablo_ds.trackers.png_files import png_file
from diablo_ds.trackers.run_id import find_run_id


class TrackioRun:
    """Records a run by the package trackio; methods as `TrackerProcess` has them.

    Args:
        folder: of its files.
        run_name: for people.
    """

    def __init__(self, folder: Path, run_name: str) -> None:
        import trackio

        self._trackio = trackio
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT") or "diablo-ds",
            name=find_run_id(folder, f"{run_name}-"),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers by tag."""
        self._log(step, dict(values))

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Record a text."""
        self._log(step, {tag: self._trackio.Markdown(markdown)})

    def image(self, step: int, tag: str, png: str) -> None:
        """Record a PNG file, given in base64."""
        with png_file(step, png) as path:
            self._log(step, {tag: self._trackio.Image(path)})

    def histogram(self, step: int, tag: str, values: Sequence[float]) -> None:
        """Record the distribution of numbers."""
        self._log(step, {tag: self._trackio.Histogram(values)})

    def hyperparameters(self, settings: Mapping[str, bool | int | float | str]) -> None:
        """Record what a start of the run is made with."""
        self._run.config.update(settings)

    def event(self, step: int, time: str, text: str) -> None:
        """Record that something happened."""
        self._log(step, {"event": self._trackio.Markdown(f"{time} {text}")})

    def close(self) -> None:
        """Finish the run."""
        self._trackio.finish()

    def _log(self, step: int, values: dict[str, Any]) -> None:
        self._trackio.log(values, step=step)
