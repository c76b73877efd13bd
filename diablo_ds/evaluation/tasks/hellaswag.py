"""HellaSwag: which of four endings completes a text."""

from __future__ import annotations

from diablo_ds.evaluation.tasks._commonsense import commonsense_task

TASK = commonsense_task("hellaswag", tuple(f"ending{n}" for n in range(1, 5)))
