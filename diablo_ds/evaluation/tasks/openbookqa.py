"""OpenBookQA: elementary science that needs common knowledge."""

from __future__ import annotations

from diablo_ds.evaluation.tasks._commonsense import commonsense_task

TASK = commonsense_task("openbookqa", tuple(f"answer{n}" for n in range(1, 6)))
