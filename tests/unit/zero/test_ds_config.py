from __future__ import annotations

import json
from pathlib import Path

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError
from diablo_ds.model.architecture import BaseSizes
from diablo_ds.zero.ds_config import complete_ds_config, load_ds_config, zero_stage

BASE = BaseSizes(hidden_size=32, total=10_000, layer=2_000, head=1_000)
SHIPPED = sorted((Path(__file__).parents[3] / "ds_configs").glob("*.json"))


def _load(tmp_path, values):
    path = tmp_path / "ds.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return load_ds_config(path)


def _complete(values, world_size=2, **run):
    config = RunConfig(**{"micro_batch": 2, "global_batch": 8, "precision": "bf16", **run})
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
    with pytest.raises(UserError, match="must agree") as caught:
        _complete(values)
    assert shown in str(caught.value)


def test_equal_and_auto_values_are_no_conflict():
    agreed = {"train_batch_size": 8, "gradient_clipping": "auto", "bf16": {"enabled": "auto"}}
    assert _complete(agreed) == _complete({})


def test_unknown_keys_are_named_at_every_level(tmp_path):
    with pytest.raises(UserError, match=r"known keys only; got zero_optimisation in"):
        _load(tmp_path, {"zero_optimisation": {}})
    with pytest.raises(UserError, match=r"zero_optimization must have .* got stge in"):
        _load(tmp_path, {"zero_optimization": {"stge": 3}})
    zero = {"stage": 3, "offload_param": {"devise": "cpu"}}
    with pytest.raises(UserError, match=r"offload_param must have .* got devise in"):
        _load(tmp_path, {"zero_optimization": zero})


@pytest.mark.parametrize("stage", [4, "3", True, None])
def test_impossible_stages_are_refused(tmp_path, stage):
    with pytest.raises(UserError, match="ZeRO stage must be 0, 1, 2 or 3"):
        _load(tmp_path, {"zero_optimization": {"stage": stage}})


@pytest.mark.parametrize("key", ["optimizer", "scheduler", "data_types", "prescale_gradients"])
def test_sections_that_the_run_config_owns_are_refused(tmp_path, key):
    with pytest.raises(UserError, match=f"policy only; got {key}="):
        _load(tmp_path, {key: {}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"zero_optimization": {"reduce_bucket_size": "5e8"}}, "reduce_bucket_size='5e8' in"),
        ({"zero_optimization": {"reduce_bucket_size": "500"}}, "must be a number; got '500'"),
        ({"zero_optimization": {"reduce_bucket_size": True}}, "must be no boolean; got True"),
        ({"zero_optimization": {"reduce_bucket_size": 10**30}}, "must be at most"),
        ({"zero_optimization": {"reduce_bucket_size": 0}}, "reduce_bucket_size=0 in"),
        ({"zero_optimization": {"reduce_bucket_size": 1.5}}, "reduce_bucket_size=1.5 in"),
        ({"zero_optimization": {"overlap_comm": 1}}, "must be true or false; got 1"),
        ({"zero_optimization": {"overlap_comm": "yes"}}, "must be true or false; got 'yes'"),
        ({"zero_optimization": {"overlap_comm": []}}, r"overlap_comm=\[\] in"),
        ({"zero_optimization": {"stage": 3.0}}, "ZeRO stage must be"),
        ({"zero_optimization": {"sub_group_size": 0}}, "must be at least 1"),
        ({"zero_optimization": {"cpu_offload": True}}, "deprecated; .* use offload_optimizer"),
        ({"zero_optimization": {"prefetch_bucket_size": 1}}, "known keys only"),
        ({"zero_optimization": {"zenflow": {}}}, "zenflow in .* changes numbers"),
        ({"zero_optimization": {"elastic_checkpoint": True}}, "elastic_checkpoint has no effect"),
        (
            {"zero_optimization": {"stage": 2, "compute_grad_norm": False}},
            "gradient norm must be computed",
        ),
        ({"bf16": {"check_grad_overflow": False}}, "checked before each update"),
        ({"zero_optimization": []}, "must be a JSON object"),
        ({"bf16": True}, "bf16 must be a JSON object; got True"),
        ({"fp16": None}, "fp16 must be a JSON object; got None"),
        ({"bf16": {"enabeld": True}}, "bf16 must have known keys only; got enabeld"),
        ({"fp16": {"loss_scale": "x"}}, "fp16.loss_scale='x' in .* must be a number"),
        ({"fp16": {"loss_scale_window": "auto"}}, '"auto" must stand for'),
        ({"fp16": {"initial_scale_power": 10**9}}, "initial_scale_power must be at most 127"),
        ({"fp16": {"hysteresis": 0}}, "hysteresis must be at least 1"),
        ({"fp16": {"auto_cast": True}}, "auto_cast in .* changes numbers"),
        ({"bf16": {"bf16_optimizer_states": True}}, "changes numbers"),
        ({"communication_data_type": "int8"}, "must be one of fp32, fp16, bf16; got 'int8'"),
        ({"communication_data_type": 16}, "must be one of fp32, fp16, bf16; got 16"),
        ({"log_level": "loud"}, "log_level must be one of debug"),
        ({"steps_per_print": 0}, "steps_per_print must be an integer from 1"),
        ({"wall_clock_breakdown": "true"}, "must be true or false; got 'true'"),
        ({"comms_logger": {"prof_ops": "all"}}, "comms_logger.prof_ops='all' in"),
        ({"comms_logger": {"enabled": 1}}, "comms_logger.enabled must be true or false"),
        ({"flops_profiler": {"enabled": "on"}}, "flops_profiler.enabled must be true or false"),
        ({"flops_profiler": {"output_file": "/etc/x"}}, "got output_file in .*; remove it"),
        ({"aio": {"block_size": 4096}}, "aio has no effect without offload to NVMe"),
        ({"aio": {"block_size": "1M"}}, "aio.block_size must be an integer from 1"),
        ({"aio": {"thread_count": 1}}, "aio must have known keys only"),
        ({"activation_checkpointing": {}}, "has no effect: .* --recompute"),
        ({"disable_allgather": True}, "disable_allgather has no effect"),
        *(
            ({key: {"enabled": True, "output_path": "/tmp"}}, f"metrics elsewhere: .* got {key}")
            for key in ("tensorboard", "wandb", "csv_monitor", "comet")
        ),
    ],
)
def test_values_that_cannot_be_are_refused_with_file_key_and_rule(tmp_path, values, message):
    with pytest.raises(UserError, match=message) as caught:
        _load(tmp_path, values)
    assert "ds.json" in str(caught.value)
    assert type(caught.value) is UserError


