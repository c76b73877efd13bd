"""Steps of the default run with notes of its memory; started by `benchmarks.widths`."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from benchmarks.ranks import rank_main
from diablo_ds.config.choices import DS_CONFIGS
from diablo_ds.config.run import RunConfig
from diablo_ds.training.startup import start_run
from diablo_ds.training.step import train_step


def measure(values: dict[str, Any]) -> dict[str, Any]:
    """Train for a few steps; return what was found after each of them."""
    run_config = RunConfig(
        pad_to_multiple_of=values["multiple"],
        max_steps=values["num_steps"],
        num_blocks="64",
        output=values["output"],
    )
    steps = []
    with contextlib.ExitStack() as resources:
        run = start_run(run_config, DS_CONFIGS / "zero3.json", resources)
        for step in range(run.num_steps):
            batches = list(run.train_batches.step(step))
            processor, wall = time.process_time(), time.perf_counter()
            result = train_step(run.engine, batches, run.run_config.learning_rate)
            steps.append(
                {
                    "loss": result.loss,
                    "processor_s": time.process_time() - processor,
                    "wall_s": time.perf_counter() - wall,
                    "memory_now_bytes": run.engine.memory.now,
                    "memory_bytes": run.engine.memory.peak,
                    "widths": [batch.input_ids.shape[1] for batch in batches],
                    "tokens": result.num_tokens,
                    "places": sum(batch.input_ids.numel() for batch in batches),
                }
            )
    return {"steps": steps}


if __name__ == "__main__":
    rank_main(measure)
