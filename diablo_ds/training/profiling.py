"""Traces of some steps of a run, by PyTorch's profiler, for Perfetto and TensorBoard."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from diablo_ds.config.profile_steps import parse_profile_steps
from diablo_ds.files import owned
from diablo_ds.files.atomic import new_file
from diablo_ds.files.layout import RunFolder
from diablo_ds.ranks import distributed
from diablo_ds.ranks.log import logger
from diablo_ds.zero.phases import naming_gathers

_QUIET = ("KINETO_LOG_LEVEL", "6")
"""Else PyTorch's tracer prints on the terminal that it begins and ends."""


class StepTrace:
    """Traces steps on rank 0, whose steps are those of all ranks; on the others it does nothing.

    A trace that fails is warned of and ends no run. Nothing that it does communicates, draws random
    numbers or changes a result.

    Args:
        steps: which, as text; the run's first is 1. Those that were taken before are not traced.
        run_folder: whose folder for traces TensorBoard's plugin of PyTorch's profiler finds.
    """

    def __init__(self, steps: str, run_folder: Path) -> None:
        self._steps = parse_profile_steps(steps if distributed.is_main_process() else "")
        self._folder = RunFolder(run_folder).profile
        self._profiler: Any = None

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Take a step inside, traced where that is asked for; the last one writes the trace."""
        if step in self._steps and self._profiler is None:
            self._start()
        if self._profiler is None:
            yield
            return
        # The name by which TensorBoard's plugin knows a step.
        with record_function(f"ProfilerStep#{step}"), naming_gathers():
            yield
        if step == self._steps[-1]:
            self.close()

    def close(self) -> None:
        """Write what was traced so far, if anything was."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        name = f"{socket.gethostname()}_{os.getpid()}.{time.time_ns()}.pt.trace.json"
        try:
            profiler.stop()
            owned.make_folder(self._folder, "profile folder")
            with new_file(self._folder / name) as temporary:
                profiler.export_chrome_trace(str(temporary))
        except Exception as error:  # of kineto, CUPTI or the disk
            _warn(error)
        else:
            logger.info(f"Wrote the trace {self._folder / name}")

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        os.environ.setdefault(*_QUIET)
        try:
            self._profiler = profile(activities=activities)
            self._profiler.start()
        except Exception as error:
            self._profiler, self._steps = None, range(0)
            _warn(error)


def _warn(error: Exception) -> None:
    logger.warning(f"No trace of the profiled steps: {type(error).__name__}: {error}")
