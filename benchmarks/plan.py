"""The plan's memory against what real ranks take, on this machine.

    python -m benchmarks.plan

SmolLM2-135M with its default targets trains on two ranks under ZeRO-2 and ZeRO-3; a rank's peak
in a step is compared with the plan's sum by kind. On CPUs memory is what is resident, less what was
resident once all libraries were loaded and the ranks had joined.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.report import table, write_report
from diablo_ds.batches import MicroBatch
from diablo_ds.config import RunConfig
from diablo_ds.model import Recomputation, decoder_layers, find_model, load_model_config
from diablo_ds.planning.communication import Layout, gathers_per_micro_step
from diablo_ds.planning.gathers import Limits
from diablo_ds.planning.measure import measure_model
from diablo_ds.planning.memory import DEFAULT_BUCKET_ELEMENTS, memory_dict, rank_memory
from diablo_ds.planning.plan import DS_CONFIGS, LIMIT_KEYS

NUM_RANKS = 2
STAGES = (2, 3)
BATCHES = ((4, 512), (2, 256), (1, 1024), (8, 512))
"""Micro batch and tokens of a sequence."""
STEPS = 2
"""Per case; the peak is of the last. DeepSpeed decides in the first ones what to keep."""


def _resident() -> dict[str, int]:
    """Return resident bytes by kind, and their peak since the last reset."""
    values = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem"):
            values[name] = int(rest.split()[0]) * 1024
    return values


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(stage: int, output: Path) -> None:
    """Train on this rank, and let rank 0 write the peaks of all cases."""
    from diablo_ds import adapter, distributed, engine
    from diablo_ds.ds_config import load_ds_config
    from diablo_ds.layers import resolve_delta_path
    from diablo_ds.model import (
        DTYPES,
        build_meta_model,
        install_loss_head,
        load_base,
        recompute_layers,
    )
    from diablo_ds.startup import complete_ds_config, start_engine
    from diablo_ds.train import train_step

    run = RunConfig(micro_batch=1, global_batch=NUM_RANKS)
    device = engine.init_process_group()
    folder = find_model("default")
    shapes = build_meta_model(load_model_config(folder))
    source = DS_CONFIGS / f"zero{stage}.json"
    complete = complete_ds_config(load_ds_config(source), run, shapes, source)
    before = _resident()
    model = load_base(folder, run.precision, complete if stage == 3 else None)
    targets = adapter.select_targets(model, (), model_type=model.config.model_type)
    deltas = adapter.attach(
        model,
        adapter.resolve_num_blocks(targets, run.num_blocks),
        delta_path=resolve_delta_path(run.delta_path, DTYPES[run.precision], 0),
        device=device,
    )
    layers: list[Any] = decoder_layers(model)
    recompute_layers(model, Recomputation(len(layers)), reentrant=False)
    install_loss_head(model, shapes)
    ds_engine, _ = start_engine(model, deltas, run, complete)
    cases = []
    for count in (0, len(layers)):
        for layer in layers:
            layer.gradient_checkpointing = count > 0
        for micro_batch, length in BATCHES:
            for _ in range(STEPS):
                tokens = torch.randint(0, 40_000, (micro_batch, length))
                batch = MicroBatch(tokens, tokens, None, tokens.numel())
                at_start = _resident()
                _reset_peak()
                train_step(ds_engine, deltas, [batch], 1e-4)
            after = _resident()
            cases.append(
                {
                    "recomputed": count,
                    "micro_batch": micro_batch,
                    "length": length,
                    "peak": after["VmHWM"] - before["VmRSS"],
                    "at_start": at_start["VmRSS"] - before["VmRSS"],
                    "shared": after["RssShmem"] - before["RssShmem"],
                }
            )
    if distributed.is_main_process():
        limits = [complete["zero_optimization"].get(key, 0) for key in LIMIT_KEYS]
        output.write_text(json.dumps({"cases": cases, "limits": limits}))


def _start_ranks(stage: int, output: Path) -> dict[str, Any]:
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        # What is freed goes back to the system, so that a peak is what is in use at once.
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "1",
    }
    words = ["--num_accelerators", str(NUM_RANKS), "--module", "benchmarks.plan"]
    command = [str(Path(sys.executable).with_name("deepspeed")), *words]
    subprocess.run(
        [*command, "--measure-stage", str(stage), "--measure-output", str(output)],
        check=True,
        env=environment,
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
    )
    values: dict[str, Any] = json.loads(output.read_text())
    return values


def predict(stage: int, case: Mapping[str, int], limits: Sequence[int]) -> dict[str, int]:
    """Return the plan's bytes by kind for a case."""
    batch, length = case["micro_batch"], case["length"]
    run = RunConfig(micro_batch=batch, global_batch=NUM_RANKS * batch, max_length=length)
    model = measure_model(load_model_config(find_model("default")), run)
    layout = Layout(
        stage=stage, world_size=NUM_RANKS, ranks_per_node=NUM_RANKS, limits=Limits(*limits)
    )
    memory = rank_memory(
        model,
        layout,
        Recomputation(case["recomputed"]),
        batch * length,
        gathers=gathers_per_micro_step(model, layout) if stage == 3 else None,
        bucket_elements=DEFAULT_BUCKET_ELEMENTS,
        num_buckets=1,
        device_type="cpu",
    )
    return dict(memory_dict(memory))


