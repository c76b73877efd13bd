"""What all monitoring costs of a step, in processor time.

    python -m benchmarks.monitoring --output FILE
    python -m benchmarks.monitoring --output FILE --report

A rank under a guard, as a launcher starts it, takes steps in turns: one with everything on
(metrics file, TensorBoard, a tracker, the live line, counting of network bytes, beats for the
guard's status files) and one with everything off. What an evaluation does for the page alone, the
deltas' heat map and answers to ten prompts, is measured apart. Each model is a line of the output
file.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.json_lines import append_line, read_lines
from benchmarks.report import table, write_report
from diablo_ds.launcher.guard import Guard
from diablo_ds.ranks.live_line import TERMINAL

TINY, SMOLLM2 = "tiny", "SmolLM2-135M"
_EVALUATIONS = 4
"""In a run, by default."""


def _measure(model: str, num_steps: int, num_prompts: int, tracker: str) -> dict[str, Any]:
    """Run the rank under a guard; return what both found."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings: dict[str, Any] = {
            "output": str(folder / "run"),
            "max_steps": num_steps,
            "sample_prompts": num_prompts,
            "report_to": [tracker],
            "num_blocks": "64" if model == SMOLLM2 else "4",
            "precision": "bf16" if model == SMOLLM2 else "fp32",
        }
        if model == TINY:
            settings |= {
                "model": str(folder / "model"),
                "max_length": 64,
                "overlong": "cut-completion",
            }
        environment = os.environ | {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            TERMINAL: "-1",
        }
        (folder / "logs").mkdir(mode=0o700)
        guard, result = Guard(environment, folder / "logs"), folder / "result.json"
        start = time.process_time()
        words = ["-m", "benchmarks.monitoring_steps", json.dumps(settings), str(result)]
        if guard.run([sys.executable, *words]):
            raise SystemExit((folder / "logs" / "rank-00000.log").read_text()[-5000:])
        found: dict[str, Any] = json.loads(result.read_text())
        return {"model": model, "guard_s": time.process_time() - start, "steps": num_steps, **found}


@click.command(context_settings={"show_default": True})
@click.option("--output", required=True, type=click.Path(path_type=Path), help="JSON lines.")
@click.option("--model", "models", multiple=True, type=click.Choice([TINY, SMOLLM2]))
@click.option("--steps", default=12, help="Steps of SmolLM2, half of them with monitoring.")
@click.option("--tiny-steps", default=404, help="Steps of the tiny model.")
@click.option("--prompts", default=10, help="Held-out prompts that are answered; 0 for none.")
@click.option("--tracker", default="wandb", help="The tracker beside TensorBoard.")
@click.option("--report", "is_report", is_flag=True, help="Write the page of what is known.")
def main(
    output: Path,
    models: tuple[str, ...],
    steps: int,
    tiny_steps: int,
    prompts: int,
    tracker: str,
    *,
    is_report: bool,
) -> None:
    """Measure the models, or report what is known of them."""
    for model in () if is_report else models or (TINY, SMOLLM2):
        count = steps if model == SMOLLM2 else tiny_steps
        found = _measure(model, count, prompts, tracker)
        append_line(output, found)
    if is_report:
        _report(read_lines(output), tracker)


def _report(found: list[dict[str, Any]], tracker: str) -> None:
    rows, apart = [], []
    for line in found:
        step = statistics.median(line["without_s"])
        added = statistics.median(line["with_all_s"]) - step
        rows.append(
            [
                line["model"],
                f"{step * 1e3:,.1f}",
                f"{added * 1e3:+,.2f}",
                f"{added / step:+.2%}",
                f"{line['reports_s'] * 1e3:.2f}",
                f"{line['reports_s'] / step:.2%}",
                f"{line['draw_s'] * 1e3:.2f}",
                f"{line['trackers_s'] * 1e3:.2f}",
                f"{line['guard_s'] / line['steps'] * 1e3:.2f}",
            ]
        )
        once = line["heat_map_s"] + (line["samples_s"] or 0.0)
        apart.append(
            [
                line["model"],
                f"{line['first_norms_s'] * 1e3:,.1f}",
                f"{line['heat_map_s'] * 1e3:,.1f}",
                "not run" if line["samples_s"] is None else f"{line['samples_s'] * 1e3:,.1f}",
                f"{once * _EVALUATIONS / (step * 1000):.2%}",
            ]
        )
    text = (
        "Processor time in ms. A step is the median of those with everything off, on one thread; "
        "added is the median of those with everything on, less that; reporting is the part of it "
        f"in the metrics file, TensorBoard, the hand-over to {tracker} and the terminal's line. "
        "Beside it: a redraw of the line, which a thread does once a second; the processes of "
        f"{tracker} and of the guard, per step.\n\n"
        + table(
            [
                "model",
                "step",
                "added",
                "share",
                "reporting",
                "share",
                "redraw",
                f"{tracker}'s processes",
                "guard",
            ],
            rows,
        )
        + "\n\nAt each evaluation, in ms, and what four of them are of a run of 1,000 steps:\n\n"
        + table(["model", "norms of the base, once", "heat map", "ten answers", "share"], apart)
    )
    write_report("monitoring", "What monitoring costs of a step", {"models": found}, text, "cpu")


if __name__ == "__main__":
    main()
