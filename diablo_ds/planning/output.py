"""A plan's folder: a DeepSpeed config, scripts that start the run, tables and plot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from diablo_ds.config.remote_code import NAME, trusts_code
from diablo_ds.config.run import RunConfig
from diablo_ds.config.words import shell_text, train_words
from diablo_ds.files import owned
from diablo_ds.files.atomic import write_json, write_text
from diablo_ds.planning.candidate import Candidate
from diablo_ds.planning.plan import Planner

DS_CONFIG_FILE, LAUNCH_FILE, SLURM_FILE = "ds_config.json", "launch.sh", "slurm.sh"
PLAN_FILE, TABLE_FILE, PLOT_FILE = "plan.json", "plan.txt", "scaling.png"


def planned_run(candidate: Candidate, model: str) -> RunConfig:
    """Return the run config of a layout, for a model as a run names it."""
    count = candidate.recomputation.num_layers
    changes: dict[str, Any] = {"model": model, "recompute": bool(count)}
    changes[NAME] = trusts_code()
    if 0 < count < candidate.num_layers:
        changes["recomputed_layers"] = count
    return dataclasses.replace(candidate.run_config, **changes)


def commands(candidate: Candidate, model: str, ds_config: Path) -> list[list[str]]:
    """Return the words of `diablo-ds launch` and `diablo-ds slurm` for a layout."""
    cluster = candidate.cluster
    several = ["--hostfile", "hosts"] if cluster.num_nodes > 1 else []
    nodes = ["--nodes", str(cluster.num_nodes)]
    gpus = ["--gpus-per-node", str(cluster.ranks_per_node)]
    of_run = ["--ds-config", str(ds_config), *train_words(planned_run(candidate, model))]
    return [
        ["diablo-ds", "launch", *several, *(nodes if several else []), *gpus, *of_run],
        ["diablo-ds", "slurm", *nodes, *gpus, "--time", "24:00:00", *of_run],
    ]


def write_output(
    folder: Path, planner: Planner, best: Candidate, model: str, table: str, plan: dict[str, Any]
) -> str:
    """Write the best layout's DeepSpeed config, scripts that start it, and the plan itself.

    Returns:
        What was written, and the commands, as lines of text.
    """
    owned.make_folder(folder, "folder of a plan")
    ds_config = (folder / DS_CONFIG_FILE).resolve()
    zero = planner.zero_section(best.variant, best.cluster, best.run_config)
    write_json(ds_config, {"zero_optimization": zero})
    lines = [shell_text(words) for words in commands(best, model, ds_config)]
    for name, line in zip((LAUNCH_FILE, SLURM_FILE), lines, strict=True):
        note = f"# Give --data and --output too: sh {name} --data ... --output ..."
        write_text(folder / name, f'#!/bin/sh\n{note}\nexec {line} "$@"\n')
    write_json(folder / PLAN_FILE, plan)
    write_text(folder / TABLE_FILE, table + "\n")
    return f"Wrote {folder}: {DS_CONFIG_FILE} and more. Start with\n  " + "\nor\n  ".join(lines)
