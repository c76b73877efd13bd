"""A run of Weights & Biases: on this machine, unless WANDB_MODE=online."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diablo_ds.trackers.png_files import png_file
from diablo_ds.trackers.run_id import find_run_id


class WandbRun:
    """Records a run by the package wandb; methods as `TrackerProcess` has them.

    Args:
        folder: of its files.
        run_name: for people.
    """

    def __init__(self, folder: Path, run_name: str) -> None:
        import wandb

        self._wandb: Any = wandb
        mode = os.environ.get("WANDB_MODE", "")
        mode = mode if mode in ("online", "disabled") else "offline"
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "diablo-ds",
            name=run_name,
            id=find_run_id(folder),
            resume="allow" if mode == "online" else None,
            mode=mode,
            dir=str(folder),
            settings=self._wandb.Settings(
                root_dir=str(folder),
                console="off",
                disable_git=True,
                disable_code=True,
                save_code=False,
                symlink=False,
            ),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers by tag."""
        self._run.log(dict(values), step=step)

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Record a text."""
        page = self._wandb.Html(f"<pre>{html.escape(markdown)}</pre>", data_is_not_path=True)
        self._run.log({tag: page}, step=step)

    def image(self, step: int, tag: str, png: str) -> None:
        """Record a PNG file, given in base64."""
        with png_file(step, png) as path:
            self._run.log({tag: self._wandb.Image(path)}, step=step)

    def histogram(self, step: int, tag: str, values: Sequence[float]) -> None:
        """Record the distribution of numbers."""
        self._run.log({tag: self._wandb.Histogram(values)}, step=step)

    def hyperparameters(self, settings: Mapping[str, bool | int | float | str]) -> None:
        """Record what a start of the run is made with."""
        self._run.config.update(dict(settings), allow_val_change=True)

    def event(self, step: int, time: str, text: str) -> None:
        """Record that something happened."""
        self._run.log({"event": f"{time} {text}"}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
