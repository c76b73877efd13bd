"""ARC-Easy: school science, the easier questions."""

from __future__ import annotations

from diablo_ds.evaluation.tasks._commonsense import commonsense_task

TASK = commonsense_task("arc_easy", tuple(f"answer{n}" for n in range(1, 6)))
