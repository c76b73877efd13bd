"""What a run takes where micro batch and recomputation are open: the plan, its trial, a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu import levers
from benchmarks.gpu.models import WORKLOADS, random_tokens
from benchmarks.gpu.ours import COMPILERS
from benchmarks.gpu.records import Case
from benchmarks.gpu.sessions import Session
from diablo_ds.config.choices import DS_CONFIGS
from diablo_ds.config.run import RunConfig
from diablo_ds.data.batches import MicroBatch
from diablo_ds.model.architecture import build_meta_model
from diablo_ds.model.recomputation import recompute_layers
from diablo_ds.planning.hardware import GB
from diablo_ds.training.machine import Machine
from diablo_ds.training.memory_choice import fit_gpus
from diablo_ds.training.memory_trial import fit_by_trial
from diablo_ds.zero.ds_config import load_ds_config

_STAGE = 2
_GLOBAL_BATCH = 4
_MEMORY_GB = {"full": (80, 48), "tiny": (80,)}
"""What a run is told that the card has: an H100's, and a smaller card's."""


def cases(scale: str) -> Iterator[Case]:
    """Yield the 8B shape under ZeRO-2 on cards of several sizes."""
    for memory_gb in _MEMORY_GB[scale]:
        run = partial(_choose, scale, memory_gb)
        yield Case(f"a card of {memory_gb} GB", run, 150.0, alone=True)


def _choose(scale: str, memory_gb: int) -> dict[str, Any]:
    """Return what the plan said, what the trial made of it, and what steps took."""
    workload, using = WORKLOADS[scale]["step"], COMPILERS if scale == "full" else ()
    run_config = RunConfig(
        global_batch=_GLOBAL_BATCH,
        max_steps=1,
        max_length=workload.length,
        precision="bf16",
        compile="on" if using else "off",
    )
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    machine = Machine("here", "cuda", device_name=name, device_bytes=int(memory_gb * GB))
    shapes = build_meta_model(workload.config())
    policy = load_ds_config(DS_CONFIGS / f"zero{_STAGE}.json")
    start = time.perf_counter()
    choice = fit_gpus(run_config, [machine], shapes, is_size_open=True, policy=policy)
    plan_s = time.perf_counter() - start
    if choice is None or not choice.to_try:
        raise RuntimeError("nothing was planned")
    rows, planned = choice.run_config.micro_batch, choice.to_try[0]
    session = Session(workload, _STAGE)
    if planned.recomputation.num_layers:
        recompute_layers(session.model, planned.recomputation, reentrant=False)
    with levers.switched(session.model, using):
        ids = random_tokens(session.config, rows, workload.length)
        batch = MicroBatch(ids, ids, None, ids.numel())
        start = time.perf_counter()
        found = fit_by_trial(session.engine, batch, choice.to_try, memory_gb * GB)
        trial_s = time.perf_counter() - start
        figures = session.measure(micro_batch=rows, lever=True)
    return figures | {
        "planned_bytes": planned.num_bytes,
        "planned_layers": planned.recomputation.num_layers,
        "recomputed_layers": found.num_layers,
        "plan_s": plan_s,
        "trial_s": trial_s,
    }
