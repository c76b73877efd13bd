"""A run of MLflow: in a database of its own on this machine, unless MLFLOW_TRACKING_URI is set."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from diablo_ds.trackers.png_files import png_file
from diablo_ds.trackers.run_id import keep_run_id, read_run_id

_MOST_PARAMS, _LONGEST_PARAM = 100, 500
"""What MLflow takes at once, and of a value."""


class MlflowRun:
    """Records a run by the package mlflow; methods as `TrackerProcess` has them.

    Args:
        folder: of its files.
        run_name: for people.
    """

    def __init__(self, folder: Path, run_name: str) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._metric, self._param = Metric, Param
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute()}/mlflow.db"
        self._client = MlflowClient(uri)
        self._run_id = read_run_id(folder)
        try:
            self._client.update_run(self._run_id, "RUNNING")
        except MlflowException:  # the first start, or the store is another one now
            experiment = self._find_experiment(folder)
            self._run_id = self._client.create_run(experiment, run_name=run_name).info.run_id
            keep_run_id(folder, self._run_id)

    def _find_experiment(self, folder: Path) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "diablo-ds"
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        is_local = not os.environ.get("MLFLOW_TRACKING_URI")
        location = str(folder.absolute() / "artifacts") if is_local else None
        return str(self._client.create_experiment(name, artifact_location=location))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers by tag."""
        now = int(time.time() * 1000)
        metrics = [self._metric(tag, value, now, step) for tag, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Record a text, as a file."""
        self._client.log_text(self._run_id, markdown, f"{tag}/step-{step:06d}.md")

    def image(self, step: int, tag: str, png: str) -> None:
        """Record a PNG file, given in base64."""
        with png_file(step, png) as path:
            self._client.log_artifact(self._run_id, path, tag)

    def histogram(self, step: int, tag: str, values: Sequence[float]) -> None:
        """Record least, median and greatest of numbers, since MLflow has no histograms."""
        found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
        self.scalars(step, {f"{tag}/{name}": value for name, value in found.items()})

    def hyperparameters(self, settings: Mapping[str, bool | int | float | str]) -> None:
        """Record what a start of the run is made with; what a later one changes is a tag."""
        known = self._client.get_run(self._run_id).data.params
        values = {name: str(value)[:_LONGEST_PARAM] for name, value in settings.items()}
        new = [self._param(name, value) for name, value in values.items() if name not in known]
        for start in range(0, len(new), _MOST_PARAMS):
            self._client.log_batch(self._run_id, params=new[start : start + _MOST_PARAMS])
        for name, value in values.items():
            if known.get(name, value) != value:
                self._client.set_tag(self._run_id, f"changed.{name}", value)

    def event(self, step: int, time: str, text: str) -> None:
        """Record that something happened, as a tag."""
        digits = re.sub(r"[^0-9T]", "", time[:19])
        self._client.set_tag(self._run_id, f"event.{digits}.step-{step}", text[:_LONGEST_PARAM])

    def close(self) -> None:
        """Finish the run."""
        self._client.set_terminated(self._run_id)
