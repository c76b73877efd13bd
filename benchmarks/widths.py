"""Whether memory on a CPU grows with the widths of micro batches, and what each remedy costs.

    python -m benchmarks.widths --output FILE
    python -m benchmarks.widths --output FILE --report

Each case trains the default model on the default data for some steps in a process of its own, as
`diablo-ds train` does, and notes after each step the resident memory, its peak so far, and the
processor time. Cases differ in the multiple of tokens to which micro batches are padded, and in
what glibc's allocator does with freed memory. Every case is a line of the output file, and is not
measured again.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks.plots import plot_lines
from benchmarks.ranks import run_ranks
from benchmarks.report import table, write_report
from diablo_ds.files.owned import append_to_own_file


class Case(NamedTuple):
    """What is varied."""

    multiple: int
    """Tokens to a multiple of which micro batches are padded."""
    allocator: str
    """Name of one of `ALLOCATORS`."""


ALLOCATORS: dict[str, dict[str, str]] = {
    "glibc's defaults": {},
    "blocks of 64 KiB and more given back": {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    },
    "blocks of 1 MiB and more given back": {
        "MALLOC_MMAP_THRESHOLD_": "1048576",
        "MALLOC_TRIM_THRESHOLD_": "1048576",
    },
}
_PLAIN, _SMALL, _LARGE = ALLOCATORS
CASES = [
    Case(8, _PLAIN),
    Case(32, _PLAIN),
    Case(64, _PLAIN),
    Case(128, _PLAIN),
    Case(8, _LARGE),
    Case(64, _LARGE),
    Case(64, _SMALL),
]


def _known(path: Path) -> dict[Case, dict[str, Any]]:
    lines = path.read_text().splitlines() if path.is_file() else []
    found = map(json.loads, lines)
    return {Case(line["multiple"], line["allocator"]): line for line in found}


@click.command(context_settings={"show_default": True})
@click.option("--output", required=True, type=click.Path(path_type=Path), help="JSON lines.")
@click.option("--steps", default=10, help="Steps of each case.")
@click.option("--case", "numbers", multiple=True, type=int, help="Number of a case, from 0; all.")
@click.option("--report", "is_report", is_flag=True, help="Write the page of what is known.")
def main(output: Path, steps: int, numbers: tuple[int, ...], *, is_report: bool) -> None:
    """Measure the cases that are not known yet."""
    for number, case in enumerate([] if is_report else CASES):
        if case in _known(output) or (numbers and number not in numbers):
            continue
        with tempfile.TemporaryDirectory() as folder:
            settings = {**case._asdict(), "num_steps": steps, "output": f"{folder}/run"}
            (found,) = run_ranks(
                "benchmarks.width_steps",
                settings,
                1,
                environment=ALLOCATORS[case.allocator] | {"OMP_NUM_THREADS": "1"},
                timeout_s=7200,
            )
        line = json.dumps({**case._asdict(), **found})
        with append_to_own_file(output) as file:
            file.write(f"{line}\n".encode())
    if is_report:
        _report(_known(output))


def _report(found: dict[Case, dict[str, Any]]) -> None:
    rows: list[list[str]] = []
    lines: dict[str, dict[float, float]] = {}
    base = found[CASES[0]]["steps"]
    for case, line in found.items():
        steps = line["steps"]
        name = str(case.multiple) + ("" if case.allocator == _PLAIN else ", given back")
        lines[name] = {n + 1: step["memory_now_bytes"] / 1e9 for n, step in enumerate(steps)}
        widths = {width for step in steps for width in step["widths"]}
        ratios = [s["processor_s"] / b["processor_s"] for s, b in zip(steps, base, strict=True)]
        padding = 1 - sum(s["tokens"] for s in steps) / sum(s["places"] for s in steps)
        rows.append(
            [
                str(case.multiple),
                case.allocator,
                str(len(widths)),
                f"{padding:.1%}",
                f"{steps[0]['memory_now_bytes'] / 1e9:.2f}",
                f"{steps[-1]['memory_now_bytes'] / 1e9:.2f}",
                f"{steps[-1]['memory_bytes'] / 1e9:.2f}",
                f"{statistics.median(s['processor_s'] for s in steps[1:]):.2f}",
                f"{statistics.median(ratios[1:]):.3f}",
                f"{steps[-1]['loss']:.4f}",
            ]
        )
    header = [
        "multiple of",
        "allocator",
        "widths",
        "padding",
        "after step 1, GB",
        "at the end, GB",
        "peak, GB",
        "processor s per step",
        "ratio",
        "last loss",
    ]
    text = (
        f"SmolLM2-135M on the default data, ZeRO-3, one rank, {len(base)} steps of 8 examples in "
        "micro batches of 4, without evaluation, on one thread. Memory is resident, "
        "libraries included; the ratio is that of each step's processor time to the first case's, "
        "its median. The machine was busy with other work, hence processor time in place of "
        "rates.\n\n" + table(header, rows)
    )
    path = write_report(
        "widths", "Memory by the widths of batches", {"cases": list(found.values())}, text, "cpu"
    )
    plot_lines(path.with_suffix(".png"), {"step": lines}, "resident memory (GB)", log=False)


if __name__ == "__main__":
    main()
