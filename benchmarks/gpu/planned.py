"""What `diablo-ds plan` says of the measured steps, and the shares that would make it say the same.

Needs no GPU: it reads what was measured.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.gpu.models import COMPILED, WORKLOADS
from benchmarks.gpu.records import Records
from benchmarks.report import table
from diablo_ds.config.run import RunConfig
from diablo_ds.planning.candidate import Candidate
from diablo_ds.planning.hardware import DEVICES, GB, Assumptions, ClusterSize
from diablo_ds.planning.plan import Planner

_STAGES = {"step-zero0": 0, "step-zero2": 2, "step-levers": 2, "step-zero3": 3, "slice-zero2": 2}


class Comparison(NamedTuple):
    """A measured step and its plan."""

    name: str
    measured_bytes: int
    planned_bytes: int
    measured_s: float
    planned_s: float
    compute_share: float
    """With which the plan's step takes as long as the measured one; the memory's share stays."""


def comparisons(records: Records, card: str) -> Iterator[Comparison]:
    """Yield a row for each of our own steps that was measured without levers, eager and compiled.

    Args:
        records: what was measured.
        card: a key of `diablo_ds.planning.hardware.DEVICES`.
    """
    for stage, zero in _STAGES.items():
        measured = records.measured(stage)
        for name in ("as it is", COMPILED, "micro batch 1", "recomputed"):
            if name not in measured:
                continue
            figures = measured[name]
            kind = stage.partition("-")[0]
            planned = functools.partial(_plan, card, kind, zero, figures["micro_batch"], name)
            plan = planned(Assumptions())
            yield Comparison(
                f"{stage}, {name}",
                figures["memory_bytes"],
                plan.memory.total,
                figures["step_s"],
                plan.time.total,
                _share(planned, figures["step_s"]),
            )


def plan_table(records: Records, card: str) -> str:
    """Return planned beside measured steps as Markdown; empty where none is.

    Args:
        records: what was measured.
        card: as for `comparisons`, or nothing for one that has no plan.
    """
    if not card:
        return ""
    rows = [
        [
            c.name,
            f"{c.measured_bytes / 1e9:.1f}",
            f"{c.planned_bytes / 1e9:.1f}",
            f"{c.planned_bytes / c.measured_bytes:.3f}",
            f"{c.measured_s * 1e3:.0f}",
            f"{c.planned_s * 1e3:.0f}",
            f"{c.compute_share:.3f}",
        ]
        for c in comparisons(records, card)
    ]
    header = ["step", "peak, GB", "planned, GB", "ratio", "step, ms", "planned, ms", "share"]
    title = "## The plan\n\nShare: the `--compute-share` with which the plan takes as long.\n\n"
    return title + table(header, rows) if rows else ""


def chosen_table(records: Records) -> str:
    """Return what was chosen for cards of several sizes, and what it took, as Markdown."""
    rows = [
        [
            name,
            str(f["micro_batch"]),
            f"{f['planned_layers']}, {f['recomputed_layers']}",
            f"{f['planned_bytes'] / GB:.1f}",
            f"{f['memory_bytes'] / GB:.1f}",
            f"{f['step_s'] * 1e3:.0f}",
            f"{f['tokens_per_s']:,.0f}",
            f"{f['plan_s']:.1f}, {f['trial_s']:.1f}",
        ]
        for name, f in records.measured("chosen").items()
    ]
    header = ["told", "micro batch", "layers recomputed: planned, after the trial", "planned, GB"]
    header += ["peak, GB", "step, ms", "tokens/s", "plan, trial, s"]
    return "## What a run chooses by itself\n\n" + table(header, rows) if rows else ""


def _plan(
    card: str, kind: str, stage: int, micro_batch: int, name: str, assumed: Assumptions
) -> Candidate:
    workload, device = WORKLOADS["full"][kind], DEVICES[card]
    run_config = RunConfig(
        micro_batch=micro_batch,
        global_batch=micro_batch,
        max_steps=1,
        max_length=workload.length,
        precision="bf16",
        compile="on" if name == COMPILED else "off",
    )
    cluster = ClusterSize(
        num_nodes=1,
        ranks_per_node=1,
        memory_bytes=device.memory_gb * GB,
        reserved_bytes=0.0,
        node_memory_bytes=1e12,
        flops=device.tflops * 1e12,
        memory_bandwidth=device.memory_gbs * GB,
        inside_bandwidth=device.inside_gbs * GB,
        between_bandwidth=device.between_gbs * GB,
    )
    wanted = "all" if name == "recomputed" else "none"
    return next(
        c
        for c in _planner(kind, run_config, assumed).candidates(cluster)
        if c.variant.name == f"ZeRO-{stage}" and c.recomputed == wanted
    )


_MODELS: dict[tuple[str, int, str], Planner] = {}


def _planner(kind: str, run_config: RunConfig, assumed: Assumptions) -> Planner:
    """Return a planner that measures each model's sizes once."""
    planner = _MODELS.setdefault(
        (kind, run_config.micro_batch, run_config.compile),
        Planner(WORKLOADS["full"][kind].config(), run_config, assumed),
    )
    planner.assumed = assumed
    return planner


def _share(planned: functools.partial[Candidate], measured_s: float) -> float:
    """Return by bisection the compute share with which a plan takes so many seconds."""
    low, high = 0.05, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        slower = planned(Assumptions(compute_share=middle)).time.total > measured_s
        low, high = (middle, high) if slower else (low, middle)
    return low
