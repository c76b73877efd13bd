"""What adding the delta to the weight does to the loss: the same run, fused and summed.

    python -m benchmarks.delta_path

The default run for some steps, once per formulation and precision. In fp32 both are equal up to
rounding; in bf16 the summed one rounds W + D to bf16, as full fine-tuning in bf16 does, and the
fused one rounds its output twice. In one product neither is the more exact; this shows a few steps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.plots import plot_lines
from benchmarks.report import table, write_report
from diablo_ds.ranks.free_port import free_port

ROOT = Path(__file__).parents[1]
RUNS = [(path, precision) for precision in ("fp32", "bf16") for path in ("fused", "summed")]


def train(path: str, precision: str, num_steps: int, seed: int) -> list[dict[str, Any]]:
    """Run the default training and return its points."""
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "--ds_config": "ds_configs/zero3.json",
            "--output": f"{folder}/run",
            "--delta-path": path,
            "--precision": precision,
            "--max-steps": str(num_steps),
            "--eval-every": str(num_steps),
            "--save-every": str(num_steps),
            "--seed": str(seed),
        }
        launcher = str(Path(sys.executable).with_name("deepspeed"))
        command = [launcher, "--master_port", str(free_port()), "launch/train.py"]
        command += [word for option in options.items() for word in option]
        done = subprocess.run(command, cwd=ROOT, env=os.environ.copy(), capture_output=True)
        if done.returncode:
            raise RuntimeError(done.stderr.decode()[-3000:])
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@click.command(context_settings={"show_default": True})
@click.option("--num-steps", default=30)
@click.option("--seed", default=0)
def main(num_steps: int, seed: int) -> None:
    """Train four times and compare the losses."""
    runs = {f"{p}, {precision}": train(p, precision, num_steps, seed) for p, precision in RUNS}
    losses = {
        name: {p["step"]: p["loss"] for p in points if "loss" in p} for name, points in runs.items()
    }
    heldout = {
        name: [p["heldout_loss"] for p in points if "heldout_loss" in p][-1]
        for name, points in runs.items()
    }
    reference = losses["fused, fp32"]
    rows = []
    for name, own in losses.items():
        apart = [abs(own[step] - reference[step]) for step in reference]
        last = sum(own[step] for step in sorted(own)[-5:]) / 5
        rows.append([name, f"{last:.4f}", f"{max(apart):.4f}", f"{heldout[name]:.4f}"])
    text = (
        f"The default run (SmolLM2-135M, GSM8K slice, 64 blocks, ZeRO-3, 1 rank), {num_steps} "
        "steps.\n\n"
        + table(
            ["run", "mean loss of the last 5 steps", "largest distance to fused, fp32", "held-out"],
            rows,
        )
    )
    path = write_report(
        "delta-path", "Delta path and loss", {"losses": losses, "heldout": heldout}, text, "cpu"
    )
    plot_lines(path.with_suffix(".png"), {"step": losses}, "loss", log=False)


if __name__ == "__main__":
    main()
