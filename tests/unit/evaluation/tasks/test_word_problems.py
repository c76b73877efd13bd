from __future__ import annotations

import pytest

from diablo_ds.errors import UserError
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.tasks import find_task
from tests.unit.evaluation.corpora import corpus
from tests.unit.evaluation.rows import write_rows

NAMES = ("svamp", "addsub", "multiarith", "singleeq", "mawps")
FILES = (
    ("gsm8k", "gsm8k/test.jsonl", 1319),
    ("gsm8k", "metamath/GSM8K_test.jsonl", 1319),
    ("gsm8k", "llm-adapters/dataset/gsm8k/test.json", 1319),
    ("addsub", "llm-adapters/dataset/AddSub/test.json", 395),
    ("multiarith", "llm-adapters/dataset/MultiArith/test.json", 600),
    ("singleeq", "llm-adapters/dataset/SingleEq/test.json", 508),
    ("mawps", "llm-adapters/dataset/mawps/test.json", 238),
)


@pytest.mark.parametrize("name", NAMES)
def test_each_collection_is_read_in_its_own_form_and_in_that_of_llm_adapters(name, tmp_path):
    svamp = {"ID": "chal-1", "Body": "There are 8", "Question": "how many?", "Answer": 8.0}
    mawps = {"iIndex": 7, "lEquations": ["X=1+1"], "lSolutions": [2.0], "sQuestion": "1 more?"}
    ours = {"instruction": "How many?", "input": "", "output": "", "answer": "1.8333333333333335"}
    task = find_task(name)
    questions = list(task.read(write_rows(tmp_path / "a.jsonl", svamp, mawps, ours)))
    assert questions == [
        Question("1", "There are 8, how many?", reference="8.0"),
        Question("2", "1 more?", reference="2.0"),
        Question("3", "How many?", reference="1.8333333333333335"),
    ]


@pytest.mark.parametrize(
    ("answer", "reference", "is_correct"),
    [
        ("The answer is 18.", "18.0", True),
        ("12 + 6 = 18 eggs", "18", True),
        ("\\boxed{18}", "18", True),
        ("18 eggs a day for 2 days", "18", False),
        ("The final answer is: 18, of 20", "18", True),
        ("$1,800.00", "1800", True),
        ("1.83", "1.8333333333333335", False),
        ("1.8333", "1.8333333333333335", True),
        ("11/6", "1.8333333333333335", True),
        ("-18", "18", False),
        ("eighteen", "18", False),
    ],
)
def test_answers_are_judged_by_the_final_number(answer, reference, is_correct):
    verdict = find_task("svamp").judge(Question("1", reference=reference), answer)
    assert verdict.scores == {"accuracy": float(is_correct)}


def test_several_solutions_are_no_word_problem(tmp_path):
    path = write_rows(tmp_path / "a.json", {"sQuestion": "?", "lSolutions": [1.0, 2.0]})
    with pytest.raises(UserError, match=r"a\.json, line 1: field 'lSolutions' must hold one"):
        list(find_task("mawps").read(path))


@pytest.mark.parametrize(("name", "file", "num_rows"), FILES)
def test_the_reference_answer_of_each_published_row_is_correct(name, file, num_rows):
    task = find_task(name)
    questions = list(task.read(corpus(file)))
    assert len(questions) == num_rows
    for question in questions:
        for answer in (f"The answer is {question.reference}.", f"#### {question.reference}"):
            assert task.judge(question, answer).scores[task.metrics[0]] == 1, question
        wrong = f"The answer is 1{question.reference.replace('-', '')}."
        assert task.judge(question, wrong).scores[task.metrics[0]] == 0, question


def test_the_solutions_of_gsm8k_are_correct():
    from diablo_ds.data.corpora.families import find_kind
    from diablo_ds.data.corpora.raw_rows import parse
    from diablo_ds.data.corpora.reading import read_rows

    task, path = find_task("gsm8k"), corpus("gsm8k/test.jsonl")
    for question, row in zip(task.read(path), read_rows(path), strict=True):
        fields = parse(row.value)
        solution = find_kind("math", fields).read(fields).response
        assert task.judge(question, solution).scores == {"accuracy": 1, "last_number": 1}
