"""Bytes that the collectives of one step move: counted, and equal to the formula."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from diablo_ds.planning.communication import padded
from diablo_ds.ranks import distributed
from diablo_ds.training.step import evaluate, train_step
from diablo_ds.zero.engine import Engine
from diablo_ds.zero.traffic import BASE_GATHERS, DELTA_GATHERS, DELTA_GRADIENTS, counting_traffic
from tests.distributed.runner import run_distributed
from tests.distributed.training import CONFIG, build, learning_rate, micro_batches
from tests.tiny import save_model

pytestmark = pytest.mark.distributed
BF16 = dataclasses.replace(CONFIG, precision="bf16")  # micro batch 2, global batch 8


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), num_hidden_layers=4)


def _count(engine: Engine, *, with_evaluation: bool = True) -> dict[tuple[str, int], int]:
    """Bytes of the fourth step by kind and group size; evaluations before and in between."""
    batches = [
        micro_batches(step, BF16, distributed.rank(), distributed.world_size()) for step in range(4)
    ]
    if with_evaluation:
        evaluate(engine, batches[0])
    for step in range(3):
        train_step(engine, batches[step], learning_rate(BF16, step))
        if with_evaluation:
            evaluate(engine, batches[0])
    with counting_traffic() as traffic:
        train_step(engine, batches[3], learning_rate(BF16, 3))
    return {
        (kind, group): num_bytes
        for (kind, group), num_bytes in traffic.bytes.items()
        if kind in (BASE_GATHERS, DELTA_GATHERS, DELTA_GRADIENTS)
    }


def _padded_bytes(parameters: Any, world_size: int) -> int:
    """bf16 bytes, each parameter padded to a multiple of the world size."""
    sizes = (getattr(p, "ds_numel", p.numel()) for p in parameters)
    return sum(2 * padded(size, world_size) for size in sizes)


# Gradients are reduced in fp32.
GRADIENT_BY_PARAMETER_BYTES = 2


def _check_stage3(rank: int, folder: Path) -> None:
    engine = build(folder, "zero3.json", BF16)
    parameters = dict(engine.module.named_parameters())
    num_micro_steps = BF16.accumulation_steps(2)
    assert num_micro_steps == 2
    matrices = _padded_bytes((parameters[p.name] for p in engine.placement if p.sharded), 2)
    delta_bytes = _padded_bytes(engine.deltas.values(), 2)
    replicated = _padded_bytes((parameters[p.name] for p in engine.placement if not p.sharded), 2)
    # All of this small base is kept from forward to backward: one gather per micro step. The
    # optimizer gathers deltas and vectors, and nothing else.
    counted = _count(engine)
    assert counted == {
        (BASE_GATHERS, 2): num_micro_steps * matrices,
        (DELTA_GATHERS, 2): replicated,
        (DELTA_GRADIENTS, 2): GRADIENT_BY_PARAMETER_BYTES * delta_bytes,
    }, (counted, matrices, replicated)


def test_stage_3_moves_the_base_once_per_micro_step_and_the_deltas_once_per_step(
    model_folder, tmp_path
):
    run_distributed(_check_stage3, 2, tmp_path, model_folder)


def _check_lower_stage(rank: int, folder: Path, stage: int) -> None:
    engine = build(folder, f"zero{stage}.json", BF16)
    delta_bytes = _padded_bytes(engine.deltas.values(), 2)
    wanted = {(DELTA_GRADIENTS, 2): GRADIENT_BY_PARAMETER_BYTES * delta_bytes}
    if stage:
        wanted[DELTA_GATHERS, 2] = delta_bytes  # each rank updates its part
    counted = _count(engine)
    # DeepSpeed aligns its flat buffers to a few hundred bytes.
    assert counted.keys() == wanted.keys()
    for kind, num_bytes in wanted.items():
        assert num_bytes <= counted[kind] < num_bytes + 512


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_below_stage_3_only_deltas_move(stage, model_folder, tmp_path):
    run_distributed(_check_lower_stage, 2, tmp_path, model_folder, stage)


def _check_hpz(rank: int, folder: Path, output: Path) -> None:
    counts, losses = [], []
    for group in (1, 2):
        engine = build(folder, "zero3.json", BF16, changes={"zero_hpz_partition_size": group})
        counts.append(_count(engine))
        with torch.no_grad():
            losses.append(evaluate(engine, micro_batches(0, BF16, rank, 4)))
        parameters = dict(engine.module.named_parameters())
        engine.close()
    assert losses[0] == losses[1]
    across, inside = counts
    matrices = _padded_bytes((parameters[p.name] for p in engine.placement if p.sharded), 4)
    assert across[BASE_GATHERS, 4] == BF16.accumulation_steps(4) * matrices, (across, matrices)
    # Two nodes of two ranks: all of the base moves inside a node, and only deltas between them.
    assert Counter(inside) == Counter(
        {
            (BASE_GATHERS, 2): across[BASE_GATHERS, 4],
            (DELTA_GATHERS, 4): across[DELTA_GATHERS, 4],
            (DELTA_GRADIENTS, 4): across[DELTA_GRADIENTS, 4],
        }
    )


def test_with_secondary_shards_only_deltas_leave_a_node(model_folder, tmp_path):
    run_distributed(_check_hpz, 4, tmp_path, model_folder, tmp_path / "out")
