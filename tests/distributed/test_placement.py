"""The base is sharded and the deltas are replicated, step after step; what is not, is found."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file as load_safetensors

from diablo_ds.adapter.blocks import diagonal_blocks
from diablo_ds.ranks import distributed
from diablo_ds.training.step import evaluate
from diablo_ds.zero.private.optimizers import inner_optimizer
from tests.distributed.runner import run_distributed
from tests.distributed.training import (
    CONFIG,
    build,
    each_case,
    micro_batches,
    take_step,
)
from tests.tiny import save_model

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), num_hidden_layers=4)


def _check_placement(rank: int, folder: Path, ds_file: str, num_blocks: str, by_name: bool) -> None:
    config = dataclasses.replace(CONFIG, num_blocks=num_blocks)
    engine = build(folder, ds_file, config, by_name=by_name)
    k_proj = engine.module.model.layers[0].self_attn.k_proj
    if num_blocks == "1":  # a delta as large as the largest weight, larger than a frozen k or v
        assert max(d.ds_numel for d in engine.deltas.values()) > k_proj.weight.ds_numel
    for step in range(3):
        for name, parameter in engine.module.named_parameters():
            if name in engine.deltas:
                _check_replicated(name, parameter)
            elif by_name and len(parameter.ds_shape) > 1:
                _check_sharded(name, parameter)
        take_step(engine, step, config)
        engine.verify_placement(f"after step {step}")
        evaluate(engine, micro_batches(step, config, rank, 2))
        take_step(engine, step, config)
    # Replicas agree, and each rank's optimizer holds half.
    for name, delta in engine.deltas.items():
        rows = distributed.gather_floats(delta.detach().flatten().tolist(), "cpu")
        assert rows[0] == rows[1], name
    masters = engine._ds_engine.optimizer.fp32_partitioned_groups_flat
    num_own = sum(-(-delta.ds_numel // 2) for delta in engine.deltas.values())
    assert sum(master.numel() for master in masters) == num_own
    for group in inner_optimizer(engine._ds_engine).param_groups:
        assert bool(group["fused"]) == (masters[0].device.type == "cpu")
    for name, found in engine.delta_norms().items():  # of the base's own shards
        layer = engine.module.get_submodule(name.removesuffix(".delta"))
        weight = load_safetensors(folder / "model.safetensors")[
            name.removesuffix("delta") + "weight"
        ]
        blocks = diagonal_blocks(weight, layer.num_blocks)
        assert found.norm > 0
        torch.testing.assert_close(found.base_norm, float(blocks.norm()), rtol=1e-5, atol=0.0)


def _check_replicated(name: str, parameter: Any) -> None:
    """A parameter is gathered, and its part that this rank owns equals this rank's shard."""
    assert parameter.ds_status.name == "AVAILABLE", name
    assert parameter.numel() == parameter.ds_numel
    size = parameter.ds_tensor.ds_numel
    own = parameter.detach().flatten()[distributed.rank() * size :][:size]
    assert torch.equal(own, parameter.ds_tensor[: own.numel()]), name


def _check_sharded(name: str, parameter: Any) -> None:
    assert parameter.ds_status.name == "NOT_AVAILABLE", name
    assert parameter.numel() == 0
    assert parameter.ds_tensor.numel() == -(-parameter.ds_numel // 2)


def test_base_is_sharded_and_deltas_are_replicated(model_folder, tmp_path):
    cases = [
        ("zero3.json", "4", True),
        ("zero3.json", "1", True),
        ("zero3_offload.json", "2", True),
        ("zero3.json", "8", False),
    ]
    run_distributed(each_case, 2, tmp_path, _check_placement, model_folder, cases)


def _check_violations(rank: int, folder: Path) -> None:
    engine = build(folder, "zero3.json")
    name, delta = next(iter(engine.deltas.items()))
    delta.partition()
    with pytest.raises(RuntimeError, match=f"1 violations: {name} is NOT_AVAILABLE"):
        engine.verify_placement("now")
    delta.all_gather()
    weight = engine.module.model.layers[1].mlp.up_proj.weight
    weight.all_gather()
    with pytest.raises(RuntimeError, match=r"up_proj\.weight is AVAILABLE, not NOT_AVAILABLE"):
        engine.verify_placement("now")
    weight.partition()
    weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"up_proj\.weight has requires_grad=True"):
        engine.verify_placement("now")


def test_violations_are_found_and_named(model_folder, tmp_path):
    run_distributed(_check_violations, 2, tmp_path, model_folder)
