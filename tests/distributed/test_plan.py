"""The plan's bytes per step equal those that real ranks move."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from diablo_ds.model.architecture import load_model_config
from diablo_ds.planning.communication import LIMIT_KEYS, Layout, step_traffic
from diablo_ds.planning.gathers import Limits
from diablo_ds.planning.measure import measure_model
from diablo_ds.ranks import distributed
from diablo_ds.training.step import train_step
from diablo_ds.zero.engine import Engine
from diablo_ds.zero.traffic import NORMS, counting_traffic
from tests.distributed.runner import run_distributed
from tests.distributed.training import CONFIG, build, learning_rate, micro_batches
from tests.tiny import save_model

pytestmark = pytest.mark.distributed
BF16 = dataclasses.replace(CONFIG, precision="bf16", num_blocks="2")  # micro batch 2, global 8


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    # Widths that no alignment divides: the padding counts too.
    widths = {"hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 3}
    layers = {"intermediate_size": 54, "num_hidden_layers": 5}
    return save_model(tmp_path_factory.mktemp("model"), **widths, **layers)


def _counted(engine: Engine, run: Any) -> dict[tuple[str, int], int]:
    """Bytes of the third step, by kind and group size; in the first two DeepSpeed records."""
    rank, world_size = distributed.rank(), distributed.world_size()
    for step in range(2):
        batches = micro_batches(step, run, rank, world_size)
        train_step(engine, batches, learning_rate(run, step))
    with counting_traffic() as traffic:
        batches = micro_batches(2, run, rank, world_size)
        train_step(engine, batches, learning_rate(run, 2))
    return {tuple(key): n for key, n in traffic.bytes.items() if key.kind != NORMS}


def _check(
    rank: int, folder: Path, stage: int, changes: list[dict[str, int]], recomputation: bool
) -> None:
    world_size = distributed.world_size()
    run = dataclasses.replace(BF16, recompute=recomputation)
    model = measure_model(load_model_config(folder), run)
    for change in changes:
        engine = build(folder, f"zero{stage}.json", run, changes=change)
        zero = engine._ds_engine.config["zero_optimization"]
        layout = Layout(
            stage=stage,
            world_size=world_size,
            ranks_per_node=2,
            hpz=zero.get("zero_hpz_partition_size", 1),
            limits=Limits(*(zero.get(key, 0) for key in LIMIT_KEYS)),
            num_micro_steps=run.accumulation_steps(world_size),
        )
        planned = {tuple(key): n for key, n in step_traffic(model, layout).items()}
        counted = _counted(engine, run)
        engine.close()
        assert counted == planned, (change, counted, planned)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_below_stage_3_the_plan_counts_what_moves(stage, model_folder, tmp_path):
    run_distributed(_check, 2, tmp_path, model_folder, stage, [{}], False)


@pytest.mark.parametrize("recomputation", [False, True])
def test_stage_3_the_plan_knows_what_is_gathered_again(recomputation, model_folder, tmp_path):
    prefetch, live, reuse = LIMIT_KEYS
    changes = [
        {prefetch: ahead, live: 10**9, reuse: distance}
        for ahead, distance in ((0, 40_000), (3_000, 0), (25_000, 15_000))
    ]
    # Too little room to gather ahead as far as it would.
    changes.append({prefetch: 25_000, live: 30_000, reuse: 15_000})
    run_distributed(_check, 2, tmp_path, model_folder, 3, changes, recomputation)


def test_with_secondary_shards_the_plan_keeps_the_base_in_a_node(model_folder, tmp_path):
    changes = [{"zero_hpz_partition_size": group} for group in (1, 2)]
    run_distributed(_check, 4, tmp_path, model_folder, 3, changes, False)
