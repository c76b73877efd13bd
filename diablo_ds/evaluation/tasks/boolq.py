"""BoolQ: yes-or-no questions."""

from __future__ import annotations

from diablo_ds.evaluation.tasks._commonsense import commonsense_task

TASK = commonsense_task("boolq", ("true", "false"))
