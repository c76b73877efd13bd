"""Word problems whose answer is a number, in the forms in which they are published."""

from __future__ import annotations

from fractions import Fraction

from diablo_ds.data.corpora.fields import Fields, RowError
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.rows import Row, instruction_of
from diablo_ds.evaluation.tasks._numbers import Number, last_number, numbers

TOLERANCE = Fraction(1, 1000)
"""Largest difference of two equal answers: some references are rounded, such as 1.83."""


def question_of(row: Row) -> Question:
    """Make a question of a row; the reference is its answer's number, as text.

    Raises:
        RowError: if it is no word problem, or its answer no number.
    """
    instruction, context = instruction_of(row.fields)
    return Question(row.number, instruction, context, reference=_answer(row.fields))


def is_equal(number: Number | None, question: Question) -> bool:
    """Return whether a number is the reference of a question."""
    (reference,) = numbers(question.reference)
    return number is not None and abs(number.value - reference.value) <= TOLERANCE


def _answer(row: Fields) -> str:
    """Return the number behind "####" of a solution, or of the field answer alone."""
    field = "answer" if "answer" in row else "response"
    value = row.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    final = value.rpartition("####")[2] if isinstance(value, str) else ""
    number = last_number(final)
    if number is None or number.text != final.strip(" \n\r\t%."):
        raise RowError(f"field {field!r} must hold the number that is the answer: {value!r:.60}")
    return number.text
