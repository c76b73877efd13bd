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

STEP = 1 if os.environ.get("DIABLO_ALL_PROGRAMS") else 10
"""Every tenth of MBPP's 974, unless all are asked for; of HumanEval's 164 every second."""


@pytest.mark.parametrize(
    ("name", "file", "solution", "step"),
    [
        ("humaneval", "humaneval/HumanEval.jsonl.gz", "canonical_solution", (STEP + 1) // 5 or 1),
        ("mbpp", "mbpp/mbpp.jsonl", "code", STEP),
    ],
)
def test_published_solutions_pass(name, file, solution, step):
    path, task = corpus(file), find_task(name)
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as lines:
        answers = [json.loads(line)[solution] for line in lines]
    questions = list(task.read(path))
    assert len(questions) == len(answers) == {"humaneval": 164, "mbpp": 974}[name]
    chosen = list(zip(questions, answers, strict=True))[::step]
    programs = [task.program(question, answer) for question, answer in chosen]
    outcomes = check_programs(programs, find_walls(), Limits(cpu_s=20, wall_s=300.0), num_workers=2)
    failed = {
        question.id: outcome.reason
        for (question, _), outcome in zip(chosen, outcomes, strict=True)
        if not outcome.passed
    }
    assert not failed
