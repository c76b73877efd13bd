"""Where a run stands, from its folder alone: step, loss, rate, time left, ranks."""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path

from diablo_ds.errors import UserError
from diablo_ds.files.layout import RunFolder, kind_of, list_checkpoints
from diablo_ds.ranks.records import last_log_folder, read_records
from diablo_ds.training.metrics_file import format_seconds, read_metrics

RECENT_STEPS = 50


def describe_status(folder: Path) -> str:
    """Return a run's status as lines of text.

    Raises:
        UserError: if the folder is not that of a run.
    """
    files = RunFolder(folder)
    if not files.run_config.is_file():
        if files.logs.is_dir():
            return f"Run {folder}\n  it has not started to train yet"
        raise UserError(f"path must be a run folder; got {folder}, {kind_of(folder).value}")
    points, _ = read_metrics(files.metrics)
    wanted = {"loss", "step_s", "tokens_per_s"}
    steps = [point for point in points if wanted <= point.keys()]
    lines = [f"Run {folder}"]
    if steps:
        last = steps[-1]
        recent = steps[-RECENT_STEPS:]
        num_steps = files.num_steps()
        step_s = statistics.median(point["step_s"] for point in recent)
        rate = statistics.median(point["tokens_per_s"] for point in recent)
        ago = format_seconds(max(0.0, time.time() - files.metrics.stat().st_mtime))
        is_done = files.is_done()
        if is_done or num_steps is None or not math.isfinite(step_s):
            left = "done" if is_done else "unknown"
        else:
            left = format_seconds((num_steps - last["step"]) * step_s)
        of_all = "" if num_steps is None else f"/{num_steps} ({last['step'] / num_steps:.1%})"
        heldout = [p for p in points if "heldout_loss" in p][-1:]
        lines += [
            f"  step        {last['step']}{of_all}, written {ago} ago",
            f"  loss        {last['loss']:.4f}"
            + "".join(f"; held-out {p['heldout_loss']:.4f} at step {p['step']}" for p in heldout),
            f"  rate        {step_s:.2f} s per step, {rate:,.0f} tokens/s",
            f"  time left   {left}",
        ]
    else:
        lines.append("  step        none yet")
    checkpoints = list_checkpoints(files.checkpoints)
    lines.append(f"  checkpoint  {checkpoints[0] if checkpoints else 'none yet'}")
    return "\n".join([*lines, *_rank_lines(files.logs)])


def _rank_lines(logs: Path) -> list[str]:
    """Return the state of the ranks of the last start."""
    last = last_log_folder(logs)
    if last is None:
        return []
    records = read_records(last)
    running = [record for record in records if record.exit_code is None]
    hosts = ", ".join(sorted({record.host for record in records}))
    codes = sorted({record.exit_code for record in records if record.exit_code is not None})
    ended = f"{len(records) - len(running)} ended with exit code {', '.join(map(str, codes))}"
    state = [f"{len(running)} running"] * bool(running) + [ended] * bool(codes)
    return [f"  ranks       {'; '.join(state)}; on {hosts}", f"  logs        {last}"]
