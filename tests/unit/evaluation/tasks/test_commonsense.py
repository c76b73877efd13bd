from __future__ import annotations

import pytest

from diablo_ds.errors import UserError
from diablo_ds.evaluation.question import Question
from diablo_ds.evaluation.tasks import COMMONSENSE, find_task
from tests.unit.evaluation.corpora import corpus
from tests.unit.evaluation.rows import write_rows

LABELS = {
    "boolq": ("true", "false"),
    "piqa": ("solution1", "solution2"),
    "hellaswag": ("ending1", "ending2", "ending3", "ending4"),
    "winogrande": ("option1", "option2"),
}
TEST_FILES = {
    "boolq": ("boolq/test.json", 3270),
    "piqa": ("piqa/test.json", 1838),
    "social_i_qa": ("social_i_qa/test.json", 1954),
    "hellaswag": ("hellaswag/test.json.gz", 10042),
    "winogrande": ("winogrande/train_xl.rebuilt.json.gz", 40398),
    "arc_easy": ("ARC-Easy/test.json.gz", 2376),
    "arc_challenge": ("ARC-Challenge/train.json", 1119),
    "openbookqa": ("openbookqa/test.json", 500),
}


def _labels(name, count=3):
    return LABELS.get(name, tuple(f"answer{n}" for n in range(1, count + 1)))


def _row(name, answer, count=3):
    listed = "/".join(_labels(name, count))
    return {
        "instruction": f"Please choose: ...\n\nAnswer format: {listed}",
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }


@pytest.mark.parametrize("name", COMMONSENSE)
def test_questions_have_the_choices_of_their_row(name, tmp_path):
    counts = (3, 5) if name not in LABELS else (0,)
    rows = [_row(name, _labels(name, count)[-1], count) for count in counts]
    task = find_task(name)
    for question, count in zip(
        task.read(write_rows(tmp_path / "a.json", *rows)), counts, strict=True
    ):
        labels = _labels(name, count)
        assert question.choices == tuple(f"the correct answer is {label}" for label in labels)
        assert question.correct == len(labels) - 1
        assert question.reference == labels[-1]
        assert question.choices[question.correct] == rows[counts.index(count)]["output"]


@pytest.mark.parametrize("name", COMMONSENSE)
def test_answers_are_judged_as_published(name):
    first, second = _labels(name)[:2]
    question, task = Question("1", reference=second), find_task(name)
    for answer, extracted in (
        (f"the correct answer is {second}", second),
        (f"the correct answer is {first}\nthe correct answer is {second}", second),
        (f"the correct answer is {second}, not {first}", second),
        (f"{first}: the correct answer is: {second}.", second),
        (f"the correct answer is {first}", first),
        (f"I choose {second} over {first}", second),
        (f"{second}, so the correct answer is not known", None),
        ("none", None),
        ("", None),
    ):
        verdict = task.judge(question, answer)
        assert verdict.extracted == extracted, answer
        assert verdict.scores == {"generation": float(extracted == second)}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"instruction": "Please choose."}, "must end with 'Answer format: '"),
        ({"instruction": "?\n\nAnswer format: answer1/answer2"}, "labels of true/false"),
        ({"output": "the correct answer is maybe", "answer": "maybe"}, "must be 'the correct"),
        ({"output": "true"}, "field 'output' must be"),
        ({"answer": "false"}, "field 'output' must be 'the correct answer is false'"),
        ({"output": ""}, "must not be empty"),
        ({"instruction": None}, "must be text"),
    ],
)
def test_a_row_of_another_form_is_named(changes, rule, tmp_path):
    rows = [_row("boolq", "true"), {**_row("boolq", "true"), **changes}]
    with pytest.raises(UserError, match=rf"a\.json, line 2: .*{rule}"):
        list(find_task("boolq").read(write_rows(tmp_path / "a.json", *rows)))


@pytest.mark.parametrize("name", COMMONSENSE)
def test_the_reference_answer_of_each_published_row_is_correct(name):
    path, num_rows = TEST_FILES[name]
    task = find_task(name)
    num_correct = 0
    for question in task.read(corpus(f"llm-adapters/dataset/{path}")):
        answer = question.choices[question.correct]
        num_correct += task.judge(question, answer).scores["generation"] == 1
        assert answer.endswith(f" {question.reference}")
        assert len(question.choices) in (2, 3, 4, 5)
    assert num_correct == num_rows
