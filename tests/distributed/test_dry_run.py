"""A dry run refuses what a run refuses, in the same words."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diablo_ds.adapter.layer import delta_shapes
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import save_run_config
from diablo_ds.errors import UserError
from diablo_ds.files.layout import RunFolder, checkpoint_folder
from diablo_ds.model.compile_cache import CACHE_VARIABLE
from diablo_ds.training.checkpoint import Checkpoint, save_checkpoint
from diablo_ds.training.dry_run import describe_run
from diablo_ds.training.preparing import prepare_run
from diablo_ds.training.resuming import find_position
from diablo_ds.training.startup import start_run
from tests.distributed.runner import run_distributed
from tests.tiny import save_model, write_pairs

CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it")
ZERO_3 = {"zero_optimization": {"stage": 3}}

SETTINGS = {
    "fp16 on a CPU": {"precision": "fp16"},
    "flash attention without a GPU or its package": {"attention": "flash_attention_2"},
    "Triton without a GPU": {"delta_path": "triton"},
    "a target that matches nothing": {"targets": ("w1",)},
    "a block count that does not divide": {"num_blocks": "64"},
    "decoder layers that are not there": {"layers": "0-5"},
    "more recomputed layers than there are": {"recomputed_layers": 3},
    "a memory budget that holds nothing": {"memory_budget": 1e-6},
    "batch sizes that do not divide": {"micro_batch": 3},
    "examples that are all too long": {"max_length": 3},
    "traced steps that the run does not take": {"max_steps": 0, "profile_steps": "900"},
    "no such model": {"model": "./nowhere"},
    "no such data": {"data": ("nowhere.jsonl",)},
}
"""Settings of a run config that cannot be trained with."""
POLICIES = {
    "an NVMe folder that is not there": {
        "stage": 3,
        "offload_param": {"device": "nvme", "nvme_path": "/nowhere/nvme"},
    },
    "quantised gathers on a CPU": {"stage": 3, "zero_quantized_weights": True},
    "a secondary partition that does not divide": {"stage": 3, "zero_hpz_partition_size": 2},
    "auto where it means nothing": {"stage": 3, "sub_group_size": "auto"},
}
"""ZeRO sections that cannot be trained with."""


class _Cases:
    """Runs of a tiny model, each refused for one reason.

    Args:
        folder: for files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ds_config = folder / "zero3.json"
        self.ds_config.write_text(json.dumps(ZERO_3))
        self.config = RunConfig(
            model=str(save_model(folder / "model")),
            data=(str(write_pairs(folder / "pairs.jsonl")),),
            num_blocks="4",
            micro_batch=2,
            global_batch=4,
            max_steps=2,
            precision="auto" if torch.cuda.is_available() else "fp32",
        )
        self.refusals: dict[str, list[str]] = {}

    def new(self, name: str, **changes: object) -> RunConfig:
        """Return a run config with an output folder of its own."""
        output = self.folder / re.sub(r"\W", "-", name)
        return dataclasses.replace(self.config, **{"output": str(output), **changes})

    def compare(self, name: str, run_config: RunConfig, ds_config: Path | None = None) -> None:
        """Note what the dry run says, and then the run."""
        file = ds_config or self.ds_config

        def run() -> None:
            with contextlib.ExitStack() as resources:
                start_run(run_config, file, resources)

        self.refusals[name] = [_refusal(lambda: describe_run(run_config, file)), _refusal(run)]

    def with_checkpoint(self, name: str, change: Callable[[Checkpoint], Checkpoint]) -> RunConfig:
        """Return a run config whose folder holds a changed checkpoint after step 1."""
        run_config = self.new(name)
        prepared = prepare_run(run_config, self.ds_config, torch.device("cpu"))
        position = find_position(prepared, prepared.folder)
        shapes = delta_shapes(prepared.design.shapes, prepared.adapter.num_blocks)
        state = {
            delta: {key: torch.zeros(shape) for key in ("master", "exp_avg", "exp_avg_sq")}
            for delta, shape in shapes.items()
        }
        checkpoint = Checkpoint(
            step=1,
            global_batch=4,
            seed=0,
            num_optimizer_steps=1,
            adapter=prepared.adapter,
            state=state,
            data=position.data.as_json(),
        )
        folder = RunFolder(Path(run_config.output))
        save_checkpoint(folder.checkpoints, change(checkpoint), keep_last=2)
        save_run_config(prepared.run_config, folder.run_config)
        return run_config


def _refusal(start: Callable[[], object]) -> str:
    try:
        start()
    except UserError as error:
        return str(error)
    return ""


def _refuse_all(rank: int, folder: Path) -> None:
    cases = _Cases(folder)
    for name, settings in SETTINGS.items():
        cases.compare(name, cases.new(name, **settings))
    for name, section in POLICIES.items():
        file = folder / "policy.json"
        file.write_text(json.dumps({"zero_optimization": section}))
        cases.compare(name, cases.new(name), file)

    name = "an output below a file"
    cases.compare(name, cases.new(name, output=str(cases.ds_config / "run")))
    name = "an output folder that holds something else"
    (folder / "other").mkdir()
    (folder / "other" / "thesis.txt").write_text("...")
    cases.compare(name, cases.new(name, output=str(folder / "other")))
    name = "a file where compiled layers are cached"
    os.environ[CACHE_VARIABLE] = str(cases.ds_config)
    cases.compare(name, cases.new(name, compile="on"))

    name = "the run folder of another base"
    run_config = cases.with_checkpoint(name, _of_another_base)
    cases.compare(name, run_config)
    name = "a run whose data were replaced"
    cases.compare(name, cases.with_checkpoint(name, _of_other_data))
    name = "a run with another seed"
    cases.compare(name, dataclasses.replace(cases.with_checkpoint(name, lambda c: c), seed=1))
    name = "checkpoints that are all damaged"
    run_config = cases.with_checkpoint(name, lambda c: c)
    damaged = checkpoint_folder(RunFolder(Path(run_config.output)).checkpoints, 1)
    (damaged / "state.json").write_text("{}")
    cases.compare(name, run_config)

    accepted = cases.with_checkpoint("accepted", lambda c: c)
    (folder / "accepted.txt").write_text(describe_run(accepted, cases.ds_config))
    (folder / "refusals.json").write_text(json.dumps(cases.refusals))


def _of_another_base(checkpoint: Checkpoint) -> Checkpoint:
    adapter = dataclasses.replace(checkpoint.adapter, base_fingerprint="0" * 64)
    return dataclasses.replace(checkpoint, adapter=adapter)


def _of_other_data(checkpoint: Checkpoint) -> Checkpoint:
    data = json.loads(json.dumps(checkpoint.data))
    data["train"]["fingerprint"] = "0" * 32
    return dataclasses.replace(checkpoint, data=data)


@CPU_ONLY
def test_a_dry_run_refuses_what_a_run_refuses(tmp_path):
    run_distributed(_refuse_all, 1, tmp_path, tmp_path)
    refusals = json.loads((tmp_path / "refusals.json").read_text())
    assert len(refusals) == len(SETTINGS) + len(POLICIES) + 7
    for name, (by_dry_run, by_run) in refusals.items():
        assert by_run, f"a run accepts {name}"
        assert by_dry_run == by_run, name
    assert "continues after step 1 of 2" in (tmp_path / "accepted.txt").read_text()
