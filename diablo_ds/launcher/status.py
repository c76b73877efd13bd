"""Where a run stands, from its folder alone: step, loss, rate, time left, ranks, events."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from diablo_ds.config.run_files import load_recorded
from diablo_ds.errors import UserError
from diablo_ds.files.layout import Kind, RunFolder, kind_of, list_checkpoints
from diablo_ds.launcher.rank_status import describe_ranks
from diablo_ds.launcher.sweep_report import describe_sweep
from diablo_ds.ranks.progress import format_seconds
from diablo_ds.training.metrics_file import RecentPoints, read_metrics
from diablo_ds.training.run_events import Event, read_events
from diablo_ds.training.run_numbers import RunNumbers
from diablo_ds.training.standing import DONE, RUNNING, find_standing
from diablo_ds.training.time_left import Schedule, time_left_s

RECENT_STEPS = 50
SHOWN_EVENTS = 5


def describe_status(folder: Path) -> str:
    """Return the status of a run, of the runs of a sweep, or of an evaluation, as lines of text.

    Raises:
        UserError: if the folder is none of these.
    """
    return look(folder, RecentPoints(RunFolder(folder).metrics))[0]


def look(folder: Path, recent: RecentPoints) -> tuple[str, bool]:
    """Return what `describe_status` does, and whether that may change, as far as can be told.

    Args:
        folder: of the run, sweep or evaluation.
        recent: of the run's metrics file; the same at each look.

    Raises:
        UserError: if the folder is none of these.
    """
    if kind_of(folder) is Kind.SWEEP:
        return describe_sweep(folder), True
    if kind_of(folder) is Kind.EVALUATION:
        from diablo_ds.evaluation.description import describe_evaluation_status  # it needs torch

        return describe_evaluation_status(folder), True
    files = RunFolder(folder)
    standing = find_standing(files)
    lines = [f"Run {folder}", f"  state       {standing.text()}"]
    if not files.run_config.is_file():
        if not files.logs.is_dir():
            raise UserError(f"path must be a run folder; got {folder}, {kind_of(folder).value}")
        lines.append("  step        it has not started to train yet")
    else:
        lines += _progress_lines(files, recent, is_done=standing.state == DONE)
    if standing.logs is not None:
        ranks = describe_ranks(standing.records, is_running=standing.state == RUNNING)
        lines += [*ranks, f"  logs        {standing.logs}"]
    lines += _event_lines(read_events(files))
    return "\n".join(lines), standing.state == RUNNING


def _progress_lines(files: RunFolder, recent: RecentPoints, *, is_done: bool) -> list[str]:
    points = read_metrics(files.metrics)[0] if is_done else recent.read()
    steps = [point for point in points if "loss" in point]
    lines = ["  step        none yet"]
    if steps:
        last = steps[-1]
        num_steps = files.num_steps()
        ago = format_seconds(max(0.0, time.time() - files.metrics.stat().st_mtime))
        of_all = "" if num_steps is None else f"/{num_steps} ({last['step'] / num_steps:.1%})"
        heldout = [p for p in points if "heldout_loss" in p]
        left = "done" if is_done else _time_left(files, points, num_steps)
        lines = [
            f"  step        {last['step']}{of_all}, written {ago} ago",
            f"  loss        {last['loss']:.4f}" + _heldout_text(heldout),
            f"  rate        {_rate_text(steps, is_done=is_done)}",
            f"  time left   {left}",
        ]
    checkpoints = list_checkpoints(files.checkpoints)
    return [*lines, f"  checkpoint  {checkpoints[0] if checkpoints else 'none yet'}"]


def _rate_text(steps: Sequence[Mapping[str, float]], *, is_done: bool) -> str:
    """Return the rate of all steps of a run that is done, as `runs` has it, else of recent ones."""
    shown = steps if is_done else steps[-RECENT_STEPS:]
    numbers = RunNumbers.of(shown)
    if numbers.step_s is None or numbers.tokens_per_s is None:
        return "unknown"
    window = "" if len(shown) == len(steps) else f" in the last {RECENT_STEPS} steps"
    text = f"{numbers.step_s:.2f} s per step, {numbers.tokens_per_s:,.0f} tokens/s{window}"
    share = numbers.wait_s / max(1e-9, numbers.stepping_s)
    return text + f"; {share:.0%} of it the slowest rank waits for data" * (share >= 0.01)


def _time_left(
    files: RunFolder, points: Sequence[Mapping[str, float]], num_steps: int | None
) -> str:
    """Return what steps, evaluations and checkpoints to come take."""
    if num_steps is None:
        return "unknown"
    try:
        schedule = Schedule.of(load_recorded(files.run_config), num_steps)
    except UserError:
        return "unknown, as its settings cannot be read"
    seconds = time_left_s(points, schedule)
    return "unknown" if seconds is None else format_seconds(seconds)


def _heldout_text(points: Sequence[Mapping[str, float]]) -> str:
    """Return the last held-out loss and, where it is another one, the lowest."""
    if not points:
        return ""
    last = points[-1]
    text = f"; held-out {last['heldout_loss']:.4f} at step {last['step']}"
    numbers = RunNumbers.of(points)
    if numbers.best_heldout is not None and numbers.best_step != last["step"]:
        text += f", lowest {numbers.best_heldout:.4f} at step {numbers.best_step}"
    return text


def _event_lines(events: Sequence[Event]) -> list[str]:
    lines: list[str] = []
    for event in events[-SHOWN_EVENTS:]:
        label = "" if lines else "events"
        lines.append("  ".join(["", f"{label:<10}", *filter(None, (event.when, event.text))]))
    return lines
