"""What rank 0 shows of a run while it goes on: a live line on a terminal, else a line per step."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence

from diablo_ds.config.run import RunConfig
from diablo_ds.ranks import distributed
from diablo_ds.ranks.heartbeat import heart
from diablo_ds.ranks.live_line import live_line, shows_progress
from diablo_ds.ranks.log import logger
from diablo_ds.ranks.progress import format_seconds
from diablo_ds.training.step_line import StepState, live_text, plain_text
from diablo_ds.training.time_left import (
    ESTIMATE_STEPS,
    Schedule,
    describe_estimate,
    thinned,
    time_left_s,
)

MEAN_STEPS = 20
"""Steps of the running mean of the loss."""
_MANY_POINTS = 500


class Screen:
    """The line of a run.

    Args:
        run_config: tells when the run evaluates and saves.
        num_steps: steps of the run.
        start_step: steps taken before this process.
        num_gpus: of all ranks; 0 on CPUs.
    """

    def __init__(
        self, run_config: RunConfig, num_steps: int, start_step: int, num_gpus: int = 0
    ) -> None:
        self._schedule = Schedule.of(run_config, num_steps)
        self._state = StepState(start_step, num_steps, num_gpus=num_gpus)
        self._since = time.monotonic()
        self._points: list[Mapping[str, float]] = []
        """Of this process: what an earlier one took may have been on another machine."""
        self._num_steps = 0
        """Taken by this process."""
        self._is_live = shows_progress()
        if self._is_live:
            live_line.show(self._text)

    def step(self, values: Mapping[str, float], losses: Sequence[float]) -> None:
        """Show a step.

        Args:
            values: its point, in the form of the metrics file.
            losses: of all steps of the run, this one's last.
        """
        self._points.append(values)
        if len(self._points) > _MANY_POINTS:
            self._points = thinned(self._points)
        recent = losses[-MEAN_STEPS:]
        self._state = dataclasses.replace(
            self._state,
            step=int(values["step"]),
            values=values,
            mean_loss=statistics.fmean(recent) if len(recent) > 1 else None,
            left_s=time_left_s(self._points, self._schedule),
        )
        self._since = time.monotonic()
        self._num_steps += 1
        if self._is_live:
            live_line.refresh()
        else:
            logger.info(plain_text(self._state))
        if self._num_steps == ESTIMATE_STEPS and self._state.step < self._schedule.num_steps:
            logger.info(describe_estimate(self._points, self._schedule))

    def heldout(self, loss: float) -> None:
        """Show a held-out loss in the lines of the steps that follow."""
        self._state = dataclasses.replace(self._state, heldout_loss=loss)
        if not self._state.values:  # the first step begins
            self._since = time.monotonic()

    def close(self) -> None:
        """Leave the last line where it is, as a line of its own."""
        if self._is_live:
            self._is_live = False
            live_line.remove(self._text)
            if self._state.values:
                logger.info(plain_text(dataclasses.replace(self._state, left_s=None)))

    def _text(self, columns: int) -> str:
        state, gone = self._state, time.monotonic() - self._since
        if not state.values:
            state = dataclasses.replace(state, note=f"first step {format_seconds(gone)}")
        if state.left_s is not None:
            state = dataclasses.replace(state, left_s=max(0.0, state.left_s - gone))
        return live_text(state, columns)


@contextlib.contextmanager
def showing_phases() -> Iterator[None]:
    """Show on a terminal of rank 0 what the run does before its first step, as its heart beats."""
    start = time.monotonic()

    def text(columns: int) -> str:
        what = heart.phase or "starting"
        return f"{what[:1].upper()}{what[1:]}  {format_seconds(time.monotonic() - start)}"[:columns]

    if not (shows_progress() and distributed.is_main_process()):
        yield
        return
    live_line.show(text)
    try:
        yield
    finally:
        live_line.remove(text)
