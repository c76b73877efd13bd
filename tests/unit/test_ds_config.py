from __future__ import annotations

import json
from pathlib import Path

import pytest

from diablo_ds.config import RunConfig
from diablo_ds.ds_config import BaseSizes, complete_ds_config, load_ds_config, zero_stage

BASE = BaseSizes(hidden_size=32, total=10_000, layer=2_000, head=1_000)
SHIPPED = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))


def _load(tmp_path, values):
    path = tmp_path / "ds.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return load_ds_config(path)


def _complete(values, world_size=2, **run):
    config = RunConfig(micro_batch=2, global_batch=8, **run)
    return complete_ds_config(values, config, world_size=world_size, base=BASE, source="ds.json")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_are_legal_and_hold_policy_only(path):
    values = load_ds_config(path)
    assert set(values) == {"zero_optimization"}
    assert str(zero_stage(values)) == path.name.removeprefix("zero")[0]
    assert "auto" not in json.dumps(_complete(values))


def test_every_number_that_changes_the_training_is_written():
    result = _complete({}, max_grad_norm=0.0, precision="fp32")
    assert result["gradient_clipping"] == 0.0
    assert result["bf16"] == result["fp16"] == {"enabled": False}
    assert result["train_batch_size"] == 4  # one micro step: the loop accumulates by itself
    assert result["gradient_accumulation_steps"] == 1


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"gradient_clipping": 0.5}, "gradient_clipping=0.5 in ds.json and 1.0"),
        ({"train_batch_size": 16}, "train_batch_size=16 in ds.json and 8"),
        (
            {"train_micro_batch_size_per_gpu": 1},
            "train_micro_batch_size_per_gpu=1 in ds.json and 2",
        ),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps=4 in ds.json and 2"),
        ({"bf16": {"enabled": False}}, "bf16.enabled=False in ds.json and True"),
        ({"fp16": {"enabled": True}}, "fp16.enabled=True in ds.json and False"),
    ],
)
def test_a_conflict_shows_both_values(values, shown):
    with pytest.raises(ValueError, match="must agree") as caught:
        _complete(values)
    assert shown in str(caught.value)


def test_equal_and_auto_values_are_no_conflict():
    agreed = {"train_batch_size": 8, "gradient_clipping": "auto", "bf16": {"enabled": "auto"}}
    assert _complete(agreed) == _complete({})


def test_unknown_keys_are_named_at_every_level(tmp_path):
    with pytest.raises(ValueError, match=r"known keys only; got zero_optimisation in"):
        _load(tmp_path, {"zero_optimisation": {}})
    with pytest.raises(ValueError, match=r"zero_optimization must have .* got stge in"):
        _load(tmp_path, {"zero_optimization": {"stge": 3}})
    zero = {"stage": 3, "offload_param": {"devise": "cpu"}}
    with pytest.raises(ValueError, match=r"offload_param must have .* got devise in"):
        _load(tmp_path, {"zero_optimization": zero})


@pytest.mark.parametrize("stage", [4, "3", True, None])
def test_impossible_stages_are_refused(tmp_path, stage):
    with pytest.raises(ValueError, match="ZeRO stage must be 0, 1, 2 or 3"):
        _load(tmp_path, {"zero_optimization": {"stage": stage}})


@pytest.mark.parametrize("key", ["optimizer", "scheduler", "data_types", "prescale_gradients"])
def test_sections_that_the_run_config_owns_are_refused(tmp_path, key):
    with pytest.raises(ValueError, match=f"policy only; got {key}="):
        _load(tmp_path, {key: {}})


def test_malformed_files_are_named_with_their_line(tmp_path):
    with pytest.raises(ValueError, match=r"ds\.json, line 2, column 1"):
        _load(tmp_path, '{"zero_optimization":\n}')
    with pytest.raises(ValueError, match="must be a JSON object; got list"):
        _load(tmp_path, "[]")
    with pytest.raises(ValueError, match=r"none\.json"):
        load_ds_config(tmp_path / "none.json")


def test_offload_needs_stage_3(tmp_path):
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    with pytest.raises(ValueError, match="offload_optimizer is supported with ZeRO stage 3"):
        _load(tmp_path, {"zero_optimization": zero})


def test_auto_where_nothing_can_be_filled_in_is_refused():
    with pytest.raises(ValueError, match='got overlap_comm="auto"'):
        _complete({"zero_optimization": {"stage": 3, "overlap_comm": "auto"}})


def test_a_persistence_threshold_of_the_user_is_kept():
    key = "stage3_param_persistence_threshold"
    assert _complete({"zero_optimization": {"stage": 3}})["zero_optimization"][key] == 0
    zero = {"stage": 3, key: 500}
    assert _complete({"zero_optimization": zero})["zero_optimization"][key] == 500
