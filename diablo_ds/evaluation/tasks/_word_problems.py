"""Word problems whose answer is a number, in the forms in which they are published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from diablo_ds.data.corpora.fields import Fields, RowError, text
from diablo_ds.evaluation.question import Question, Verdict
from diablo_ds.evaluation.rows import Row, instruction_of, read_questions
from diablo_ds.evaluation.task import Task
from diablo_ds.evaluation.tasks._numbers import Number, last_number, number_after, numbers

ANSWER_OPENING = "The final answer is:"
"""Begins the final answer in the training data of the template gsm8k."""
TOLERANCE = Fraction(1, 1000)
"""Largest difference of two equal answers: some references are rounded, such as 1.83."""


def word_problem_task(name: str) -> Task:
    """Return a task whose answers are judged by the final number."""
    return Task(
        name=name,
        version=1,
        kind="generate",
        template="alpaca",
        trained_templates=("chat", "gsm8k"),
        metrics=("accuracy",),
        read=read_word_problems,
        judge=lambda question, answer: _verdict(question, final_number(answer)),
        max_new_tokens=256,
    )


def read_word_problems(path: Path) -> Iterator[Question]:
    """Yield word problems; the reference of each is its answer's number, as text.

    They may have the fields of GSM8K, of MetaMath's tests and of LLM-Adapters, or those of SVAMP
    (Body, Question, Answer) and of the MAWPS collections (sQuestion, lSolutions).

    Raises:
        UserError: naming file and line, if a row is no word problem, or its answer no number.
    """
    return read_questions(path, _question_of)


def final_number(answer: str) -> Number | None:
    """Return the number after the last "The final answer is:", else the last one."""
    return number_after(answer, ANSWER_OPENING) or last_number(answer)


def is_equal(number: Number | None, question: Question) -> bool:
    """Return whether a number is the reference of a question."""
    (reference,) = numbers(question.reference)
    return number is not None and abs(number.value - reference.value) <= TOLERANCE


def _verdict(question: Question, found: Number | None) -> Verdict:
    extracted = found.text if found else None
    return Verdict(extracted, {"accuracy": float(is_equal(found, question))})


def _question_of(row: Row) -> Question:
    fields = _with_common_names(row.fields)
    instruction, context = instruction_of(fields)
    return Question(row.number, instruction, context, reference=_answer(fields))


def _with_common_names(row: Fields) -> Mapping[str, Any]:
    if "body" in row:  # SVAMP's, the facts before the question
        body = text(row, "body").strip()
        joint = " " if body.endswith((".", "!", "?")) else ", "
        return {**row, "question": f"{body}{joint}{text(row, 'question').strip()}"}
    if "squestion" in row:
        solutions = row.get("lsolutions")
        if not isinstance(solutions, list) or len(solutions) != 1:
            raise RowError(f"field 'lSolutions' must hold one number: {solutions!r:.60}")
        return {"question": row["squestion"], "answer": solutions[0]}
    return row


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
