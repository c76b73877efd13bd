from __future__ import annotations

import dataclasses

import pytest

from diablo_ds.config.continuation import differing_fields, repair_fields
from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import settings_of


def test_only_settings_that_change_numbers_forbid_resuming():
    old = RunConfig()
    assert differing_fields(old, RunConfig(micro_batch=2, save_every=5, output="x")) == []
    assert differing_fields(old, RunConfig(seed=1)) == ["seed: 0, now 1"]


def test_a_refused_setting_names_the_option_that_resumes():
    old = RunConfig(learning_rate=1e-3, targets=("q_proj", "re:up|down"), packing=True)
    new = RunConfig(seed=1, max_steps=9)
    assert repair_fields(old, new) == (
        "leave out --max-steps --seed and give --packing --targets q_proj --targets 're:up|down' "
        "--learning-rate 0.001"
    )
    assert repair_fields(RunConfig(recompute=True), RunConfig()) == ""


@pytest.mark.parametrize("setting", settings_of(RunConfig), ids=lambda setting: setting.name)
def test_a_setting_says_itself_whether_it_may_change(setting):
    old = dataclasses.asdict(RunConfig(data=("rows.jsonl",)))
    if setting.choices:
        value = next(c for c in setting.choices if c != setting.default and c != "auto")
    elif setting.is_repeatable:
        value = ("q_proj=1",)
    elif setting.kind is bool:
        value = not setting.default
    elif setting.kind is str:
        value = "8"
    elif setting.kind is int:
        value = setting.default + 1024
    else:
        value = setting.default / 2 or 0.25
    new = {**old, setting.name: value}
    if setting.name == "stream":  # which needs it
        old["max_steps"] = new["max_steps"] = 5
    differing = differing_fields(RunConfig(**old), RunConfig(**new))
    assert (differing == []) == setting.free_on_resume
