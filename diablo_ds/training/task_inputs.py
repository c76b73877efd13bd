"""The tasks that a run's model is asked while it is trained: found, checked and read beforehand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diablo_ds.config.choices import AUTO
from diablo_ds.config.run import RunConfig
from diablo_ds.data.dataset_files import is_tokenised
from diablo_ds.data.text.tokenization import Tokenizer, load_tokenizer
from diablo_ds.errors import UserError
from diablo_ds.evaluation import items as asked
from diablo_ds.evaluation.items import CHOICE, GENERATION, Item
from diablo_ds.evaluation.loss_data import load_loss_examples
from diablo_ds.evaluation.prompts import choose_task_form, encode_choices, encode_questions
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.task import Task
from diablo_ds.evaluation.task_data import (
    Asked,
    data_digest,
    find_data,
    parse_data_paths,
    read_asked,
)
from diablo_ds.evaluation.tasks import find_task
from diablo_ds.generation.prompts import PromptForm
from diablo_ds.model.base import Base

TRAINED = "trained"
"""Name of the model in the keys of items: there is one."""
LONGEST_EXAMPLE = 2048
"""Tokens of the longest example of a loss, where the model takes as many."""
_DATA_OPTION = "--eval-task-data"


@dataclass(frozen=True)
class TaskInput:
    """A task with what the model is asked for it, the same at each step."""

    task: Task
    digest: str
    """SHA-256 of its data."""
    questions: tuple[Question, ...]
    """Empty where the loss of texts is asked."""
    items: tuple[Item, ...]
    form: PromptForm
    """Of the prompts."""
    note: str = ""
    """Which questions they are taken from, for the user."""

    def describe(self) -> str:
        """Return a line for the user."""
        count = len(self.questions) or len(self.items)
        what = "examples" if self.task.kind == "loss" else "questions"
        how = f"template {self.form.text} ({self.form.origin})"
        text = f"Task {self.task.name}: {count:,} {what}, {how}"
        text += f"; {self.note}" if self.note else ""
        num_cut = sum(item.is_truncated for item in self.items)
        return f"{text}, {num_cut:,} of them cut to the model's positions" if num_cut else text


@dataclass(frozen=True)
class TaskInputs:
    """All tasks of a run, and the tokenizer of its model."""

    tasks: tuple[TaskInput, ...]
    tokenizer: Tokenizer

    def describe(self) -> str:
        """Return a line for each task."""
        return "\n".join(given.describe() for given in self.tasks)

    @property
    def runs_code(self) -> bool:
        """Whether programs are run that the model wrote."""
        return any(given.task.runs_code for given in self.tasks)


def find_tasks(run_config: RunConfig) -> dict[Task, Path]:
    """Return the tasks of a run, each with the path of its data; reads no data.

    Raises:
        UserError: if there is no such task, its data are missing, or a setting has no effect.
    """
    names = run_config.eval_task_names
    tasks = [_find_task(name) for name in names]
    paths = parse_data_paths(run_config.eval_task_data, names, "eval_task_data")
    coded = [task.name for task in tasks if task.runs_code]
    if coded and not run_config.allow_code_execution:
        raise UserError(
            f"{' and '.join(coded)} run programs that the model wrote, which must be allowed; got "
            "allow_code_execution=False; add --allow-code-execution (they run behind walls, see "
            "docs/evaluation.md)"
        )
    for name in ("allow_code_execution", "weak_sandbox"):
        if getattr(run_config, name) and not coded:
            raise UserError(
                f"{name} needs a task that runs programs, humaneval or mbpp; got {name}=True with "
                f"eval_tasks={','.join(names)}"
            )
    return {task: find_data(task, paths.get(task.name), _DATA_OPTION) for task in tasks}


def read_tasks(run_config: RunConfig, base: Base, end_ids: Sequence[int]) -> TaskInputs | None:
    """Read the tasks of a run, and encode what the model is asked.

    Args:
        run_config: the run config, without open values.
        base: the base model.
        end_ids: tokens that end the model's answers.

    Returns:
        None for a run without tasks.

    Raises:
        UserError: if data are malformed, or do not fit the model.
    """
    found = find_tasks(run_config)
    if not found:
        return None
    tokenizer = load_tokenizer(base.folder)
    text_config = base.model_config.get_text_config()
    positions = getattr(text_config, "max_position_embeddings", None) or math.inf
    limits = run_config.eval_task_limits
    tasks = []
    for task, path in found.items():
        form = choose_task_form(task, AUTO, run_config, tokenizer)
        questions, note = Asked(())
        items: list[Item] = []
        if task.read is None:
            length = int(min(LONGEST_EXAMPLE, positions))
            vocab_size = base.vocab_size
            examples = load_loss_examples(
                path,
                tokenizer,
                vocab_size,
                max_length=length,
                control_tokens=AUTO if is_tokenised(path) else run_config.control_tokens,
            )
            items = asked.loss_items(TRAINED, task, examples, limits[task.name])
        else:
            questions, note = read_asked(task, path, limits[task.name])
            prompts = encode_questions(questions, form.template, tokenizer, form.control_tokens)
        if GENERATION in asked.asks_of(task):
            ends = frozenset(end_ids)
            items += asked.generation_items(
                TRAINED,
                task,
                questions,
                prompts,
                form.template,
                tokenizer,
                end_ids=ends,
                max_positions=positions,
            )
        if CHOICE in asked.asks_of(task):
            choices = encode_choices(questions, form.template, tokenizer, form.control_tokens)
            items += asked.choice_items(
                TRAINED, task, questions, prompts, choices, tokenizer, max_positions=positions
            )
        digest = data_digest(task, path)
        tasks.append(TaskInput(task, digest, questions, tuple(items), form, note))
    return TaskInputs(tuple(tasks), tokenizer)


def _find_task(name: str) -> Task:
    try:
        task = find_task(name)
    except UserError as error:
        raise UserError(f"eval_tasks: {error}") from None
    if "rise" in task.metrics:
        label = name.partition(":")[2]
        repair = f"loss:{label or 'other'}"
        raise UserError(
            "eval_tasks must not compare with the base, which is not asked during training; got "
            f"{name!r}; take the loss itself, --eval-tasks {repair}, or ask diablo-ds evaluate "
            "for the rise afterwards"
        )
    # Answers to look at how a run goes: pass@1 from one sample has the same mean as from several.
    return dataclasses.replace(task, num_samples=1)
