"""Where a run stands, from its folder alone: step, loss, rate, time left, ranks."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from diablo_ds.errors import UserError
from diablo_ds.files.layout import Kind, RunFolder, kind_of, list_checkpoints
from diablo_ds.launcher.sweep_report import describe_sweep
from diablo_ds.ranks.records import last_log_folder, read_records
from diablo_ds.training.metrics_file import format_seconds, lowest_heldout, read_metrics

RECENT_STEPS = 50


def describe_status(folder: Path) -> str:
    """Return the status of a run, of the runs of a sweep, or of an evaluation, as lines of text.

    Raises:
        UserError: if the folder is none of these.
    """
    if kind_of(folder) is Kind.SWEEP:
        return describe_sweep(folder)
    if kind_of(folder) is Kind.EVALUATION:
        from diablo_ds.evaluation.description import describe_evaluation_status  # it needs torch

        return describe_evaluation_status(folder)
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
            if early_stop := files.early_stop():
                left += f", stopped early {early_stop}"
        else:
            left = format_seconds((num_steps - last["step"]) * step_s)
        of_all = "" if num_steps is None else f"/{num_steps} ({last['step'] / num_steps:.1%})"
        heldout = [p for p in points if "heldout_loss" in p]
        lines += [
            f"  step        {last['step']}{of_all}, written {ago} ago",
            f"  loss        {last['loss']:.4f}" + _heldout_text(heldout),
            f"  rate        {step_s:.2f} s per step, {rate:,.0f} tokens/s",
            f"  time left   {left}",
        ]
    else:
        lines.append("  step        none yet")
    checkpoints = list_checkpoints(files.checkpoints)
    lines.append(f"  checkpoint  {checkpoints[0] if checkpoints else 'none yet'}")
    return "\n".join([*lines, *_rank_lines(files.logs)])


def _heldout_text(points: Sequence[Mapping[str, float]]) -> str:
    """Return the last held-out loss and, where it is another one, the lowest."""
    if not points:
        return ""
    last = points[-1]
    text = f"; held-out {last['heldout_loss']:.4f} at step {last['step']}"
    best = lowest_heldout(points)
    if best is not None and best[0] != last["step"]:
        text += f", lowest {best[1]:.4f} at step {best[0]}"
    return text


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
