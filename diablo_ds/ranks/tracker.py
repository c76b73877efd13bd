"""Where a run's measurements go beside its metrics file: one interface for all such places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol


class Tracker(Protocol):
    """Takes what training measures, on rank 0, and shows it.

    A tag is "group/name", the same for all trackers: "loss/training", "loss/heldout",
    "scores/gsm8k/accuracy", "speed/tokens_per_s", "memory/peak_GB", "optimizer/grad_norm",
    "results/best_heldout_loss". A tracker may show it under another name. A step is the number of
    optimizer steps taken, and never goes back, except where a run continues from a checkpoint: a
    tracker is opened with that step, and shows nothing later of the process before.

    Any method may raise any error: it is warned of, and the tracker is not called again.
    """

    @property
    def name(self) -> str:
        """Name for people, e.g. "TensorBoard"."""
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers by tag; some may not be finite."""
        ...

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Record a text."""
        ...

    def image(self, step: int, tag: str, png: bytes) -> None:
        """Record a PNG file."""
        ...

    def histogram(self, step: int, tag: str, values: Sequence[float]) -> None:
        """Record the distribution of finite numbers, at least one."""
        ...

    def hyperparameters(self, settings: Mapping[str, bool | int | float | str]) -> None:
        """Record what a start of the run is made with; scalars under "results/" are its results."""
        ...

    def event(self, step: int, time: datetime, text: str) -> None:
        """Record that something happened, such as a restart.

        Each start tells all events of the run before again: time and text tell them apart.

        Args:
            step: steps taken when it is told.
            time: when it was, with the offset from UTC.
            text: one line.
        """
        ...

    def close(self) -> None:
        """Write what is left, and let go of all files and processes."""
        ...
