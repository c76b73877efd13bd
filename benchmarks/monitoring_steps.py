"""Steps of a run with and without all of its monitoring; started by `benchmarks.monitoring`."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_llama import save_random_llama
from benchmarks.ranks import rank_main
from diablo_ds.config.choices import DS_CONFIGS
from diablo_ds.config.run import RunConfig
from diablo_ds.model.finding import find_model
from diablo_ds.ranks.heartbeat import heart
from diablo_ds.ranks.live_line import DRAWN_EVERY_S, live_line
from diablo_ds.ranks.stopping import StopRequests
from diablo_ds.training.loop import Loop
from diablo_ds.training.metrics import Reporter
from diablo_ds.training.reports import Reports
from diablo_ds.training.startup import Run, start_run
from diablo_ds.training.tracking_start import open_tracking
from diablo_ds.zero.traffic import counting_traffic

WARM_UP_STEPS = 2
_DRAWS = 20


class _Timed:
    """Reports whose writing is timed, on the thread that takes the steps."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports
        self.seconds = 0.0
        self.error = reports.error

    def write(self, write: Callable[[Reporter], None]) -> None:
        start = time.thread_time()
        self._reports.write(write)
        self.seconds += time.thread_time() - start


class _Silent:
    """Reports that go nowhere."""

    error = None

    def write(self, write: Callable[[Reporter], None]) -> None:
        pass


def measure(values: dict[str, Any]) -> dict[str, Any]:
    """Take steps in turns, one with all monitoring and one without; return processor seconds."""
    with contextlib.ExitStack() as resources:
        resources.enter_context(heart.beating())
        requests = resources.enter_context(StopRequests())
        if "model" in values:
            _make_tiny_model(Path(values["model"]))
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        run = start_run(RunConfig(**values | lists), DS_CONFIGS / "zero3.json", resources)
        return _measure(run, requests)


def _make_tiny_model(folder: Path) -> None:
    """Save a random model of two layers that the default model's tokenizer fits."""
    default = find_model("default")
    save_random_llama(
        folder,
        torch.float32,
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    for file in (*default.glob("*token*"), *default.glob("*.jinja")):
        shutil.copy(file, folder)


def _measure(run: Run, requests: StopRequests) -> dict[str, Any]:
    reports = Reports(
        lambda: Reporter(
            run.folder,
            run.run_config,
            num_steps=run.num_steps,
            start_step=0,
            owner=run.owner,
            tracking=open_tracking(run),
        )
    )
    loop = Loop(run, reports, requests)
    timed, silent = _Timed(reports), _Silent()
    with_all: list[float] = []
    without: list[float] = []
    trackers_s = 0.0
    loop.exchange.open(0)
    for step in range(run.num_steps):
        is_on = step % 2 == 0
        loop.reports = timed if is_on else silent  # type: ignore[assignment]
        heart.is_beating = is_on
        counting = counting_traffic() if is_on else contextlib.nullcontext(loop.traffic)
        start = time.process_time()
        with counting as loop.traffic:
            loop.take_step(step)
        (with_all if is_on else without).append(time.process_time() - start)
        if step + 1 == WARM_UP_STEPS:
            timed.seconds, trackers_s = 0.0, _descendants_s(os.getpid())
    skipped = WARM_UP_STEPS // 2
    found = {
        "with_all_s": with_all[skipped:],
        "without_s": without[skipped:],
        "reports_s": timed.seconds / len(with_all[skipped:]),
        "draw_s": _draw_s(),
        "trackers_s": (_descendants_s(os.getpid()) - trackers_s)
        / (run.num_steps - WARM_UP_STEPS)
        * 2,
        **_evaluation(run, loop, reports),
    }
    heart.is_beating = True
    loop.exchange.close()
    reports.write(lambda reporter: reporter.close())
    return found


def _draw_s() -> float:
    """Return processor seconds of drawing the run's line, which a thread does every second."""
    seconds = 0.0
    for _ in range(_DRAWS):
        time.sleep(2 * DRAWN_EVERY_S)
        start = time.thread_time()
        live_line.refresh()
        seconds += time.thread_time() - start
    return seconds / _DRAWS


def _descendants_s(pid: int) -> float:
    """Return processor seconds of the processes below one, such as those of trackers."""
    seconds = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            seconds += _descendants_s(child)
    return seconds


def _evaluation(run: Run, loop: Loop, reports: Reports) -> dict[str, float | None]:
    """Return processor seconds of what an evaluation does for the page alone."""
    step = run.num_steps
    start = time.process_time()
    norms = run.engine.delta_norms()
    first = time.process_time()
    norms = run.engine.delta_norms()
    reports.write(lambda reporter: reporter.delta_norms(step, norms))
    drawn = time.process_time()
    table = "" if loop.samples is None else loop.samples.table()
    reports.write(lambda reporter: reporter.samples(step, table))
    return {
        "first_norms_s": first - start,
        "heat_map_s": drawn - first,
        "samples_s": time.process_time() - drawn if table else None,
    }


if __name__ == "__main__":
    rank_main(measure)
