from __future__ import annotations

import pytest

from diablo_ds.errors import UserError
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.tasks import find_task
from tests.unit.evaluation.corpora import corpus
from tests.unit.evaluation.rows import write_rows

AQUA = find_task("aqua")


def test_both_published_forms_give_the_same_question(tmp_path):
    own = {"question": "1 + 1?", "options": ["A)1", "B) 2"], "rationale": "", "correct": "B"}
    adapted = {"instruction": "1 + 1? Answer Choices: (A) 1 (B) 2", "output": "", "answer": "B"}
    first, second = AQUA.read(write_rows(tmp_path / "a.jsonl", own, adapted))
    assert first.instruction == second.instruction
    assert first.reference == second.reference == "B"


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "?", "answer": "F"},
        {"instruction": "?", "answer": ""},
        {"instruction": "?"},
        {"question": "?", "options": ["1", "2"], "correct": "A"},
    ],
)
def test_a_row_without_a_letter_is_named(row, tmp_path):
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: field "):
        list(AQUA.read(write_rows(tmp_path / "a.jsonl", row)))


@pytest.mark.parametrize(
    ("answer", "extracted"),
    [
        ("The answer is (C).", "C"),
        ("So the answer is C", "C"),
        ("A train runs. The correct answer is: D) 12, not E", "D"),
        ("The answer is A. No, the answer is B.", "B"),
        ("the answer is a number, so (E)", "E"),
        ("Answer: **B**", "B"),
        ("A man has 3 apples", None),
        ("(A) is 1 and (B) is 2, so (B)", "B"),
        ("(A) 1 (B) 2 (C) 3 (D) 4 (E) 5", None),
        ("A. 1\nB. 2\nC. 3\nD. 4\nE. 5\nThus C", "C"),
        ("ABC", None),
        ("", None),
    ],
)
def test_the_letter_of_an_answer(answer, extracted):
    for reference in "ABCDE":
        verdict = AQUA.judge(Question("1", reference=reference), answer)
        assert verdict.extracted == extracted
        assert verdict.scores == {"accuracy": float(extracted == reference)}


def test_the_reference_answer_of_each_published_row_is_correct():
    questions = list(AQUA.read(corpus("llm-adapters/dataset/AQuA/test.json")))
    assert len(questions) == 254
    for question in questions:
        for form in ("The answer is ({}).", "So it is {}", "answer: {}"):
            verdict = AQUA.judge(question, form.format(question.reference))
            assert verdict.scores == {"accuracy": 1}
