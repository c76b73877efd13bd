"""Run folders for tests, as a run writes them, without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import save_run_config
from diablo_ds.files.layout import ADAPTER_CONFIG_FILE, RunFolder


def write_run(folder: Path, *, losses: tuple[float, ...] = (1.5, 1.0), **settings: Any) -> Path:
    """Write a run that is done: its held-out losses, one before and one after each step."""
    files = RunFolder(folder)
    files.adapter.mkdir(parents=True)
    (files.adapter / ADAPTER_CONFIG_FILE).write_text("{}")
    save_run_config(RunConfig(output=str(folder), **settings), files.run_config)
    points: list[dict[str, float]] = [{"step": 0, "heldout_loss": losses[0]}]
    for step, loss in enumerate(losses[1:], 1):
        training = {"loss": loss + 0.1, "step_s": 2.0, "tokens_per_s": 100.0 * step}
        points.append({"step": step, **training, "memory_bytes": 1e9 * step})
        points.append({"step": step, "heldout_loss": loss})
    files.metrics.write_text("".join(json.dumps(point) + "\n" for point in points))
    files.write_progress(len(losses) - 1, 0, done=True)
    return folder
