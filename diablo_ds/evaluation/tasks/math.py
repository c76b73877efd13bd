"""MATH: competition problems, judged by math-verify on the boxed answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from diablo_ds.data.corpora.fields import RowError, optional_text
from diablo_ds.evaluation.question import Question, Verdict
from diablo_ds.evaluation.rows import Row, instruction_of, read_questions
from diablo_ds.evaluation.task import Task
from diablo_ds.evaluation.tasks._math_equality import check_installed, compare

_SOLUTIONS = ("solution", "output", "response")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"(?<!\\)[{}]")


def _read(path: Path) -> Iterator[Question]:
    """Yield the problems; the reference of each is the last box of its solution, else its answer.

    Raises:
        UserError: if math-verify is not installed; see also `read_questions`.
    """
    check_installed()
    return read_questions(path, _question_of)


def _question_of(row: Row) -> Question:
    instruction, context = instruction_of(row.fields)
    solution = next(filter(None, (optional_text(row.fields, f) for f in _SOLUTIONS)), "")
    # Some copies of MATH have a field answer without its spaces and commas.
    reference = last_boxed(solution) or optional_text(row.fields, "answer").strip()
    if not reference:
        raise RowError(
            "a row must have its answer in \\boxed{} of a solution, or in the field answer"
        )
    if "####" in reference:
        raise RowError(
            f"field 'answer' must hold the answer alone, not a solution: {reference!r:.60}"
        )
    return Question(row.number, instruction, context, reference=reference)


def last_boxed(text: str) -> str | None:
    """Return the content of the last LaTeX box of a text, if there is one that ends."""
    boxes = {match.end() for match in _BOX.finditer(text)}
    open_braces: list[int] = []
    last: tuple[int, int] | None = None
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            open_braces.append(brace.end())
        elif open_braces and (start := open_braces.pop()) in boxes:
            last = max(last or (0, 0), (start, brace.start()))
    return text[slice(*last)].strip() or None if last else None


def _judge(question: Question, answer: str) -> Verdict:
    """Compare the last box, or else what math-verify takes for the answer of the entire text."""
    reference = f"\\boxed{{{question.reference}}}"
    boxed = last_boxed(answer)
    if boxed and compare(reference, f"\\boxed{{{boxed}}}").is_equal:
        return Verdict(boxed, {"accuracy": 1.0})
    # Without a box, or with the parts of an answer in several ones.
    found = compare(reference, answer)
    extracted = found.extracted if found.is_equal or not boxed else boxed
    return Verdict(extracted, {"accuracy": float(found.is_equal)})


TASK = Task(
    name="math",
    version=1,
    kind="generate",
    template="alpaca",
    trained_templates=("chat", "gsm8k"),
    metrics=("accuracy",),
    read=_read,
    judge=_judge,
    max_new_tokens=1024,
)
