"""The questions that benchmarks of evaluation ask, with the text of their prompts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from diablo_ds.config.choices import Template
from diablo_ds.data.text.templates import PROMPTS
from diablo_ds.errors import UserError
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.task import Task
from diablo_ds.evaluation.task_data import find_data, read_first
from diablo_ds.evaluation.tasks import find_task

CORPORA = Path(
    os.environ.get("DIABLO_CORPORA", Path(__file__).resolve().parents[2] / "shared" / "corpora")
)
"""The folder of public corpora, as for the tests."""
_FOLDERS = {"arc_easy": "ARC-Easy"}


@dataclass(frozen=True)
class Asked:
    """The first questions of a task's file."""

    task: Task
    path: Path
    questions: tuple[Question, ...]

    def texts(self) -> list[str]:
        """Return the prompts, by the template."""
        render = PROMPTS[self.task.template]
        return [render(question.instruction, question.context) for question in self.questions]

    def only(self, places: Sequence[int]) -> Asked:
        """Return some of the questions."""
        return replace(self, questions=tuple(self.questions[place] for place in places))


def read_asked(
    name: str, path: Path | None, limit: int, max_new_tokens: int = 0, template: str = ""
) -> Asked:
    """Read the first questions of a task.

    Args:
        name: of the task.
        path: of its data; None for the public corpora's test file.
        limit: how many; 0 for all.
        max_new_tokens: most tokens of an answer; 0 for the task's own.
        template: of the prompts; empty for the task's own.

    Raises:
        UserError: if there are no data, or too few.
    """
    task = find_task(name)
    if max_new_tokens:
        task = replace(task, max_new_tokens=max_new_tokens)
    if template:
        task = replace(task, template=cast(Template, template))
    path = find_data(task, path or _public_file(name), "--data")
    questions = read_first(task, path, limit)
    if len(questions) < limit:
        raise UserError(f"{path} must have {limit} questions; got {len(questions)}")
    return Asked(task, path, questions)


def _public_file(name: str) -> Path | None:
    folders = [CORPORA / name, CORPORA / "llm-adapters" / "dataset" / _FOLDERS.get(name, name)]
    names = ("test.jsonl", "test.json", "test.json.gz")
    files = (folder / file for folder in folders for file in names)
    return next((file for file in files if file.is_file()), None)
