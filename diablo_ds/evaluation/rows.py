"""Files of questions, read as training data are: the same formats, fields and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from diablo_ds.data.corpora.columns import with_field_names
from diablo_ds.data.corpora.fields import Fields, RowError, optional_text, text
from diablo_ds.data.corpora.raw_rows import Unreadable, parse
from diablo_ds.data.corpora.reading import read_rows
from diablo_ds.data.corpora.sources import choose_evaluated, find_sources
from diablo_ds.errors import UserError
from diablo_ds.evaluation.question import Question


class Row(NamedTuple):
    """One row of a task's data."""

    number: str
    """Counted from 1 over all files."""
    fields: Fields


def question_files(path: Path) -> list[Path]:
    """Return the files of questions that a path stands for.

    Of a folder with several splits these are the test files, or the files for validation if there
    are none.

    Raises:
        UserError: if there are none.
    """
    sources, held_back = find_sources([str(path)], may_be_tests=True)
    return choose_evaluated(held_back) or [source.path for source in sources]


def read_questions(path: Path, make: Callable[[Row], Question]) -> Iterator[Question]:
    """Yield the question of each row; none is skipped.

    Args:
        path: a file in one of the formats of training data, or a folder of such files.
        make: makes a question of a row; may raise RowError.

    Raises:
        UserError: naming file and line, if a row cannot be read, does not fit the task, or has the
            id of an earlier one; or if there is no row.
    """
    seen: dict[str, str] = {}
    number = 0
    for file in question_files(path):
        for raw in read_rows(file):
            number += 1
            where = f"{file}, line {raw.line}"
            try:
                fields = parse(raw.value)
                if isinstance(fields, Unreadable):
                    raise RowError(fields.reason)
                question = make(Row(str(number), with_field_names(fields, {})))
            except RowError as error:
                raise UserError(f"each row must fit the task; got {where}: {error}") from None
            if question.id in seen:
                raise UserError(
                    f"each question must have an id of its own; got {question.id!r} in {where} and "
                    f"in {seen[question.id]}"
                )
            seen[question.id] = where
            yield question
    if not number:
        raise UserError(f"a task must have at least one question; got none in {path}")


_INSTRUCTIONS = ("instruction", "question", "query", "problem")


def instruction_of(row: Fields) -> tuple[str, str]:
    """Return the instruction and the context of a row, as they are in training data.

    The response is not read: test data may leave it empty.

    Raises:
        RowError: if there is none.
    """
    field = next((name for name in _INSTRUCTIONS if name in row), None)
    if field is None:
        raise RowError(
            f"a row must have one of the fields {', '.join(_INSTRUCTIONS)}; it has "
            f"{', '.join(row)!s:.200}"
        )
    context = optional_text(row, "input") if field == "instruction" else ""
    return text(row, field), context
