"""The compact form of target layers and block counts, and back."""

from __future__ import annotations

import pytest

from diablo_ds.adapter.layer_names import (
    TargetRule,
    compact_num_blocks,
    expand_num_blocks,
    likely_missing,
    targets_of,
)
from diablo_ds.errors import UserError

LINEARS = tuple(
    f"model.layers.{number}.{name}"
    for number in (0, 1, 10)
    for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
)
MODULES = (*LINEARS, "", "model", "model.layers", *(f"model.layers.{n}" for n in (0, 1, 10)))


@pytest.mark.parametrize(
    ("layers", "targets"),
    [
        (LINEARS, ("down_proj", "q_proj", "up_proj")),
        ([n for n in LINEARS if n.endswith("q_proj")], ("q_proj",)),
        (LINEARS[:3], ("0.mlp.down_proj", "0.mlp.up_proj", "0.self_attn.q_proj")),
        ([*LINEARS[:1], *LINEARS[2::3]], ("0.self_attn.q_proj", "down_proj")),
    ],
)
def test_targets_are_the_shortest_ends_that_match_no_other_module(layers, targets):
    rule = targets_of(layers, MODULES)
    assert rule.target_modules == targets
    assert {name for name in MODULES if rule.matches(name)} == set(layers)


def test_without_the_model_targets_are_full_names():
    assert targets_of(LINEARS[:2]).target_modules == tuple(sorted(LINEARS[:2]))


def test_a_layer_whose_full_name_ends_another_is_named_by_an_expression():
    rule = targets_of(["q_proj", "a.b"], ["q_proj", "a.b", "decoder.q_proj"])
    assert isinstance(rule.target_modules, str)
    assert rule.matches("q_proj")
    assert not rule.matches("decoder.q_proj")
    assert not rule.matches("axb")


@pytest.mark.parametrize(
    ("changes", "commonest", "pattern"),
    [
        ({}, 64, {}),
        ({"down_proj": 32}, 64, {"down_proj": 32}),
        ({"model.layers.1.mlp.up_proj": 4}, 64, {r"1\.mlp\.up_proj": 4}),
        (
            {"down_proj": 32, "layers.0.self_attn.q_proj": 32},
            64,
            {"down_proj": 32, r"0\.self_attn\.q_proj": 32},
        ),
        ({"q_proj": 32, "down_proj": 16}, 64, {"q_proj": 32, "down_proj": 16}),
    ],
)
def test_block_counts_come_back_from_the_compact_form(changes, commonest, pattern):
    num_blocks = {
        name: next((count for end, count in changes.items() if name.endswith(end)), 64)
        for name in LINEARS
    }
    compact = compact_num_blocks(num_blocks)
    assert compact == (commonest, pattern)
    assert expand_num_blocks(LINEARS, *compact) == num_blocks
    reverse = dict(reversed(compact[1].items()))  # PEFT sorts the keys
    assert expand_num_blocks(LINEARS, commonest, reverse) == num_blocks


def test_a_layer_at_the_root_has_a_count_of_its_own():
    num_blocks = {"q_proj": 2, "a.q_proj": 4, "b.q_proj": 4}
    compact = compact_num_blocks(num_blocks)
    assert compact[0] == 4
    assert expand_num_blocks(num_blocks, *compact) == num_blocks


def test_likely_missing_names_the_gaps_of_a_regular_set():
    layers = [name for name in LINEARS if name != "model.layers.1.mlp.up_proj"]
    assert likely_missing(layers) == ["model.layers.1.mlp.up_proj"]
    assert likely_missing(LINEARS) == []
    assert likely_missing(["a", "b.c"]) == []


@pytest.mark.parametrize(
    ("fields", "matched"),
    [
        ({"target_modules": ["q_proj"]}, [0, 3, 6]),
        ({"target_modules": r".*\.10\..*(up|down)_proj"}, [7, 8]),
        ({"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["up_proj"]}, [0, 3, 6]),
        ({"target_modules": ["q_proj"], "exclude_modules": r".*\.1\..*"}, [0, 6]),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1, 10]}, [3, 6]),
        ({"target_modules": ["q_proj"], "layers_to_transform": 1}, [3]),
        ({"target_modules": [LINEARS[1], "q_proj"], "layers_to_transform": [10]}, [1, 6]),
        (
            {
                "target_modules": ["q_proj"],
                "layers_to_transform": [1],
                "layers_pattern": ["blocks", "layers"],
            },
            [3],
        ),
    ],
)
def test_rules_match_as_in_peft(fields, matched):
    peft = pytest.importorskip("peft.tuners.tuners_utils")
    lora = pytest.importorskip("peft").LoraConfig(**fields)
    rule = TargetRule.from_json(fields)
    assert [n for n, name in enumerate(LINEARS) if rule.matches(name)] == matched
    found = [bool(peft.check_target_module_exists(lora, name)) for name in LINEARS]
    assert [n for n, is_found in enumerate(found) if is_found] == matched
    assert TargetRule.from_json(rule.as_json()) == rule


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"target_modules": []},
        {"target_modules": "all-linear"},
        {"target_modules": "("},
        {"target_modules": [3]},
        {"target_modules": ["a"], "exclude_modules": 3},
        {"target_modules": ["a"], "layers_to_transform": ["1"]},
        {"target_modules": ["a"], "layers_pattern": ["("]},
    ],
)
def test_a_rule_of_another_form_is_refused(fields):
    with pytest.raises(UserError, match="must"):
        TargetRule.from_json(fields)
