"""The options of an evaluation: what is refused before a model is loaded."""

from __future__ import annotations

import json

import pytest

from diablo_ds.errors import UserError
from diablo_ds.evaluation.folder import check_same, read_record
from diablo_ds.evaluation.inputs import read_inputs
from diablo_ds.evaluation.items import CHOICE, GENERATION
from diablo_ds.evaluation.options import EvaluateOptions
from diablo_ds.evaluation.predictions import Predictions


@pytest.fixture
def data(tmp_path):
    """Questions that a task of each kind can read."""
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "1+1?", "answer": "2\\n#### 2"}\n' * 3)
    row = {
        "instruction": "true?\n\nAnswer format: true/false",
        "input": "",
        "output": "the correct answer is true",
    }
    (tmp_path / "boolq.json").write_text(json.dumps([row | {"answer": "true"}]))
    return tmp_path


def make(folder, task, **values):
    """Options of one task with its data."""
    names = {"gsm8k": "gsm8k.jsonl", "boolq": "boolq.json"}
    paths = tuple(f"{name}={folder / path}" for name, path in names.items() if name in task)
    given = {"data": paths, "base": "default", "output": folder / "out"}
    return EvaluateOptions(task=(task,), **given | values)


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("gsm9k", {}, "did you mean 'gsm8k'"),
        ("GSM8K", {"data": ("gsm8k=x",)}, "did you mean 'gsm8k'"),
        ("gsm8k,gsm8k", {}, "each task must be given once"),
        ("gsm8k", {"data": ()}, "--data gsm8k=PATH"),
        ("gsm8k", {"data": ("gsm8k",)}, "TASK=PATH"),
        ("gsm8k", {"data": ("boolq=x",)}, "one of the tasks gsm8k"),
        ("gsm8k", {"data": ("gsm8k=/no/such/file",)}, "exists"),
        ("humaneval", {}, "--allow-code-execution"),
        ("gsm8k", {"allow_code_execution": True}, "allow_code_execution needs"),
        ("gsm8k", {"metric": ("choice",)}, "has accuracy, last_number"),
        ("gsm8k,boolq", {"metric": ("accuracy",)}, "for boolq"),
        ("gsm8k", {"limit": ("boolq=3",)}, "limit must be of one of the tasks gsm8k"),
        ("gsm8k", {"match": "exact"}, "match needs the task jsonl"),
        ("gsm8k", {"num_samples": 3}, "temperature above 0"),
        ("gsm8k", {"top_p": 0.5}, "temperature above 0"),
        ("gsm8k", {"seed": 1}, "seed needs"),
        ("gsm8k", {"max_length": 10}, "max_length needs"),
        ("gsm8k", {"judge": "model"}, "judge needs"),
        ("boolq", {"metric": ("choice",), "temperature": 0.5}, "temperature needs"),
        ("gsm8k", {"base": ""}, "needs a model"),
        ("gsm8k", {"skip_base": True}, "needs a model"),
        ("forgetting", {"adapter": ("a",), "skip_base": True}, "the base"),
    ],
)
def test_what_cannot_be_or_has_no_effect_is_refused(data, task, values, message):
    with pytest.raises(UserError, match=message):
        read_inputs(make(data, task, **values))


def test_metrics_decide_what_is_asked(data):
    def asks(*metrics):
        (given,) = read_inputs(make(data, "boolq", metric=metrics))
        return given.asks

    assert asks() == (GENERATION, CHOICE)
    assert asks("choice_norm") == (CHOICE,)
    assert asks("generation") == (GENERATION,)


def test_a_limit_takes_the_first_questions_and_options_change_the_task(data):
    (given,) = read_inputs(make(data, "gsm8k", limit=("2",), temperature=0.5, num_samples=3))
    assert [question.id for question in given.questions] == ["1", "2"]
    assert (given.task.temperature, given.task.num_samples) == (0.5, 3)


def row(id, **values):
    """A row of predictions."""
    return {"model": "m", "task": "t", "kind": "generation", "id": id, "sample": 0, **values}


@pytest.mark.parametrize("torn", ['{"model": "m"', json.dumps(row("3")), "\x00\x00"])
def test_a_torn_last_row_is_removed_and_asked_again(tmp_path, torn):
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(row("1")) + "\n" + torn)
    predictions = Predictions(path)
    assert [key.id for key in predictions.rows] == ["1"]
    predictions.add(row("2", output="a\u2028b\ud800"))
    predictions.close()
    again = Predictions(path)
    assert [key.id for key in again.rows] == ["1", "2"]
    again.close()


def test_a_damaged_row_is_an_error_that_names_its_line_and_keeps_the_file(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(row("1")) + "\nno row\n" + json.dumps(row("2")) + "\n")
    before = path.read_bytes()
    with pytest.raises(UserError, match="line 2"):
        Predictions(path)
    assert path.read_bytes() == before


def test_the_last_row_of_a_key_counts_and_sorting_keeps_one(tmp_path):
    path = tmp_path / "predictions.jsonl"
    predictions = Predictions(path)
    for number, value in (("2", 0), ("1", 0), ("2", 1)):
        predictions.add(row(number, value=value))
    predictions.sort(lambda key: key.id)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["id"], r["value"]) for r in rows] == [("1", 0), ("2", 1)]


def test_models_and_tasks_may_be_added_but_not_changed(tmp_path):
    old = {
        "precision": "fp32",
        "models": {"base": {"weights": "0", "template": {"t": "plain"}}},
        "tasks": {"t": {"version": 1}},
    }
    more = {**old, "models": {**old["models"], "a": {"weights": "1"}}, "tasks": {"u": {}}}
    check_same(old, more, tmp_path)
    changes = {
        "precision": {**old, "precision": "bf16"},
        "weights": {**old, "models": {"base": {"weights": "1"}}},
        "t=chat of template of base": {
            **old,
            "models": {"base": {"weights": "0", "template": {"t": "chat"}}},
        },
        "version": {**old, "tasks": {"t": {"version": 2}}},
    }
    for message, new in changes.items():
        with pytest.raises(UserError, match=message):
            check_same(old, new, tmp_path)


def test_a_folder_with_other_files_is_refused(tmp_path):
    assert read_record(tmp_path) is None
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(UserError, match="a folder with other files"):
        read_record(tmp_path)
