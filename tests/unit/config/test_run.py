from __future__ import annotations

import json

import pytest

from diablo_ds.config.continuation import differing_fields, repair_fields
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import load_run_config, save_run_config
from diablo_ds.errors import UserError


def test_saved_and_loaded_config_is_the_same(tmp_path):
    config = RunConfig(
        targets=("q_proj", "v_proj"), learning_rate=1e-4, gradient_checkpointing=True
    )
    save_run_config(config, tmp_path / "run.json")
    assert load_run_config(tmp_path / "run.json") == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("micro_batch", -1),
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", 10**400),
        ("weight_decay", float("-inf")),
        ("max_length", 10**30),
        ("max_steps", 2**31),
        ("seed", 2**63),
        ("model", "a\0b"),
        ("output", "runs/a\nb"),
        ("data", "caf\udce9.jsonl"),
        ("targets", ("q_proj", "\x1b[2J")),
        ("dropout", 1.0),
        ("schedule", "step"),
        ("precision", "int8"),
        ("max_steps", 1.5),
        ("seed", True),
        ("targets", "q_proj"),
        ("num_blocks", 64),
        ("gradient_checkpointing", "yes"),
    ],
)
def test_illegal_values_are_named(field, value):
    with pytest.raises(UserError, match=f"{field} must be .*; got {field}="):
        RunConfig(**{field: value})


def test_negative_zero_is_zero():
    assert str(RunConfig(weight_decay=-0.0).weight_decay) == "0.0"


@pytest.mark.parametrize(
    "text",
    [
        *('{"seed": 1, "seed": 2}', '{"learning_rate": NaN}', '{"learning_rate": 1e999}'),
        *('{"seed": ' + "7" * 5000 + "}", '{"data": ["\\ud800"]}', '{"data": "\\ud800"}'),
        *('{"targets": "q_proj"}', '{"targets": [1]}', '{"seed": null}', '{"seed": {}}'),
        *('{"targets": null}', '{"precision": ["bf16"]}', '{"seed": 1.0}', "null", "", "7"),
        *('{"a": ' * 100_000, "\0", '{"max_steps": "8"}', '{"stream": 1}', '{"": 1}'),
    ],
    ids=lambda text: text[:30],
)
def test_run_configs_of_any_shape_are_refused_by_name(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"must|seed=") as caught:
        load_run_config(tmp_path / "run.json")
    assert type(caught.value) is UserError


def test_a_byte_order_mark_is_no_error_and_utf16_is_named(tmp_path):
    (tmp_path / "run.json").write_text('{"seed": 3}', encoding="utf-8-sig")
    assert load_run_config(tmp_path / "run.json").seed == 3
    (tmp_path / "run.json").write_text('{"seed": 3}', encoding="utf-16")
    with pytest.raises(UserError, match=r"run\.json, line 1, .* it is UTF-16"):
        load_run_config(tmp_path / "run.json")


def test_settings_without_effect_are_refused():
    with pytest.raises(UserError, match="reentrant needs gradient checkpointing"):
        RunConfig(reentrant=True, gradient_checkpointing=False)
    with pytest.raises(UserError, match="heldout_data has no effect"):
        RunConfig(heldout_data="x.jsonl")
    with pytest.raises(UserError, match="max_steps or num_epochs"):
        RunConfig(num_epochs=0.0)


def test_unknown_keys_and_malformed_files_are_named(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"lerning_rate": 1e-4}))
    with pytest.raises(UserError, match=r"lerning_rate in .*run\.json; known are .*learning_rate"):
        load_run_config(path)
    path.write_text('{\n  "seed": 1,\n}')
    with pytest.raises(UserError, match=r"run\.json, line 3, column 1"):
        load_run_config(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="must be a JSON object"):
        load_run_config(path)
    with pytest.raises(UserError, match=r"missing\.json"):
        load_run_config(tmp_path / "missing.json")


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 8), (2, 4), (8, 1)])
def test_batch_equation(world_size, accumulation):
    config = RunConfig(micro_batch=2, global_batch=16)
    assert config.accumulation_steps(world_size) == accumulation
    assert config.batch_equation(world_size) == (
        f"global batch 16 = micro batch 2 x accumulation {accumulation} x world size {world_size}"
    )


def test_a_batch_that_does_not_divide_names_what_does():
    with pytest.raises(UserError, match=r"world size=2; micro_batch may be 1, 2, 4"):
        RunConfig(micro_batch=3, global_batch=8).accumulation_steps(2)
    with pytest.raises(UserError, match=r"global_batch may be 12 or another multiple of 12"):
        RunConfig(micro_batch=4, global_batch=8).accumulation_steps(3)


@pytest.mark.parametrize(
    ("options", "steps", "examples"),
    [
        ({"max_steps": 5}, 5, 40),
        ({"num_epochs": 1.0}, 3, 20),
        ({"num_epochs": 2.0}, 5, 40),
        ({"num_epochs": 0.01}, 1, 1),
    ],
)
def test_steps_and_examples_of_a_run(options, steps, examples):
    config = RunConfig(global_batch=8, **options)
    assert (config.num_steps(20), config.num_sequences(20)) == (steps, examples)


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
    assert repair_fields(RunConfig(gradient_checkpointing=True), RunConfig()) == ""
