"""Limits of tasks: shared ones, and each task's own."""

from __future__ import annotations

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import parse_run_config, parse_settings
from diablo_ds.config.task_limits import parse_limits
from diablo_ds.errors import UserError

NAMES = ("gsm8k", "boolq", "loss:wiki")


@pytest.mark.parametrize(
    ("texts", "limits"),
    [
        ((), (100, 100, 100)),
        (("7",), (7, 7, 7)),
        (("0",), (0, 0, 0)),
        (("7", "boolq=200"), (7, 200, 7)),
        (("boolq=200", "7"), (7, 200, 7)),
        (("boolq=200",), (100, 200, 100)),
        ((" 7 , boolq=0,loss:wiki=5",), (7, 0, 5)),
        (("gsm8k=1,boolq=2", "loss:wiki=3"), (1, 2, 3)),
    ],
)
def test_a_task_has_its_own_limit_or_the_shared_one(texts, limits):
    assert parse_limits(texts, NAMES, "limit", 100) == dict(zip(NAMES, limits, strict=True))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("-1",), "ROWS for all tasks or TASK=ROWS"),
        (("1.5",), "ROWS for all tasks or TASK=ROWS"),
        (("",), "ROWS for all tasks or TASK=ROWS"),
        (("5,",), "ROWS for all tasks or TASK=ROWS"),
        (("gsm8k=",), "ROWS for all tasks or TASK=ROWS"),
        (("=5",), "ROWS for all tasks or TASK=ROWS"),
        (("\u0665",), "ROWS for all tasks or TASK=ROWS"),
        (("9999999999",), "ROWS for all tasks or TASK=ROWS"),
        (("mawps=5",), "one of the tasks gsm8k, boolq, loss:wiki; got limit='mawps=5'"),
        (("loss=5",), "one of the tasks"),
        (("5", "6"), "two of all tasks"),
        (("boolq=5,boolq=5",), "two of boolq"),
        (("5", "gsm8k=1,boolq=2,loss:wiki=3"), "no effect where each has its own"),
    ],
)
def test_a_limit_that_is_none_or_concerns_nothing_is_refused(texts, message):
    with pytest.raises(UserError, match=message):
        parse_limits(texts, NAMES, "limit")


@pytest.mark.parametrize(
    ("value", "limits"),
    [
        (100, ()),
        (7, ("7",)),
        ("boolq=7", ("boolq=7",)),
        ([100, "boolq=7"], ("100", "boolq=7")),
        ([], ()),
    ],
)
def test_a_file_may_give_one_limit_or_several(value, limits, tmp_path):
    values = {"eval_tasks": ["gsm8k,boolq"], "eval_task_limit": value}
    run_config = parse_run_config(values, tmp_path)
    assert run_config.eval_task_limit == limits
    expected = {"gsm8k": 100, "boolq": 100} if not limits else run_config.eval_task_limits
    assert run_config.eval_task_limits == expected


def test_a_run_of_an_earlier_version_without_tasks_still_loads(tmp_path):
    values = {"eval_tasks": [], "eval_task_limit": 100}
    assert RunConfig(**parse_settings(values, tmp_path).settings).eval_task_limits == {}


@pytest.mark.parametrize("value", [True, 1.5, [True], {"gsm8k": 5}])
def test_other_values_in_a_file_are_refused(value, tmp_path):
    with pytest.raises(UserError, match="eval_task_limit must be a list of strings"):
        parse_run_config({"eval_tasks": ["gsm8k"], "eval_task_limit": value}, tmp_path)
