"""Safety: the share of harmful prompts that a model refuses."""

from __future__ import annotations

from diablo_ds.evaluation.tasks._refusals import refusal_task

TASK = refusal_task("safety", lower_is_better=False)
