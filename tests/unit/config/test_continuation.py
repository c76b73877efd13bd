from __future__ import annotations

import dataclasses

import pytest

from diablo_ds.config.continuation import (
    can_start_from,
    changes_ahead,
    describe_ahead,
    differing_fields,
    left_out_values,
    repair_fields,
)
from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import settings_of
from diablo_ds.config.task_settings import OF_TASKS


def test_only_settings_that_make_another_run_forbid_resuming():
    old = RunConfig()
    assert differing_fields(old, RunConfig(micro_batch=2, save_every=5, output="x")) == []
    assert differing_fields(old, RunConfig(max_steps=7, learning_rate=1e-4)) == []
    assert differing_fields(old, RunConfig(seed=1)) == ["seed: 0, now 1"]


def test_a_refused_setting_names_the_option_that_resumes():
    old = RunConfig(learning_rate=1e-3, targets=("q_proj", "re:up|down"), packing=True)
    new = RunConfig(seed=1, max_steps=9)
    assert repair_fields(old, new) == "leave out --packing --targets --seed"
    assert not can_start_from(old, new)
    assert can_start_from(RunConfig(), RunConfig(seed=1, data=("rows.jsonl",)))


def test_changes_for_the_steps_to_come_are_told_with_both_values():
    old, new = RunConfig(max_steps=8), RunConfig(max_steps=16, schedule="cosine", keep_last=9)
    told = [change.text() for change in changes_ahead(old, new)]
    assert told == [
        "max_steps: 8 -> 16",
        "schedule: linear -> cosine",
    ]


def test_an_open_learning_rate_is_no_change():
    old = RunConfig(learning_rate=1e-4)
    assert changes_ahead(old, RunConfig()) == []
    told = [change.text() for change in changes_ahead(old, RunConfig(learning_rate=2e-4))]
    assert told == ["learning_rate: 0.0001 -> 0.0002"]


def test_what_is_left_out_is_as_the_run_has_it_but_for_a_start_s_own_settings():
    recorded = RunConfig(
        seed=3, max_steps=8, warmup_steps=5, keep_best=True, global_batch=6, data=("a.jsonl",)
    )
    values = left_out_values(recorded, {"data", "schedule"})
    assert (values["seed"], values["max_steps"], values["warmup_steps"]) == (3, 8, 5)
    assert not {"data", "schedule", "keep_best", "global_batch", "allow_changed_data"} & set(values)
    # A number of epochs would have no effect beside the number of steps that the run had.
    assert "max_steps" not in left_out_values(recorded, {"num_epochs"})


@pytest.mark.parametrize("setting", settings_of(RunConfig), ids=lambda setting: setting.name)
def test_a_setting_says_itself_whether_it_may_change(setting):
    old = dataclasses.asdict(RunConfig(data=("rows.jsonl",)))
    if setting.choices:
        value = next(c for c in setting.choices if c != setting.default and c != "auto")
        value = (value,) if setting.is_repeatable else value
    elif setting.is_repeatable:
        value = ("7",) if setting.name == "eval_task_limit" else ("q_proj=1",)
    elif setting.kind is bool:
        value = not setting.default
    elif setting.kind is str:
        value = "8"
    elif setting.kind is int:
        value = setting.default + 512
    else:
        value = setting.default / 2 or 0.25
    new = {**old, setting.name: value}
    if setting.name == "stream":  # which needs it
        old["max_steps"] = new["max_steps"] = 5
    if setting.name in OF_TASKS:
        old["eval_tasks"] = new["eval_tasks"] = ("humaneval",)
    differing = differing_fields(RunConfig(**old), RunConfig(**new))
    assert (differing == []) == (setting.on_resume != "fixed")
    changed = [change.field for change in changes_ahead(RunConfig(**old), RunConfig(**new))]
    assert changed == [setting.name] * (setting.on_resume == "ahead")


def test_the_record_of_starts_tells_what_changed_for_the_steps_to_come():
    changes = [{"field": "keep_last", "old": 2, "new": 3}]
    extended = [*changes, {"field": "max_steps", "old": 8, "new": 12}]
    starts = [{"start_step": 0}, {"changes": changes}, {"start_step": 8, "changes": extended}]
    assert describe_ahead(starts) == ["after step 8: max_steps: 8 -> 12"]