@pytest.mark.parametrize(
    ("key", "section", "message"),
    [
        ("offload_param", {"device": "disk"}, "offload_param.device='disk' in"),
        ("offload_param", "cpu", "offload_param must be a JSON object; got 'cpu'"),
        ("offload_param", {"pin_memory": "auto"}, '"auto" must stand for'),
        ("offload_param", {"nvme_path": 7}, "offload_param.nvme_path=7 in"),
        ("offload_param", {"buffer_size": -1}, "offload_param.buffer_size=-1 in"),
        ("offload_optimizer", {"ratio": 2}, "offload_optimizer.ratio=2 in"),
        ("offload_optimizer", {"ratio": "0.5"}, "ratio must be a number; got '0.5'"),
        ("offload_optimizer", {"ratio": 0.5}, "ratio needs DeepSpeed's own optimizer"),
        ("offload_optimizer", {"super_offload": True}, "super_offload needs DeepSpeed's own"),
        ("leaf_module", {"classes": 3}, "leaf_module.classes=3 in"),
        ("leaf_module", [], r"leaf_module must be a JSON object; got \[\]"),
    ],
)
def test_sections_inside_the_zero_section_are_checked(tmp_path, key, section, message):
    with pytest.raises(UserError, match=message):
        _load(tmp_path, {"zero_optimization": {"stage": 3, key: section}})


def test_legal_sections_are_taken(tmp_path):
    values = {
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 5e8, "offload_param": None},
        "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
        "communication_data_type": "fp32",
        "comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]},
        "flops_profiler": {"enabled": True, "profile_step": 2, "module_depth": -1},
        "steps_per_print": 10,
    }
    assert _load(tmp_path, values) == values


def test_shards_in_a_node_must_divide_the_ranks():
    with pytest.raises(UserError, match=r"must divide the world size; got .*=3 in ds\.json, world"):
        _complete({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 3}})


def test_malformed_files_are_named_with_their_line(tmp_path):
    with pytest.raises(UserError, match=r"ds\.json, line 2, column 1"):
        _load(tmp_path, '{"zero_optimization":\n}')
    with pytest.raises(UserError, match="must be a JSON object; got list"):
        _load(tmp_path, "[]")
    with pytest.raises(UserError, match=r"none\.json"):
        load_ds_config(tmp_path / "none.json")


def test_offload_needs_stage_3(tmp_path):
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    with pytest.raises(UserError, match="offload_optimizer is supported with ZeRO stage 3"):
        _load(tmp_path, {"zero_optimization": zero})


def test_auto_where_nothing_can_be_filled_in_is_refused():
    with pytest.raises(UserError, match='got overlap_comm="auto"'):
        _complete({"zero_optimization": {"stage": 3, "overlap_comm": "auto"}})


def test_a_persistence_threshold_of_the_user_is_kept():
    key = "stage3_param_persistence_threshold"
    assert _complete({"zero_optimization": {"stage": 3}})["zero_optimization"][key] == 0
    zero = {"stage": 3, key: 500}
    assert _complete({"zero_optimization": zero})["zero_optimization"][key] == 500
