"""The tasks by name; each is a module, imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import replace

from diablo_ds.errors import UserError
from diablo_ds.evaluation.task import Task

TASKS = ("gsm8k",)
"""Names of the tasks, which are those of their modules."""


def find_task(name: str) -> Task:
    """Return a task.

    Args:
        name: one of `TASKS`, or TASK:LABEL for the same task on other data under a name of its own.

    Raises:
        UserError: if there is no such task.
    """
    module, colon, label = name.partition(":")
    if module not in TASKS or (colon and not label):
        near = difflib.get_close_matches(module, TASKS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(TASKS)}"
        raise UserError(f"task must be a known one; got task={name!r}; {hint}")
    task: Task = importlib.import_module(f"{__name__}.{module}").TASK
    return replace(task, name=name)
