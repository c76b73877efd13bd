"""Do readers end in a result or an error for the user, whatever a file holds?

    python -m benchmarks.fuzz --minutes 60
    python -m benchmarks.fuzz --minutes 60 --keep FOLDER --report

Every format that the product reads is truncated, has bits flipped and parts replaced; files made by
hand come first. A traceback, a crash, an input that takes two minutes of processor time or more
than 1.5 GiB of memory is a failure, and the exit code is then 1.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import click
import torch

from benchmarks.fuzz.data_targets import data_targets
from benchmarks.fuzz.model_targets import model_targets
from benchmarks.fuzz.run_targets import run_targets
from benchmarks.fuzz.runner import CRASH, ENDLESS, GOOD, MEMORY, REFUSED, TRACEBACK, Outcomes, fuzz
from benchmarks.fuzz.settings_targets import settings_targets
from benchmarks.fuzz.target import Target
from benchmarks.report import table, write_report

_OUTCOMES = (GOOD, REFUSED, TRACEBACK, CRASH, ENDLESS, MEMORY)
_LINE_S = 15.0
"""Seconds between lines of progress."""


def all_targets(folder: Path, *, large: bool = True) -> list[Target]:
    """Return every reader of files.

    Args:
        folder: an empty one, to make valid files in.
        large: whether they also read files that would take much memory.
    """
    return [
        *data_targets(folder, large=large),
        *model_targets(folder),
        *settings_targets(),
        *run_targets(folder),
    ]


def describe(outcomes: Mapping[str, Outcomes]) -> str:
    """Return a table of what came of the inputs, and a sentence on all of them."""
    rows = [
        (
            name,
            f"{found.num_inputs:,}",
            *(f"{found.counts[outcome]:,}" for outcome in _OUTCOMES),
            f"{found.peak_bytes / 1e6:,.0f}",
        )
        for name, found in outcomes.items()
    ]
    sums = {outcome: sum(f.counts[outcome] for f in outcomes.values()) for outcome in _OUTCOMES}
    peak = max(found.peak_bytes for found in outcomes.values())
    text = (
        f"{sum(sums.values()):,} inputs: tracebacks {sums[TRACEBACK]}, crashes {sums[CRASH]}, "
        f"endless {sums[ENDLESS]}, out of bounds {sums[MEMORY]}; largest growth of resident "
        f"memory {peak / 1e6:,.0f} MB."
    )
    return f"{text}\n\n{table(('reader', 'inputs', *_OUTCOMES, 'peak MB'), rows)}"


class _Progress:
    """A line now and then: how many inputs, how many of them ended badly, how long it takes."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _LINE_S

    def __call__(self, outcomes: Mapping[str, Outcomes], left_s: float) -> None:
        if time.monotonic() < self._next:
            return
        self._next += _LINE_S
        num_inputs = sum(found.num_inputs for found in outcomes.values())
        num_bad = sum(found.num_bad for found in outcomes.values())
        text = f"{num_inputs:,} inputs, {num_bad:,} ended badly, {left_s / 60:.1f} min left"
        click.echo(text, err=True)


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.option("--minutes", type=click.FloatRange(min=0), default=1.0, help="For random inputs.")
@click.option("--seed", type=int, default=0, help="What the random inputs follow from.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the files of inputs that fail.",
)
@click.option("--only", default="", help="Readers whose names hold this text.")
@click.option("--report", is_flag=True, help="Write the page in benchmarks/results.")
def main(minutes: float, seed: int, keep: Path | None, only: str, report: bool) -> None:
    """Fuzz every reader of files."""
    logging.disable(logging.ERROR)
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(1)  # children are forked, and threads are not
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        made, inputs = Path(folder, "valid"), Path(folder, "inputs")
        made.mkdir()
        inputs.mkdir()
        targets = [target for target in all_targets(made) if only in target.name]
        told = _Progress()
        outcomes = fuzz(targets, inputs, seed=seed, seconds=60 * minutes, told=told, keep=keep)
    text = describe(outcomes)
    for name, found in outcomes.items():
        for problem in found.problems[:20]:
            click.echo(f"{name}: {problem}", err=True)
    if report:
        figures = {name: dict(found.counts) for name, found in outcomes.items()}
        write_report("fuzz", "Readers of files under fuzzing", {"readers": figures}, text, "cpu")
    else:
        click.echo(text)
    click.echo(f"{time.monotonic() - start:.0f} s")
    if any(found.num_bad for found in outcomes.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
