"""What this trainer does on one GPU: ceilings, correctness, whole steps, layers, plan.

    python -m benchmarks.gpu --minutes 8 --output build/gpu
    python -m benchmarks.gpu --output build/gpu --stage layers
    python -m benchmarks.gpu --output build/gpu --report

Weights are random and made on the device, from built-in shapes. Each stage runs in a process of its
own and writes what it finds as JSON lines, case by case; what fails is recorded with its reason,
and the rest goes on in a new process. A second run goes on where the first one ended. Without a
GPU, `--scale tiny` runs all of it on tiny shapes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.gpu.records import Records
from benchmarks.gpu.report import write_gpu_report
from benchmarks.gpu.stages import STAGES, import_libraries, run_stage
from diablo_ds.cli.console import clean_errors


@click.command(context_settings={"show_default": True})
@click.option("--minutes", default=8.0, help="All stages together; a second run goes on.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder of the figures, results.jsonl, and of each stage's log.",
)
@click.option(
    "--stage",
    "stages",
    multiple=True,
    type=click.Choice(list(STAGES)),
    default=tuple(STAGES),
    help="Stages to run.",
)
@click.option("--scale", type=click.Choice(["full", "tiny"]), default="full", help="Of all shapes.")
@click.option(
    "--start-method",
    type=click.Choice(["fork", "spawn"]),
    default="fork",
    help="Of the stages' processes; fork imports libraries once.",
)
@click.option("--retry-failed", is_flag=True, help="Measure what failed once more.")
@click.option("--report", is_flag=True, help="Write the report of what is there; measure nothing.")
def main(
    minutes: float,
    output: Path,
    stages: Sequence[str],
    scale: str,
    start_method: str,
    retry_failed: bool,
    report: bool,
) -> None:
    """Measure this trainer on one GPU, stage by stage."""
    records = Records(output / "results.jsonl")
    if report:
        write_gpu_report(records)
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    deadline = time.monotonic() + 60 * minutes
    output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(output.absolute() / "compiled"))
    if retry_failed:
        records.forget_failed()
    if start_method == "fork":
        import_libraries()
    for stage in stages:
        start = time.monotonic()
        run_stage(stage, records, scale, deadline, start_method)
        ended = records.ended(stage).values()
        failed = [record["case"] for record in ended if record["status"] == "failed"]
        click.echo(
            f"{stage}: {len(ended)} cases, {time.monotonic() - start:.0f} s"
            + (f"; failed: {'; '.join(failed)}" if failed else "")
        )


if __name__ == "__main__":
    with clean_errors():
        main()