@click.command()
@click.option("--measure-stage", type=int, hidden=True)
@click.option("--measure-output", type=click.Path(path_type=Path), hidden=True)
@click.option("--local-rank", "--local_rank", type=int, hidden=True)
def main(measure_stage: int | None, measure_output: Path | None, local_rank: int | None) -> None:
    """Measure, and write the report."""
    if measure_stage is not None and measure_output is not None:
        measure(measure_stage, measure_output)
        sys.stdout.flush()
        os._exit(0)  # gloo's threads now and then abort an interpreter that is shut down in order
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for stage in STAGES:
            measured = _start_ranks(stage, Path(folder) / "cases.json")
            for case in measured["cases"]:
                planned = predict(stage, case, measured["limits"])
                own = case["peak"] - case["shared"]
                results.append(
                    {"stage": stage, **case, "planned": planned, "ratio": planned["total"] / own}
                )
    figures = {"model": "SmolLM2-135M", "num_blocks": 64, "ranks": NUM_RANKS, "cases": results}
    write_report("plan", "Memory as planned and as measured", figures, _text(results), "cpu")


def _text(results: Sequence[Mapping[str, Any]]) -> str:
    kinds = ("base", "gathered", "activations", "transient")
    rows = [
        (
            f"ZeRO-{r['stage']}",
            "all" if r["recomputed"] else "none",
            f"{r['micro_batch']} x {r['length']}",
            f"{(r['peak'] - r['shared']) / 1e6:,.0f}",
            f"{r['planned']['total'] / 1e6:,.0f}",
            f"{r['ratio']:.3f}",
            *(f"{r['planned'][kind] / 1e6:,.0f}" for kind in kinds),
        )
        for r in results
    ]
    header = ("stage", "recomputed", "micro batch", "measured", "planned", "ratio", *kinds)
    shared = max(r["shared"] for r in results) / 1e6
    worst = max(abs(r["ratio"] - 1) for r in results)
    return (
        "SmolLM2-135M, bf16, 64 blocks, two ranks. *Measured* is the peak of resident memory in a "
        "step, less what was resident before the model was loaded (libraries, process group), and "
        f"less {shared:,.0f} MB of DeepSpeed's own shared buffer for CPUs, which a GPU does not "
        "have. *Planned* is `diablo_ds.planning.memory.rank_memory`; its main kinds follow. All in "
        f"MB (10^6 bytes) of rank 0. The plan is off by at most {worst:.1%}.\n\n"
        + table(header, rows)
    )


if __name__ == "__main__":
    main()
