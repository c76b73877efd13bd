from __future__ import annotations

import pytest

from diablo_ds.errors import UserError
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.tasks import find_task
from tests.unit.evaluation.rows import write_rows

GSM8K = find_task("gsm8k")


def test_questions_are_read_in_each_published_form(tmp_path):
    path = write_rows(
        tmp_path / "a.jsonl",
        {"question": "2 + 3?", "answer": "It is 5.\n#### 5"},
        {"query": "2 - 5?", "response": "It is -3.\n#### -3"},
        {"instruction": "Big?", "input": "", "output": "", "answer": "1600.0"},
    )
    assert list(GSM8K.read(path)) == [
        Question("1", "2 + 3?", reference="5"),
        Question("2", "2 - 5?", reference="-3"),
        Question("3", "Big?", reference="1600.0"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "2 + 3?", "answer": "It is 5."},
        {"question": "2 + 3?", "answer": "It is 5.\n#### five"},
        {"question": "", "answer": "#### 5"},
        {"instruction": "2 + 3?", "output": "5", "answer": "5 or 6"},
        {"instruction": "2 + 3?", "output": "5"},
        {"prompt": "2 + 3?", "completion": "5"},
    ],
)
def test_a_row_that_is_no_word_problem_is_named(tmp_path, row):
    path = write_rows(tmp_path / "a.jsonl", {"question": "1?", "answer": "#### 1"}, row)
    with pytest.raises(UserError, match=r"got .*a\.jsonl, line 2: "):
        list(GSM8K.read(path))


def test_a_file_without_questions_and_a_folder_of_splits(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="must have at least one question"):
        list(GSM8K.read(tmp_path / "empty.jsonl"))
    for split, question in (("train", "a"), ("valid", "b"), ("test", "c")):
        (tmp_path / "set").mkdir(exist_ok=True)
        write_rows(tmp_path / "set" / f"{split}.jsonl", {"question": question, "answer": "#### 1"})
    assert [question.instruction for question in GSM8K.read(tmp_path / "set")] == ["c"]


@pytest.mark.parametrize(
    ("answer", "extracted", "accuracy", "last_number"),
    [
        ("6 * 3 = 18\nThe final answer is: 18", "18", 1, 1),
        ("The final answer is: $1,218.00 dollars", "$1,218.00", 0, 0),
        ("The final answer is: 18.00 eggs, of 20", "18.00", 1, 0),
        ("The final answer is: 17\nNo. The final answer is: 18", "18", 1, 1),
        ("The final answer is: many, so 18", "18", 1, 1),
        ("The final answer is: unknown", None, 0, 0),
        ("So there are 18.", "18", 1, 1),
        ("18 of 20", "20", 0, 0),
        ("", None, 0, 0),
        ("The final answer is: -18", "-18", 0, 0),
        ("The final answer is: 36/2", "36/2", 1, 1),
    ],
)
def test_answers_are_judged_as_published(answer, extracted, accuracy, last_number):
    verdict = GSM8K.judge(Question("1", "?", reference="18"), answer)
    assert verdict.extracted == extracted
    assert verdict.scores == {"accuracy": accuracy, "last_number": last_number}


def test_thousands_separators_of_the_reference():
    question = Question("1", "?", reference="1,450,000")
    for answer in ("1450000", "1,450,000", "$1,450,000.00"):
        assert GSM8K.judge(question, answer).scores["accuracy"] == 1
    assert GSM8K.judge(question, "1,450").scores["accuracy"] == 0
