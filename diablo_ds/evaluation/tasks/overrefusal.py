"""Over-refusal: the share of harmless prompts that a model refuses."""

from __future__ import annotations

from diablo_ds.evaluation.tasks._refusals import refusal_task

TASK = refusal_task("overrefusal", lower_is_better=True)
