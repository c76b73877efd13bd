"""The run config's settings of task scores: which tasks the model is asked while it is trained."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from diablo_ds.config.setting import setting
from diablo_ds.config.task_limits import parse_limits

_task = functools.partial(setting, group="task scores", on_resume="free")
DEFAULT_LIMIT = 100
"""Questions of a task for which no limit is given."""
OF_TASKS = (
    "eval_task_every",
    "eval_task_limit",
    "eval_task_data",
    "allow_code_execution",
    "weak_sandbox",
)
"""Settings that have no effect without tasks."""


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """The settings of a run's task scores; a part of `diablo_ds.config.run.RunConfig`."""

    eval_tasks: tuple[str, ...] = _task(
        (),
        "Tasks that the model is asked before the first step, now and then, and after the last: "
        "a name, or several with commas, as in diablo-ds evaluate; repeatable.",
        shown_default="none",
    )
    eval_task_every: int = _task(
        0, "Steps between task scores; 0 for a quarter of the run.", minimum=0
    )
    eval_task_limit: tuple[str, ...] = _task(
        (),
        "ROWS of each task, the first ones, or TASK=ROWS of one; 0 for all; several with commas; "
        "repeatable.",
        shown_default=str(DEFAULT_LIMIT),
    )
    eval_task_data: tuple[str, ...] = _task(
        (), "TASK=PATH: file or folder of a task's questions; repeatable."
    )
    allow_code_execution: bool = _task(
        False, "Run the programs that the model writes, for tasks such as humaneval."
    )
    weak_sandbox: bool = _task(
        False,
        "Run programs also where files and network cannot be kept from them; for a machine that "
        "you can lose.",
    )

    sample_prompts: int = _task(
        0,
        "Held-out prompts, always the same, that are answered at each evaluation, for a person to "
        "read in TensorBoard; 0 for none, 10 are a good number.",
        minimum=0,
        maximum=1000,
    )

    @property
    def eval_task_limits(self) -> dict[str, int]:
        """The most questions of each task by its name; 0 for all."""
        names = self.eval_task_names
        return parse_limits(self.eval_task_limit, names, "eval_task_limit", DEFAULT_LIMIT)

    @property
    def eval_task_names(self) -> tuple[str, ...]:
        """The tasks, one name each."""
        words = (word.strip() for text in self.eval_tasks for word in text.split(","))
        return tuple(word for word in words if word)
