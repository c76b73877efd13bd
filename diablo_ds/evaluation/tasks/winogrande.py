"""WinoGrande: which of two options fills a blank."""

from __future__ import annotations

from diablo_ds.evaluation.tasks._commonsense import commonsense_task

TASK = commonsense_task("winogrande", ("option1", "option2"))
