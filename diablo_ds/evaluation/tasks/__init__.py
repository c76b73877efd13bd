"""The tasks by name; each is a module, imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import replace

from diablo_ds.errors import UserError
from diablo_ds.evaluation.task import Task

COMMONSENSE = (
    "boolq",
    "piqa",
    "social_i_qa",
    "hellaswag",
    "winogrande",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
)
ARITHMETIC = ("gsm8k", "math", "aqua", "svamp", "addsub", "multiarith", "singleeq", "mawps")
CODE = ("humaneval", "mbpp", "mbpp_all")
SAFETY = ("safety", "overrefusal")
TASKS = (*COMMONSENSE, *ARITHMETIC, *CODE, *SAFETY, "loss", "forgetting", "jsonl")
"""Names of the tasks, which are those of their modules."""
OWN_DATA = "jsonl"
"""The task whose rows have a rule by which answers match."""
MATCHES = ("exact", "contains", "regex")
"""The rules, the first where none is chosen."""


def find_task(name: str, match: str = "") -> Task:
    """Return a task.

    Args:
        name: one of `TASKS`, or TASK:LABEL for the same task on other data under a name of its own.
        match: one of `MATCHES`, for `OWN_DATA` alone: the rule for rows that name none.

    Raises:
        UserError: if there is no such task or rule, or the task has no rules.
    """
    module, colon, label = name.partition(":")
    if module not in TASKS or (colon and not label):
        plain = module.lower().replace("-", "_")
        near = difflib.get_close_matches(plain, TASKS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(TASKS)}"
        raise UserError(f"task must be a known one; got task={name!r}; {hint}")
    if match and (module != OWN_DATA or match not in MATCHES):
        raise UserError(
            f"match must be one of {', '.join(MATCHES)}, and for the task {OWN_DATA}; got "
            f"match={match!r}, task={name!r}"
        )
    found = importlib.import_module(f"{__name__}.{module}")
    task: Task = found.task_with_match(match) if match else found.TASK
    return replace(task, name=name)
