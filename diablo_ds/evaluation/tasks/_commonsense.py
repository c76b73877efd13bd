"""The commonsense tasks in the form of LLM-Adapters, which DiaBlo (arXiv 2506.03230) trains on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from diablo_ds.data.corpora.families import ANSWER_OPENING, find_kind
from diablo_ds.data.corpora.fields import Exchange, RowError
from diablo_ds.evaluation.question import Question, Verdict
from diablo_ds.evaluation.rows import Row, read_questions
from diablo_ds.evaluation.task import Task

_FORMAT = re.compile(r"Answer format: (\S+)\s*\Z")


def commonsense_task(name: str, labels: tuple[str, ...]) -> Task:
    """Return a task with these labels of answers, such as "answer1"; a row may have fewer."""
    return Task(
        name=name,
        version=1,
        kind="both",
        template="alpaca",
        metrics=("generation", "choice", "choice_norm"),
        read=partial(_read, labels),
        judge=partial(_judge, labels),
        max_new_tokens=32,
    )


def _read(labels: tuple[str, ...], path: Path) -> Iterator[Question]:
    return read_questions(path, partial(_question_of, labels))


def _question_of(labels: tuple[str, ...], row: Row) -> Question:
    meaning = find_kind("commonsense", row.fields).read(row.fields)
    assert isinstance(meaning, Exchange)  # the family has no conversations
    listed = _FORMAT.search(meaning.instruction)
    own_labels = listed[1].split("/") if listed else []
    if len(own_labels) < 2 or not set(own_labels) <= set(labels):
        raise RowError(
            "field 'instruction' must end with 'Answer format: ' and labels of "
            f"{'/'.join(labels)}: {meaning.instruction[-60:]!r}"
        )
    response = meaning.response.strip()
    answer = response.removeprefix(ANSWER_OPENING)
    if answer not in own_labels or answer == response:
        raise RowError(
            f"field 'output' must be '{ANSWER_OPENING}' and one of {', '.join(own_labels)}: "
            f"{response!r:.60}"
        )
    return Question(
        row.number,
        meaning.instruction,
        meaning.context,
        reference=answer,
        choices=tuple(f"{ANSWER_OPENING}{label}" for label in own_labels),
        correct=own_labels.index(answer),
    )


def _judge(labels: tuple[str, ...], question: Question, answer: str) -> Verdict:
    """Take the first label after the last "the correct answer is", or of all if it is missing."""
    tail = answer.rpartition(ANSWER_OPENING.rstrip())[2]
    found = re.search("|".join(labels), tail)
    extracted = found[0] if found else None
    return Verdict(extracted, {"generation": float(extracted == question.reference)})
