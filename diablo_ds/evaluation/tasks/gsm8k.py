"""GSM8K: grade school word problems, judged by the final number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diablo_ds.evaluation.question import Question, Verdict
from diablo_ds.evaluation.rows import read_questions
from diablo_ds.evaluation.task import Task
from diablo_ds.evaluation.tasks._numbers import last_number, number_after
from diablo_ds.evaluation.tasks._word_problems import is_equal, question_of

ANSWER_OPENING = "The final answer is:"
"""Begins the final answer in the training data of the template gsm8k."""


def read(path: Path) -> Iterator[Question]:
    """Yield the questions of GSM8K's own files, or of others that hold word problems."""
    return read_questions(path, question_of)


def judge(question: Question, answer: str) -> Verdict:
    """Compare the number after "The final answer is:", else the last one, and the last alone."""
    last = last_number(answer)
    found = number_after(answer, ANSWER_OPENING) or last
    return Verdict(
        found.text if found else None,
        {
            "accuracy": float(is_equal(found, question)),
            "last_number": float(is_equal(last, question)),
        },
    )


TASK = Task(
    name="gsm8k",
    version=1,
    kind="generate",
    template="gsm8k",
    trained_templates=("chat", "alpaca"),
    metrics=("accuracy", "last_number"),
    read=read,
    judge=judge,
    max_new_tokens=512,
)
