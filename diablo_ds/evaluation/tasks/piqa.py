"""PIQA: which of two solutions works in the physical world."""

from __future__ import annotations

from diablo_ds.evaluation.tasks._commonsense import commonsense_task

TASK = commonsense_task("piqa", ("solution1", "solution2"))
