from __future__ import annotations

import pytest

from diablo_ds.errors import UserError
from diablo_ds.evaluation.tasks import TASKS, find_task


@pytest.mark.parametrize("name", TASKS)
def test_each_task_is_complete(name):
    task = find_task(name)
    assert task.name == name
    assert task.version >= 1
    assert task.metrics
    assert (task.read is None) == (task.kind == "loss")
    assert (task.max_new_tokens == 0) == (task.kind == "loss")
    ways = [task.judge, task.program]
    assert len([way for way in ways if way]) == (0 if task.kind == "loss" else 1)
    assert task.runs_code == (task.program is not None)
    assert task.template not in task.trained_templates


def test_a_rule_for_answers_is_for_the_task_that_has_rules():
    assert find_task("jsonl:mine", "regex").name == "jsonl:mine"
    for name, match in (("gsm8k", "exact"), ("jsonl", "near")):
        with pytest.raises(UserError, match="match must be one of exact, contains, regex"):
            find_task(name, match)


def test_a_label_gives_a_task_a_name_of_its_own():
    assert find_task("gsm8k:mine").name == "gsm8k:mine"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gsm-8k", "did you mean 'gsm8k'"),
        ("MBPP", "did you mean 'mbpp'"),
        ("ARC-Easy", "did you mean 'arc_easy'"),
        ("?", "choose from"),
        ("gsm8k:", ""),
    ],
)
def test_an_unknown_task_is_an_error_with_a_hint(name, hint):
    with pytest.raises(UserError, match=f"must be a known one; got task='.*'; .*{hint}"):
        find_task(name)


def test_only_continuations_end_at_stops():
    task = find_task("humaneval")
    assert "\ndef" in task.stops_for("plain")
    assert task.stops_for("chat") == task.stops_for("alpaca") == ()
