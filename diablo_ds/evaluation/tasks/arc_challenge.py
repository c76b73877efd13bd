"""ARC-Challenge: school science, the harder questions."""

from __future__ import annotations

from diablo_ds.evaluation.tasks._commonsense import commonsense_task

TASK = commonsense_task("arc_challenge", tuple(f"answer{n}" for n in range(1, 6)))
