from __future__ import annotations

import random
import threading

import pytest

from diablo_ds.errors import UserError
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.tasks import _math_equality, find_task
from diablo_ds.evaluation.tasks.math import last_boxed
from tests.unit.evaluation.corpora import corpus
from tests.unit.evaluation.rows import write_rows

pytest.importorskip("math_verify", reason="the package math-verify is not installed")
MATH = find_task("math")
SLICE = 300


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{18}.", "18"),
        (r"\boxed{1} and \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\fbox{3}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{\boxed{3}} }", "3"),
        (r"\boxed {4} and \boxed{}", None),
        (r"\boxed{5}" + r"\boxed{" * 50_000, "5"),
        (r"\boxed 5", None),
        ("18", None),
    ],
)
def test_the_last_box_of_a_text(text, content):
    assert last_boxed(text) == content


def test_the_reference_is_the_box_of_the_solution(tmp_path):
    rows = (
        {"problem": "?", "solution": r"It is \boxed{27, 93}.", "answer": "2793"},
        {"problem": "?", "answer": "5"},
        {"query": "?", "response": r"\boxed{7}"},
    )
    questions = MATH.read(write_rows(tmp_path / "a.jsonl", *rows))
    assert [question.reference for question in questions] == ["27, 93", "5", "7"]
    with pytest.raises(UserError, match=r"b\.jsonl, line 1: a row must have its answer"):
        list(MATH.read(write_rows(tmp_path / "b.jsonl", {"problem": "?", "solution": "5"})))
    solution = {"question": "1+1?", "answer": "They are two.\n#### 2"}  # a row of GSM8K
    with pytest.raises(UserError, match="line 1: field 'answer' must hold the answer alone"):
        list(MATH.read(write_rows(tmp_path / "c.jsonl", solution)))


@pytest.mark.parametrize(
    ("reference", "answer", "is_correct"),
    [
        (r"\frac{1}{2}", r"It is \boxed{0.5}.", True),
        (r"\frac{1}{2}", r"The answer is $\dfrac12$.", True),
        (r"\frac{1}{2}", r"\boxed{\frac{2}{1}}", False),
        ("18", r"\boxed{18.00}", True),
        ("1,234", r"\boxed{1234}", True),
        ("-3", r"\boxed{3}", False),
        ("18", r"\boxed{18\text{ cm}}", True),
        ("18", r"\boxed{17} is wrong, so \boxed{18}", True),
        ("18", r"\boxed{18} is wrong, so \boxed{17}", False),
        ("27, 93", r"\boxed{93} and \boxed{27}", True),
        (r"x^2 + 2x + 1", r"\boxed{(x+1)^2}", True),
        (r"\text{Tuesday}", r"\boxed{\text{Tuesday}}", True),
        (r"\text{Tuesday}", r"\boxed{\text{Monday}}", False),
        ("18", "", False),
    ],
)
def test_answers_are_compared_by_value(reference, answer, is_correct):
    verdict = MATH.judge(Question("1", reference=reference), answer)
    assert verdict.scores == {"accuracy": float(is_correct)}, verdict.extracted


def test_answers_that_never_end_are_different_and_the_next_one_is_judged(monkeypatch):
    question = Question("1", reference="18")
    monkeypatch.setattr(_math_equality, "LIMIT_S", 0)
    assert MATH.judge(question, r"\boxed{9^{9^{9^9}}}").scores == {"accuracy": 0}
    monkeypatch.undo()
    assert MATH.judge(question, r"\boxed{18}").scores == {"accuracy": 1}


def test_answers_are_judged_in_threads_too():
    verdicts = []
    question = Question("1", reference="18")
    judge = threading.Thread(target=lambda: verdicts.append(MATH.judge(question, r"\boxed{18}")))
    judge.start()
    judge.join()
    assert verdicts[0].scores == {"accuracy": 1}


def test_the_package_is_asked_for_before_anything_else(monkeypatch, tmp_path):
    monkeypatch.setattr(_math_equality.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package math-verify.*diablo-ds\[eval\]"):
        MATH.read(tmp_path / "no-such-file.jsonl")


def test_the_reference_answers_of_published_rows_are_correct():
    questions = list(MATH.read(corpus("math/MATH_test.rebuilt.jsonl.gz")))
    assert len(questions) == 5000
    for question in random.Random(0).sample(questions, SLICE):
        answer = f"We find $\\boxed{{{question.reference}}}$."
        verdict = MATH.judge(question, answer)
        assert verdict.scores == {"accuracy": 1}, question
        assert verdict.extracted == question.reference
