"""TensorBoard as a place for a run's measurements."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from diablo_ds.files.markdown_text import cell
from diablo_ds.ranks.event_files import EventFile, cut_event_files

_GROUPS = (
    "loss",
    "scores",
    "speed",
    "time",
    "memory",
    "optimizer",
    "network",
    "progress",
    "deltas",
    "norms",
)
"""In the order of interest. TensorBoard sorts groups by name, hence their numbers."""
_LOSS = "per target token"
_HELDOUT, _RESULTS = "heldout", "results"
"""Folders of runs below the run itself: lines in one card are of several runs with one tag, and the
table of hyperparameters has a column for each tag of the run that has them."""
_SETTINGS_TAG, _LAYOUT_TAG = "_hparams_/session_start_info", "custom_scalars__config__"
_EVENTS_TAG = "events"
_WRITTEN_AT_EACH_START = (_SETTINGS_TAG, _LAYOUT_TAG, _EVENTS_TAG)
_BINS = 30


class TensorBoard:
    """Writes event files; see `diablo_ds.ranks.tracker.Tracker`.

    Args:
        folder: of the files.
        last_step: up to which a run continues; what is there of later steps is removed. -1 for a
            run that begins.

    Raises:
        OSError: if a file cannot be read or written.
        UserError: if a folder or file is not this user's.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path, *, last_step: int = -1) -> None:
        self._folder, self._last_step = folder, last_step
        self._files: dict[str, EventFile] = {}
        self._events: list[str] = []
        self._events_step: int | None = None
        """Of the table with the events that are not written yet."""
        for run in ("", _HELDOUT, _RESULTS):
            cut_event_files(folder / run, last_step, lambda tag: tag not in _WRITTEN_AT_EACH_START)
        self._file("").write(summary=_summary(_layout_value()))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one event with all numbers of a run."""
        self._write_events()
        from tensorboard.compat.proto.summary_pb2 import Summary

        by_run: defaultdict[str, list[Any]] = defaultdict(list)
        for tag, value in values.items():
            run, shown = _place(tag)
            by_run[run].append(Summary.Value(tag=shown, simple_value=value))
        for run, shown_values in by_run.items():
            self._file(run).write(step=step, summary=_summary(*shown_values))

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Write a text."""
        self._file("").write(step=step, summary=_summary(_string_value(tag, markdown, "text")))

    def image(self, step: int, tag: str, png: bytes) -> None:
        """Write an image."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = struct.unpack(">II", png[16:24])
        shown = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
        value = Summary.Value(tag=_place(tag)[1], image=shown)
        self._file("").write(step=step, summary=_summary(value))

    def histogram(self, step: int, tag: str, values: Sequence[float]) -> None:
        """Write a histogram with bins of equal width."""
        import numpy as np
        from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

        numbers = np.asarray(values, np.float64)
        counts, edges = np.histogram(numbers, _BINS)
        shown = HistogramProto(
            min=numbers.min(),
            max=numbers.max(),
            num=len(numbers),
            sum=numbers.sum(),
            sum_squares=numbers @ numbers,
            # A bin has a right edge only: an empty one before gives the first bin its left edge.
            bucket_limit=edges.tolist(),
            bucket=[0, *counts.tolist()],
        )
        value = Summary.Value(tag=_place(tag)[1], histo=shown)
        self._file("").write(step=step, summary=_summary(value))

    def hyperparameters(self, settings: Mapping[str, bool | int | float | str]) -> None:
        """Write the settings, for the page HPARAMS.

        Without a description of the experiment, of which TensorBoard would take that of a single
        run for all, it compares the runs itself and shows first what differs.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

        start = SessionStartInfo()
        for name, value in settings.items():
            if isinstance(value, bool):
                start.hparams[name].bool_value = value
            elif isinstance(value, str):
                start.hparams[name].string_value = value
            else:
                start.hparams[name].number_value = value
        content = HParamsPluginData(version=0, session_start_info=start).SerializeToString()
        plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content)
        value = Summary.Value(tag=_SETTINGS_TAG, metadata=SummaryMetadata(plugin_data=plugin))
        self._file(_RESULTS).write(summary=_summary(value))

    def event(self, step: int, time: datetime, text: str) -> None:
        """Note an event, for one table of all that is written with the next numbers."""
        self._events.append(f"| {time:%Y-%m-%d %H:%M:%S %z} | {cell(text)} |")
        self._events_step = step

    def close(self) -> None:
        """Close all files."""
        self._write_events()
        for file in self._files.values():
            file.close()

    def _write_events(self) -> None:
        if self._events_step is not None:
            table = ["| time | what |", "|---|---|", *self._events]
            self.text(self._events_step, _EVENTS_TAG, "\n".join(table))
            self._events_step = None

    def _file(self, run: str) -> EventFile:
        if run not in self._files:
            from tensorboard.compat.proto.event_pb2 import SessionLog

            file = self._files[run] = EventFile(self._folder / run)
            # For a TensorBoard that has read the later steps already.
            start = SessionLog(status=SessionLog.START)
            file.write(step=self._last_step + 1, session_log=start)
        return self._files[run]


def _place(tag: str) -> tuple[str, str]:
    """Return the run in which a tag is shown, as a folder, and the tag there."""
    group, _, name = tag.partition("/")
    if group == _RESULTS:
        return _RESULTS, tag
    run = _HELDOUT if tag == "loss/heldout" else ""
    if tag in ("loss/training", "loss/heldout"):
        name = _LOSS
    number = _GROUPS.index(group) + 1 if group in _GROUPS else len(_GROUPS) + 1
    return run, f"{number} {group}/{name}"


def _summary(*values: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=values)


def _string_value(tag: str, text: str | bytes, plugin: str) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto

    content = text.encode() if isinstance(text, str) else text
    return Summary.Value(
        tag=tag,
        metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=plugin)),
        tensor=TensorProto(dtype="DT_STRING", string_val=[content]),
    )


def _layout_value() -> Any:
    """Return the layout of the page CUSTOM SCALARS: lines that belong together, in one chart."""
    from tensorboard.plugins.custom_scalar import layout_pb2 as pb

    charts = {
        "loss of training and held-out data": [_place("loss/training")[1]],
        "scores": [_place("scores/.*")[1]],
        "seconds of a step and between steps": [_place("time/.*")[1]],
        "memory, GB": [_place("memory/.*")[1]],
        "network, MB per step": [_place("network/.*")[1]],
    }
    content = [
        pb.Chart(title=title, multiline=pb.MultilineChartContent(tag=tags))
        for title, tags in charts.items()
    ]
    return _string_value(
        _LAYOUT_TAG,
        pb.Layout(category=[pb.Category(title="together", chart=content)]).SerializeToString(),
        "custom_scalars",
    )
