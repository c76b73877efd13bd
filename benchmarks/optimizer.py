"""AdamW over one flat fp32 tensor, PyTorch's kinds and DeepSpeed's: what does an update take?

    python -m benchmarks.optimizer

Under ZeRO a rank's shard of the deltas is one such tensor, on the CPU where it is offloaded.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import torch
from torch import nn

from benchmarks.gpu.ceilings import milliseconds
from benchmarks.report import table, write_report

SIZES = (1_105_920, 71_303_168)
"""Deltas of 64 blocks: of SmolLM2-135M, and of Llama-3-8B."""
_PYTORCH = {
    "PyTorch, tensor by tensor": {"foreach": False},
    "PyTorch, foreach": {"foreach": True},
    "PyTorch, fused": {"fused": True},
}
_UPDATES_PER_ROUND = 5

Update = Callable[[], object]


def updates(size: int, device: str, *, with_deepspeed: bool) -> dict[str, Update]:
    """Return the updates of a tensor of ``size`` elements of random numbers, by kind."""
    found: dict[str, Callable[[list[nn.Parameter]], Any]] = {
        name: partial(torch.optim.AdamW, **options)  # type: ignore[arg-type]
        for name, options in _PYTORCH.items()
    }
    if with_deepspeed:
        from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

        found["DeepSpeed"] = DeepSpeedCPUAdam if device == "cpu" else FusedAdam
    result: dict[str, Update] = {}
    for name, make in found.items():
        flat = nn.Parameter(torch.randn(size, device=device))
        flat.grad = torch.randn_like(flat)
        result[name] = make([flat]).step
    return result


def measure(size: int, device: str, rounds: int, *, with_deepspeed: bool) -> dict[str, list[float]]:
    """Return the milliseconds of an update by kind, one number per round; kinds take turns."""
    kinds = updates(size, device, with_deepspeed=with_deepspeed)
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, update in kinds.items():
            found[name].append(milliseconds(update, _UPDATES_PER_ROUND, warm_up=1))
    return found


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--deepspeed/--no-deepspeed", "with_deepspeed", default=True, show_default=True)
def main(rounds: int, with_deepspeed: bool) -> None:
    """Measure, and write the report."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    figures, rows = {}, []
    for size in SIZES:
        found = measure(size, device, rounds, with_deepspeed=with_deepspeed)
        figures[str(size)] = found
        fused = statistics.median(found["PyTorch, fused"])
        rows += [
            [
                f"{size:,}",
                name,
                f"{statistics.median(times):.2f}",
                f"{min(times):.2f} to {max(times):.2f}",
                f"{statistics.median(times) / fused:.2f}",
            ]
            for name, times in found.items()
        ]
    header = ["elements", "kind", "ms, median of rounds", "least and most", "of fused"]
    text = f"{torch.get_num_threads()} threads, {rounds} rounds.\n\n" + table(header, rows)
    write_report("optimizer", "AdamW over a flat tensor", figures, text, device)


if __name__ == "__main__":
    main()
