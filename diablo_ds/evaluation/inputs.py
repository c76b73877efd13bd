"""The tasks of an evaluation with their questions, read and checked before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diablo_ds.config.choices import AUTO
from diablo_ds.data.dataset_files import is_tokenised
from diablo_ds.errors import UserError
from diablo_ds.evaluation.items import GENERATION, asks_of
from diablo_ds.evaluation.options import EvaluateOptions
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.task import Task
from diablo_ds.evaluation.task_data import data_digest, find_data, parse_data_paths, read_asked
from diablo_ds.evaluation.tasks import OWN_DATA, find_task


@dataclass(frozen=True)
class TaskInput:
    """A task as it is asked, with its data."""

    task: Task
    """With what the options change of it."""
    path: Path
    sha256: str
    """Over the files of the data, in their order."""
    asks: tuple[str, ...]
    """Some of `GENERATION`, `CHOICE` and `LOSS`."""
    questions: tuple[Question, ...] = ()
    """None where examples are read with a model's tokenizer."""
    limit: int | None = None
    """Most questions that are asked; None for all."""
    note: str = ""
    """Which questions they are taken from, for the user."""

    @property
    def name(self) -> str:
        """The name of the task."""
        return self.task.name

    def takes(self, number: str) -> bool:
        """Return whether a text, counted from 1, is within the limit."""
        return self.limit is None or int(number) <= self.limit


def read_inputs(options: EvaluateOptions) -> list[TaskInput]:
    """Return the tasks of an evaluation with their questions.

    Raises:
        UserError: if a task or its data are wrong, or an option has no effect on any task.
    """
    tasks = [_find(name, options) for name in options.task_names]
    paths = parse_data_paths(options.data, options.task_names, "data")
    _check_effects(options, tasks)
    return [_read(task, paths.get(task.name), options) for task in tasks]


def base_name(task: Task | str) -> str:
    """Return the name of a task without its label."""
    return (task if isinstance(task, str) else task.name).partition(":")[0]


def _find(name: str, options: EvaluateOptions) -> Task:
    task = find_task(name, options.match if base_name(name) == OWN_DATA else "")
    if options.metrics:
        metrics = tuple(metric for metric in task.metrics if metric in options.metrics)
        if not metrics:
            raise UserError(
                f"metric must name one of each task's; got metric={','.join(options.metrics)!r} "
                f"for {name}, which has {', '.join(task.metrics)}"
            )
        task = replace(task, metrics=metrics)
    if GENERATION not in asks_of(task):
        return task
    given = {
        key: value
        for key in ("num_samples", "temperature", "top_p", "max_new_tokens")
        if (value := getattr(options, key)) is not None
    }
    task = replace(task, **given)
    if task.temperature == 0 and (task.num_samples > 1 or task.top_p < 1):
        raise UserError(
            "num_samples above 1 and top_p below 1 need a temperature above 0, as all answers are "
            f"the same otherwise; got num_samples={task.num_samples}, top_p={task.top_p}, "
            f"temperature=0 for {name}; add --temperature, or --num-samples 1 --top-p 1"
        )
    return task


def _check_effects(options: EvaluateOptions, tasks: Sequence[Task]) -> None:
    """Raise UserError where an option concerns no task, or a task is not allowed to run code."""
    known = {metric for task in tasks for metric in task.metrics}
    for metric in options.metrics:
        if metric not in known:
            names = sorted({m for t in tasks for m in find_task(t.name).metrics})
            raise UserError(f"metric must be one of {', '.join(names)}; got metric={metric!r}")
    generate = any(GENERATION in asks_of(task) for task in tasks)
    runs_code = any(task.runs_code for task in tasks)
    samples = any(GENERATION in asks_of(task) and task.temperature > 0 for task in tasks)
    loss = any(task.kind == "loss" for task in tasks)
    needs = {
        "match": (any(base_name(task) == OWN_DATA for task in tasks), f"the task {OWN_DATA}"),
        "num_samples": (generate, "a task whose answers are generated"),
        "temperature": (generate, "a task whose answers are generated"),
        "top_p": (generate, "a task whose answers are generated"),
        "max_new_tokens": (generate, "a task whose answers are generated"),
        "seed": (samples, "tokens that are drawn, at a temperature above 0"),
        "corpus": (loss, "the task loss or forgetting"),
        "column": (loss, "the task loss or forgetting"),
        "max_length": (loss, "the task loss or forgetting"),
        "allow_code_execution": (runs_code, "a task that runs programs, humaneval or mbpp"),
        "weak_sandbox": (runs_code, "a task that runs programs, humaneval or mbpp"),
        "judge": (any(task.judge_model for task in tasks), "the task safety or overrefusal"),
    }
    for name, (has_effect, what) in needs.items():
        value = getattr(options, name)
        if value not in (None, "", False, 0, (), AUTO) and not has_effect:
            raise UserError(f"{name} needs {what}; got {name}={value!r} without one")
    coded = [task.name for task in tasks if task.runs_code]
    if coded and not options.allow_code_execution:
        raise UserError(
            "programs that a model wrote must be allowed to run; got allow_code_execution=False, "
            f"task={','.join(coded)!r}; add --allow-code-execution (they run behind walls, see "
            "docs/evaluation.md)"
        )
    if any("rise" in task.metrics for task in tasks) and (
        options.skip_base or not (options.adapter or options.base)
    ):
        raise UserError(
            "forgetting is the rise of the loss over that of the base, which must be evaluated "
            "too; got none; give --base without --skip-base, or ask for the task loss"
        )


def _read(task: Task, given: Path | None, options: EvaluateOptions) -> TaskInput:
    path = find_data(task, given, "--data")
    limit = options.limits[task.name]
    if task.read is None:
        for name in ("template", "control_tokens"):
            value = getattr(options, name)
            if value != AUTO and is_tokenised(path):
                raise UserError(
                    f"{name} has no effect on prepared data; got {name}={value!r} with {path} for "
                    f"the task {task.name}; leave it out, or evaluate {task.name} apart"
                )
        return TaskInput(task, path, data_digest(task, path), asks_of(task), (), limit or None)
    asked = read_asked(task, path, limit)
    digest = data_digest(task, path)
    return TaskInput(task, path, digest, asks_of(task), asked.questions, limit or None, asked.note)
