"""AQuA: algebra word problems with five choices, judged by the letter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from diablo_ds.data.corpora.fields import Fields, RowError, text
from diablo_ds.evaluation.question import Question, Verdict
from diablo_ds.evaluation.rows import Row, instruction_of, read_questions
from diablo_ds.evaluation.task import Task

_LETTERS = "ABCDE"
_OPENING = re.compile(r"answer\s+is|answer\s*:", re.IGNORECASE)
_LETTER = re.compile(r"(?<![A-Za-z0-9])([A-E])(?![A-Za-z0-9'])(?!\s+[a-z])")
"""A letter on its own, and not the article that begins a sentence."""


def _read(path: Path) -> Iterator[Question]:
    """Yield the questions of LLM-Adapters' form, or of AQuA's own with options and correct."""
    return read_questions(path, _question_of)


def _question_of(row: Row) -> Question:
    instruction, context = instruction_of(row.fields)
    if "options" in row.fields:
        instruction = f"{instruction} Answer Choices: {_listed(row.fields)}"
    field = "correct" if "correct" in row.fields else "answer"
    letter = text(row.fields, field).strip()
    if letter not in _LETTERS or len(letter) != 1:
        raise RowError(f"field {field!r} must be one of {', '.join(_LETTERS)}: {letter!r:.60}")
    return Question(row.number, instruction, context, reference=letter)


def _listed(row: Fields) -> str:
    """Return AQuA's options, such as "A)21", as LLM-Adapters lists them."""
    options = row["options"]
    if not isinstance(options, list) or not all(
        isinstance(option, str) and option[1:2] == ")" for option in options
    ):
        raise RowError(f"field 'options' must list texts such as 'A)21': {options!r:.60}")
    return " ".join(f"({option[0]}) {option[2:].strip()}" for option in options)


def _judge(question: Question, answer: str) -> Verdict:
    """Take the first letter after the last "answer is", else the last letter on its own."""
    openings = list(_OPENING.finditer(answer))
    after = _LETTER.search(answer, openings[-1].end()) if openings else None
    extracted = after[1] if after else _last_letter(answer)
    return Verdict(extracted, {"accuracy": float(extracted == question.reference)})


def _last_letter(answer: str) -> str | None:
    """Return the last letter on its own, unless it ends a list of the choices."""
    letters = "".join(_LETTER.findall(answer))
    is_list = len(letters) > 2 and letters[-3:] in _LETTERS
    return letters[-1] if letters and not is_list else None


TASK = Task(
    name="aqua",
    version=1,
    kind="generate",
    template="alpaca",
    trained_templates=("chat", "gsm8k"),
    metrics=("accuracy",),
    read=_read,
    judge=_judge,
    max_new_tokens=256,
)
