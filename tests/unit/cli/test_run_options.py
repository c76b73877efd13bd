from __future__ import annotations

import pytest

from diablo_ds.cli.run_options import build_run_config
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import save_run_config
from diablo_ds.errors import UserError


def test_options_override_the_file(tmp_path):
    path = tmp_path / "run.json"
    save_run_config(RunConfig(seed=3, learning_rate=1e-4), path)
    config = build_run_config({"config": path, "seed": 5, "targets": (), "layers": None}, 1)
    assert config == RunConfig(seed=5, learning_rate=1e-4)


def test_a_setting_can_be_put_back_to_zero(tmp_path):
    path = tmp_path / "run.json"
    save_run_config(RunConfig(dropout=0.1, max_steps=5, recompute=True), path)
    given = {"dropout": 0.0, "max_steps": 0, "recompute": False}
    assert build_run_config({"config": path, **given}, 1) == RunConfig(recompute=False)


def test_accumulation_steps_set_the_global_batch():
    given = {"micro_batch": 2, "gradient_accumulation_steps": 3}
    assert build_run_config(given, 4).global_batch == 24
    with pytest.raises(UserError, match="not both"):
        build_run_config({"global_batch": 8, "gradient_accumulation_steps": 3}, 4)
