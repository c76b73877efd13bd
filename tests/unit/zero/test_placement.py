"""Where each parameter has to be, by stage, name and size; what a table says of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diablo_ds.adapter.layer import DiaBloLinear
from diablo_ds.zero.placement import (
    PERSISTENCE_THRESHOLD,
    choose_placement,
    expected_placement,
    placement_table,
    size_threshold,
    verify_placement,
)


def _model() -> nn.Module:
    model = nn.ModuleDict(
        {
            "norm": nn.LayerNorm(16, bias=False),
            "small": nn.Linear(8, 4, bias=False),
            "diablo": DiaBloLinear(
                nn.Linear(16, 32, bias=False), num_blocks=2
            ),  # a delta of 256 elements
        }
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(".delta"))
    return model


def _deltas(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if n.endswith(".delta")}


@pytest.mark.parametrize(
    ("stage", "threshold", "by_name", "sharded"),
    [
        (0, 0, True, set()),
        (2, 0, True, set()),
        (3, 0, True, {"small.weight", "diablo.weight"}),
        (3, 32, True, {"diablo.weight"}),
        (3, 0, False, {"norm.weight", "small.weight", "diablo.weight", "diablo.delta"}),
        (3, 256, False, {"diablo.weight"}),
    ],
)
def test_what_is_sharded(stage, threshold, by_name, sharded):
    model = _model()
    found = expected_placement(
        model, _deltas(model), stage=stage, threshold=threshold, by_name=by_name
    )
    assert {p.name for p in found if p.sharded} == sharded
    groups = {p.name: p.group for p in found}
    assert groups == {
        "norm.weight": "base vectors",
        "small.weight": "base matrices",
        "diablo.weight": "base matrices",
        "diablo.delta": "deltas",
    }


def test_placement_by_size_raises_the_threshold_to_the_largest_delta():
    model = _model()
    config = {"zero_optimization": {"stage": 3, PERSISTENCE_THRESHOLD: 10}}
    found = choose_placement(model, _deltas(model), config, by_name=False)
    assert size_threshold(_deltas(model).values()) == 256
    assert config["zero_optimization"][PERSISTENCE_THRESHOLD] == 256
    assert [p.name for p in found if p.sharded] == ["diablo.weight"]


def test_bytes_of_the_table_add_up():
    model = _model()
    found = expected_placement(model, _deltas(model), stage=3, threshold=0)
    # 4-byte shards of a half, padded, and replicas of the norm and the delta in addition.
    shards = {p.name: 4 * -(-p.num_elements // 2) for p in found}
    replicas = {"norm.weight": 4 * 16, "diablo.delta": 4 * 256}
    assert {p.name: p.bytes_per_rank(2, 3) for p in found} == {
        name: size + replicas.get(name, 0) for name, size in shards.items()
    }
    table = placement_table(found, stage=3, world_size=2)
    optimizer = 12 * 256 // 2
    total = sum(shards.values()) + sum(replicas.values()) + optimizer
    assert table.splitlines()[-1].split() == ["total", f"{total:,}"]


def test_below_stage_3_violations_are_named():
    model = _model()
    expected = expected_placement(model, _deltas(model), stage=2, threshold=0)
    arguments = {"stage": 2, "world_size": 2, "when": "now"}
    verify_placement(model, expected, **arguments)
    model["small"].weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"now; got 1 violations: small\.weight has requires_gr"):
        verify_placement(model, expected, **arguments)
    model["small"].weight = nn.Parameter(torch.empty(0), requires_grad=False)
    with pytest.raises(RuntimeError, match=r"small\.weight is not full"):
        verify_placement(model, expected, **arguments)
    with pytest.raises(RuntimeError, match=r"norm\.weight was not taken over by ZeRO-3"):
        verify_placement(model, expected, stage=3, world_size=2, when="now")
