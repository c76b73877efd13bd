from __future__ import annotations

import pytest

from diablo_ds.cli.run_options import DEFAULT_DS_CONFIG, build_run_config, find_ds_config
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


def test_the_deepspeed_config_is_the_given_one_or_that_of_the_file(tmp_path):
    path = tmp_path / "run.json"
    assert find_ds_config({}) == DEFAULT_DS_CONFIG
    save_run_config(RunConfig(), path)
    assert find_ds_config({"config": path}) == DEFAULT_DS_CONFIG
    save_run_config(RunConfig(), path, ds_config={"zero_optimization": {"stage": 1}})
    assert find_ds_config({"config": tmp_path}) == path
    assert find_ds_config({"config": path, "ds_config": tmp_path / "a.json"}) == tmp_path / "a.json"


def test_an_option_overrides_what_acts_in_its_place_in_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("max-steps: 20\nmicro-batch: 2\ngradient-accumulation-steps: 3\n")
    given = {"config": path}
    assert build_run_config(given, 4) == RunConfig(max_steps=20, micro_batch=2, global_batch=24)
    passes = build_run_config({**given, "num_epochs": 2.0}, 4)
    assert (passes.max_steps, passes.num_epochs) == (0, 2.0)
    assert build_run_config({**given, "global_batch": 8}, 4).global_batch == 8
    assert build_run_config({**given, "gradient_accumulation_steps": 1}, 4).global_batch == 8
    tokens = build_run_config({**given, "micro_batch_tokens": 4096, "global_batch": 8}, 4)
    assert (tokens.micro_batch, tokens.micro_batch_tokens) == (0, 4096)
    path.write_text("global_batch: 8\ngradient_accumulation_steps: 3\n")
    with pytest.raises(UserError, match="not both"):
        build_run_config(given, 4)


def test_a_recorded_micro_batch_holds_where_it_divides(tmp_path):
    path, batch = tmp_path / "run.json", {"micro_batch": 4, "global_batch": 8}
    save_run_config(RunConfig(**batch), path, starts=[{"version": "1"}])
    assert build_run_config({"config": path}, 2) == RunConfig(**batch)
    assert build_run_config({"config": path}, 4) == RunConfig(global_batch=8)
    save_run_config(RunConfig(**batch), path)  # a user's own file is taken at its word
    assert build_run_config({"config": path}, 4) == RunConfig(**batch)


@pytest.mark.parametrize(
    "given", [{"memory_budget": 20.0}, {"recompute": False}, {"keep_attention": True}]
)
def test_an_option_about_recomputation_replaces_all_that_a_run_chose(tmp_path, given):
    path, chosen = tmp_path / "run.json", {"recompute": True, "recomputed_layers": 5}
    save_run_config(RunConfig(**chosen), path, starts=[{"version": "1"}])
    assert build_run_config({"config": path}, 1) == RunConfig(**chosen)
    assert build_run_config({"config": path, **given}, 1) == RunConfig(**given)
    save_run_config(RunConfig(**chosen), path)  # a user's own file is taken at its word
    if "keep_attention" not in given:
        with pytest.raises(UserError, match="recompute"):
            build_run_config({"config": path, **given}, 1)
