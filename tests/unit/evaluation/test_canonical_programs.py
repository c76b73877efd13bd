"""The published solutions of HumanEval and MBPP pass as the answers of a model do."""

from __future__ import annotations

import gzip
import json
import os

import pytest

from diablo_ds.evaluation.sandbox.program import Limits
from diablo_ds.evaluation.sandbox.running import check_programs
from diablo_ds.evaluation.sandbox.walls import find_walls
from diablo_ds.evaluation.tasks import find_task
from tests.unit.evaluation.corpora import corpus

pytestmark = pytest.mark.slow

ALL = bool(os.environ.get("DIABLO_ALL_PROGRAMS"))
"""Whether all programs are run, for some minutes, and not some of them."""


@pytest.mark.parametrize(
    ("name", "file", "solution", "step"),
    [
        ("humaneval", "humaneval/HumanEval.jsonl.gz", "canonical_solution", 4),
        ("mbpp", "mbpp/mbpp.jsonl", "code", 15),
    ],
)
def test_published_solutions_pass(name, file, solution, step):
    path, task = corpus(file), find_task(name)
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as lines:
        answers = [json.loads(line)[solution] for line in lines]
    questions = list(task.read(path))
    assert len(questions) == len(answers) == {"humaneval": 164, "mbpp": 974}[name]
    chosen = list(zip(questions, answers, strict=True))[:: 1 if ALL else step]
    programs = [task.program(question, answer) for question, answer in chosen]
    outcomes = check_programs(programs, find_walls(), Limits(cpu_s=20, wall_s=300.0), num_workers=2)
    failed = {
        question.id: outcome.reason
        for (question, _), outcome in zip(chosen, outcomes, strict=True)
        if not outcome.passed
    }
    assert not failed
