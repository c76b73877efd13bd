"""Tasks of one's own: prompts and references, scored by a rule."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from diablo_ds.config.choices import CHAT
from diablo_ds.data.corpora.fields import Fields, RowError, optional_text, text
from diablo_ds.evaluation.question import Question, Verdict
from diablo_ds.evaluation.rows import Row, read_questions
from diablo_ds.evaluation.task import Task
from diablo_ds.evaluation.tasks import MATCHES

_PROMPTS = ("prompt", "instruction", "question", "query", "messages")
_REFERENCES = ("reference", "references", "completion", "output", "answer", "response")


def task_with_match(match: str) -> Task:
    """Return the task with a rule for the rows that do not name one in their field match."""
    return replace(TASK, read=partial(_read, match))


def _read(match: str, path: Path) -> Iterator[Question]:
    """Yield the questions of rows with a prompt, a reference or several, and perhaps a rule."""
    return read_questions(path, partial(_question_of, match))


def _question_of(match: str, row: Row) -> Question:
    fields = row.fields
    prompt, reference = _first(fields, _PROMPTS), _first(fields, _REFERENCES)
    rule = optional_text(fields, "match") or match
    if rule not in MATCHES:
        raise RowError(f"field 'match' must be one of {', '.join(MATCHES)}: {rule!r:.60}")
    references = _references(fields, reference)
    if rule == "regex":
        for pattern in references:
            try:
                re.compile(pattern)
            except re.error as error:
                raise RowError(
                    f"field {reference!r} must be a regular expression: {pattern!r:.60}: {error}"
                ) from None
    question = Question(_id(row), reference={"match": rule, "references": references})
    if isinstance(fields[prompt], str):
        context = optional_text(fields, "input") if prompt == "instruction" else ""
        return replace(question, instruction=text(fields, prompt), context=context)
    return replace(question, messages=_messages(fields, prompt))


def _first(row: Fields, names: tuple[str, ...]) -> str:
    found = next((name for name in names if name in row), None)
    if found is None:
        raise RowError(
            f"a row must have one of the fields {', '.join(names)}; it has {', '.join(row)!s:.200}"
        )
    return found


def _id(row: Row) -> str:
    value = row.fields.get("id", row.number)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise RowError(f"field 'id' must be text or an integer: {value!r:.60}")
    return str(value)


def _references(row: Fields, field: str) -> list[str]:
    """Return the references, of which one must fit; numbers as they would be written."""
    value = row[field]
    values = value if isinstance(value, list) else [value]
    kinds_fit = all(
        isinstance(item, str | int | float) and not isinstance(item, bool) for item in values
    )
    references = [str(item).strip() for item in values] if kinds_fit else []
    if not references or not all(references):
        raise RowError(
            f"field {field!r} must be text, a number, or a list of these, not empty: {value!r:.60}"
        )
    return references


def _messages(row: Fields, field: str) -> tuple[dict[str, Any], ...]:
    value = row[field]
    if not isinstance(value, list) or not value or not all(isinstance(m, dict) for m in value):
        raise RowError(f"field {field!r} must be text or a list of messages: {value!r:.60}")
    if value[-1].get("role") == "assistant":
        raise RowError(f"field {field!r} must not end with the assistant's message")
    if row.get("tools"):
        raise RowError("field 'tools' must be empty: tasks cannot offer tools")
    return tuple(value)


def _judge(question: Question, answer: str) -> Verdict:
    """Compare an answer without the space around it, in the rule that the question has."""
    answer = answer.strip()
    rule, references = question.reference["match"], question.reference["references"]
    if rule == "exact":
        return Verdict(answer, {"accuracy": float(answer in references)})
    if rule == "contains":
        found = next((reference for reference in references if reference in answer), None)
    else:
        matches = (re.search(pattern, answer) for pattern in references)
        found = next((match[0] for match in matches if match), None)
    return Verdict(found, {"accuracy": float(found is not None)})


TASK = Task(
    name="jsonl",
    version=1,
    kind="generate",
    template="plain",
    trained_templates=(CHAT, "alpaca", "gsm8k"),
    metrics=("accuracy",),
    read=partial(_read, MATCHES[0]),
    judge=_judge,
    max_new_tokens=256,
)
