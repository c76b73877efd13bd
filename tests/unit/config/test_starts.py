from __future__ import annotations

import json

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import load_run_config, save_run_config
from diablo_ds.config.starts import Change, changed_settings, changed_values, load_starts
from diablo_ds.errors import UserError


def test_starts_are_kept_beside_the_settings(tmp_path):
    path, starts = tmp_path / "run.json", [{"version": "1"}, {"version": "2"}]
    save_run_config(RunConfig(seed=3), path, ds_config={"zero_optimization": {}}, starts=starts)
    assert load_starts(path) == starts
    assert load_run_config(path) == RunConfig(seed=3)
    assert load_starts(tmp_path / "none.json") == []


@pytest.mark.parametrize(
    "starts", [{}, ["text"], 3, [{"changes": [{"field": "seed"}]}], [{"hosts": ["a"]}]]
)
def test_starts_that_are_none_are_refused(starts, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"starts": starts}))
    with pytest.raises(UserError, match="starts must be a list of objects"):
        load_starts(tmp_path / "run.json")


def test_changes_name_old_and_new_value_and_leave_out_the_folder():
    old = RunConfig(learning_rate=1e-3, targets=("q_proj",), output="runs/a")
    new = RunConfig(learning_rate=5e-4, output="/home/me/runs/a")
    changes = changed_settings(old, new)
    assert changes == (
        Change("targets", ("q_proj",), ()),
        Change("learning_rate", 1e-3, 5e-4),
    )
    assert [change.text() for change in changes] == [
        "targets: q_proj -> none",
        "learning_rate: 0.001 -> 0.0005",
    ]


def test_changes_of_a_deepspeed_config_name_each_value_by_its_path():
    old = {"zero_optimization": {"stage": 3, "overlap_comm": True}, "dump_state": True}
    new = {"zero_optimization": {"stage": 2, "overlap_comm": True}}
    assert changed_values(old, new, "ds_config") == (
        Change("ds_config.dump_state", True, None),
        Change("ds_config.zero_optimization.stage", 3, 2),
    )
