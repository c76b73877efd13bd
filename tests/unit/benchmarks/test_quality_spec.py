"""Specs of the study: what is refused, and which are the same training."""

from __future__ import annotations

import dataclasses
import json

import pytest

from benchmarks.quality.spec import Spec
from diablo_ds.errors import UserError


def spec(**values):
    return Spec(
        **{"method": "diablo", "num_blocks": "64", "rate": 2e-3, "global_batch": 8}
        | {"num_examples": 100}
        | values
    )


def test_a_spec_survives_json_with_its_key():
    one = spec(rate=1e-3 / 3, permuted=True)
    again = Spec.from_json(json.loads(json.dumps(one.to_json())))
    assert again == one
    assert again.key() == one.key()


def test_every_field_is_part_of_the_key():
    one = spec(precision="bf16")
    others = {
        "method": "lora", "rate": 1e-3, "global_batch": 16, "num_examples": 99, "num_blocks": "32",
        "targets": "mlp", "seed": 1, "data": "gsm8k", "precision": "fp32", "delta_path": "summed",
        "master": "none", "permuted": True, "max_length": 128, "schedule": "cosine",
        "warmup_share": 0.2, "weight_decay": 0.1, "max_grad_norm": 0.5, "num_held_out": 10,
        "num_questions": 5, "model": "a-folder",
    }  # fmt: skip
    assert others.keys() == {field.name for field in dataclasses.fields(Spec)}
    keys = {dataclasses.replace(one, **{name: value}).key() for name, value in others.items()}
    assert len(keys - {one.key()}) == len(others)


@pytest.mark.parametrize(
    "values",
    [
        {"method": "adalora"},
        {"method": "full"},  # with a block count
        {"num_blocks": ""},
        {"method": "lora", "num_blocks": "auto:0.01"},
        {"method": "lora", "permuted": True},
        {"method": "full", "num_blocks": "", "targets": "mlp"},
        {"method": "dora", "delta_path": "fused"},
        {"master": "none"},  # in fp32
        {"rate": float("nan")},
        {"num_examples": 0},
        {"warmup_share": 1.0},
    ],
)
def test_what_has_no_effect_or_no_meaning_is_refused(values):
    with pytest.raises(UserError):
        spec(**values)


def test_unknown_fields_are_refused():
    with pytest.raises(UserError, match="learning_rate"):
        Spec.from_json(spec().to_json() | {"learning_rate": 1e-3})


def test_the_last_step_may_hold_fewer_examples():
    assert spec(num_examples=17).num_steps == 3
    assert spec(num_examples=160, warmup_share=0.1).warmup_steps == 2
