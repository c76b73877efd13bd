"""MBPP: short programs written from a sentence and tests, judged by running the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diablo_ds.data.corpora.families import mbpp_instruction
from diablo_ds.data.corpora.fields import Fields, RowError, optional_text
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.rows import Row, read_questions
from diablo_ds.evaluation.sandbox.program import Program
from diablo_ds.evaluation.task import Split, Task
from diablo_ds.evaluation.tasks._programs import SAMPLED_METRICS, find_code

TEST_IDS = range(11, 511)
"""Ids of the 500 problems of the test split; others are for training, validation and prompts."""


def _read(path: Path) -> Iterator[Question]:
    return read_questions(path, _question_of)


def _is_test(question: Question) -> bool:
    return question.id.isdecimal() and int(question.id) in TEST_IDS


def _question_of(row: Row) -> Question:
    fields: dict[str, Any] = {**row.fields}
    if "text" not in fields and "prompt" in fields:  # of the sanitized problems
        fields["text"] = fields["prompt"]
    task_id = fields.get("task_id", f"row-{row.number}")  # which are of no split
    if isinstance(task_id, bool) or not isinstance(task_id, int | str):
        raise RowError(f"field 'task_id' must be a number: {task_id!r:.60}")
    instruction = mbpp_instruction(fields)
    setup = [*_texts(fields, "test_imports"), optional_text(fields, "test_setup_code")]
    tests = [*filter(None, setup), *_texts(fields, "test_list")]
    return Question(str(task_id), instruction, reference={"tests": tests})


def _texts(row: Fields, field: str) -> list[str]:
    value = row.get(field) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RowError(f"field {field!r} must be a list of texts: {value!r:.60}")
    return value


def _program(question: Question, answer: str) -> Program:
    return Program(find_code(answer), "\n".join(question.reference["tests"]))


TASK = Task(
    name="mbpp",
    version=2,
    kind="generate",
    template="alpaca",
    metrics=SAMPLED_METRICS,
    split=Split(_is_test, "the test split, ids 11 to 510; the task mbpp_all asks all"),
    read=_read,
    program=_program,
    max_new_tokens=512,
    num_samples=20,
    temperature=0.2,
    top_p=0.95,
)
