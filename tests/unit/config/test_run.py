from __future__ import annotations

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.errors import UserError


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
        ("data", ("caf\udce9.jsonl",)),
        ("targets", ("q_proj", "\x1b[2J")),
        ("dropout", 1.0),
        ("schedule", "step"),
        ("precision", "int8"),
        ("max_steps", 1.5),
        ("seed", True),
        ("targets", "q_proj"),
        ("num_blocks", 64),
        ("recompute", "yes"),
    ],
)
def test_illegal_values_are_named(field, value):
    with pytest.raises(UserError, match=f"{field} must be .*; got {field}="):
        RunConfig(**{field: value})


def test_negative_zero_is_zero():
    assert str(RunConfig(weight_decay=-0.0).weight_decay) == "0.0"


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


@pytest.mark.parametrize("line", ["a\nb", "a\x1bb", "a\udc80b"])
def test_settings_hold_no_control_characters(line):
    with pytest.raises(UserError, match="output must be text without control characters"):
        RunConfig(output=line)
    with pytest.raises(UserError, match="targets must be text without control characters"):
        RunConfig(targets=("a", line))
