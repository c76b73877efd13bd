"""What a plan writes is what the real commands take."""

from __future__ import annotations

import subprocess

import pytest

from tests.e2e.commands import ROOT, environment
from tests.forked import diablo_ds
from tests.tiny import save_model, write_pairs

pytestmark = pytest.mark.e2e


def test_a_plan_for_a_folder_starts_a_run(tmp_path):
    model = save_model(tmp_path / "model")
    data = write_pairs(tmp_path / "pairs.jsonl")
    folder = tmp_path / "plan"
    options = ("--gpus-per-node", 2, "--gpu", "a10g", "--max-length", 128, "--micro-batch", 2)
    planned = diablo_ds("plan", "--model", model, "--num-blocks", 4, *options, "--output", folder)
    assert "<- best" in planned.stdout

    # As a single process is half as many ranks, the global batch is given again.
    run = ("--data", data, "--output", tmp_path / "run")
    dry = diablo_ds(
        "train",
        "--dry-run",
        "--ds-config",
        folder / "ds_config.json",
        "--model",
        model,
        "--num-blocks",
        4,
        "--global-batch",
        4,
        *run,
    )
    assert "Placement, ZeRO stage" in dry.stdout
    for script, wanted in (("launch.sh", "--num_gpus 2"), ("slurm.sh", "--gpus-per-node=2")):
        result = subprocess.run(
            ["sh", str(folder / script), "--dry-run", *map(str, run)],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert wanted in result.stdout
        assert str(folder / "ds_config.json") in result.stdout
