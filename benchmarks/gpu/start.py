"""Time to the first step: starting a process, and loading a checkpoint onto the GPU."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.models import WORKLOADS, device, random_model, synchronize
from benchmarks.gpu.records import Case
from diablo_ds.config.choices import DS_CONFIGS
from diablo_ds.config.run import RunConfig
from diablo_ds.model.base import read_base
from diablo_ds.training.building import design_model, load_model
from diablo_ds.zero.ds_config import load_ds_config
from diablo_ds.zero.joining import init_process_group

_LIBRARIES = ("torch", "transformers", "deepspeed")
_NUM_LAYERS = 4
"""Of the checkpoint that is loaded: 2.8 GB of the 8B shape."""


def cases(scale: str) -> Iterator[Case]:
    """Yield the parts of a start."""
    yield Case("imports", _imports)
    for stage in (0, 3):
        yield Case(f"load, ZeRO-{stage}", partial(_load, scale, stage), alone=True)


def _imports() -> dict[str, Any]:
    """Return the seconds in which a new process has imported the libraries, one after the other."""
    program = (
        "import importlib, json, sys, time\n"
        "seconds = {}\n"
        "for name in sys.argv[1:]:\n"
        "    start = time.perf_counter()\n"
        "    importlib.import_module(name)\n"
        "    seconds[f'{name}_s'] = time.perf_counter() - start\n"
        "print(json.dumps(seconds))\n"
    )
    start = time.perf_counter()
    command = [sys.executable, "-c", program, *_LIBRARIES]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    parts: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return parts | {"process_s": time.perf_counter() - start}


def _load(scale: str, stage: int) -> dict[str, Any]:
    """Return the seconds in which a checkpoint that was just written is on the device.

    Its pages are in the file cache: a disk's speed is no part of it.
    """
    init_process_group()
    workload = WORKLOADS[scale]["step"]
    shape = dataclasses.replace(workload.shape, num_hidden_layers=_NUM_LAYERS)
    config = dataclasses.replace(workload, shape=shape).config()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = random_model(config)
        model.save_pretrained(folder)
        num_bytes = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
        del model
        run_config = RunConfig(
            micro_batch=1, global_batch=1, max_steps=1, max_length=512, precision="bf16"
        )
        file = DS_CONFIGS / f"zero{stage}.json"
        base = read_base(folder)
        design = design_model(run_config, base.shapes, load_ds_config(file), file, device().type)
        start = time.perf_counter()
        loaded = load_model(design, base)
        if stage != 3:
            loaded.to(device())
        synchronize()
        seconds = time.perf_counter() - start
    return {"bytes": num_bytes, "load_s": seconds, "gbs": num_bytes / seconds / 1e9}
