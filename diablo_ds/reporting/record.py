"""Runs read from their folders, whoever wrote them: settings, starts, curves, how they stand."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import load_recorded
from diablo_ds.config.starts import load_starts
from diablo_ds.errors import UserError
from diablo_ds.files.layout import Kind, RunFolder, kind_of
from diablo_ds.launcher.sweep_report import read_recorded
from diablo_ds.reporting.curves import Chart, Curve, curves_of, in_order
from diablo_ds.training.metrics_file import each_point
from diablo_ds.training.run_numbers import RunNumbers
from diablo_ds.training.standing import Standing, find_standing

T = TypeVar("T")
MAX_METRICS_BYTES = 1 << 29
"""Of one metrics file where several are read: about a million steps."""
MAX_FOLDERS = 100_000
"""Folders that are looked into below one."""


@dataclass(frozen=True)
class RunRecord:
    """A run, as its folder tells."""

    folder: Path
    name: str
    """Among those that it is shown with."""
    standing: Standing
    run_config: RunConfig | None
    """None where it cannot be read."""
    starts: Sequence[dict[str, Any]]
    numbers: RunNumbers
    """What it came to."""
    num_steps: int | None
    problem: str
    """Why something could not be read."""

    @cached_property
    def curves(self) -> dict[Chart, Curve]:
        """Its curves. Read when they are asked for: those of many runs take much memory."""
        return _read(lambda: curves_of(_points(RunFolder(self.folder).metrics)), {}, [])

    @property
    def last_start(self) -> dict[str, Any]:
        """The record of its last start; empty where there is none."""
        return self.starts[-1] if self.starts else {}

    @property
    def adapter_loss(self) -> float | None:
        """The held-out loss of its adapter, or of its last evaluation so far."""
        keeps_best = self.run_config is not None and self.run_config.keep_best
        return self.numbers.best_heldout if keeps_best else self.numbers.last_heldout


def read_run(folder: Path, name: str = "") -> RunRecord:
    """Read a run; what is damaged is named in `RunRecord.problem`.

    Args:
        folder: the run folder.
        name: what to call it; by default the folder's own name.
    """
    files, problems = RunFolder(folder), list[str]()
    run_config = _read(lambda: load_recorded(files.run_config), None, problems)
    return RunRecord(
        folder=folder,
        name=name or folder.resolve().name,
        standing=find_standing(files),
        run_config=run_config,
        starts=_read(lambda: load_starts(files.run_config), [], problems),
        numbers=_read(lambda: RunNumbers.of(_points(files.metrics)), RunNumbers(), problems),
        num_steps=files.num_steps(),
        problem="; ".join(dict.fromkeys(problems)),
    )


def find_runs(root: Path) -> Iterator[RunRecord]:
    """Yield the runs in a folder and in those below it, by name, each read when it is asked for.

    Links are not followed, nor is anything looked for inside a run.

    Raises:
        UserError: if there is no such folder, or it holds too many others.
    """
    if not root.is_dir():
        raise UserError(f"folder must be one with runs in it; got {root}, {kind_of(root).value}")
    for number, (place, folders, _) in enumerate(os.walk(root)):
        if number >= MAX_FOLDERS:
            raise UserError(
                f"at most {MAX_FOLDERS:,} folders may be below the one with runs; got more below "
                f"{root}; name a folder further down"
            )
        folder = Path(place)
        if RunFolder(folder).run_config.is_file():
            folders.clear()
            is_root = folder == root
            yield read_run(folder, "" if is_root else str(folder.relative_to(root)))
        else:
            folders[:] = sorted(name for name in folders if not name.startswith("."))


def read_given(folders: Sequence[Path]) -> list[RunRecord]:
    """Read the runs that a user names; a sweep stands for its runs.

    Raises:
        UserError: if a folder is neither.
    """
    found: list[RunRecord] = []
    for folder in folders:
        kind = kind_of(folder)
        if kind is Kind.SWEEP:
            runs = [folder / result.name for result in read_recorded(folder)[0]]
            found += [read_run(run) for run in runs if RunFolder(run).run_config.is_file()]
        elif kind is Kind.RUN:
            found.append(read_run(folder))
        else:
            raise UserError(
                f"path must be the folder of a run or a sweep; got {folder}, {kind.value}"
            )
    return _told_apart(found)


def known_charts(runs: Sequence[RunRecord]) -> list[tuple[Chart, list[tuple[RunRecord, Curve]]]]:
    """Return the charts for which some run has values, with the curves of these runs."""
    charts = in_order(chart for run in runs for chart in run.curves)
    return [
        (chart, [(run, run.curves[chart]) for run in runs if chart in run.curves])
        for chart in charts
    ]


def _told_apart(runs: list[RunRecord]) -> list[RunRecord]:
    """Return the runs under names that differ: where they do not, by their paths."""
    counts = Counter(run.name for run in runs)
    return [run if counts[run.name] == 1 else replace(run, name=str(run.folder)) for run in runs]


def _read(read: Callable[[], T], default: T, problems: list[str]) -> T:
    """Return what can be read, or a default, with the reason added to the problems."""
    try:
        return read()
    except (UserError, OSError) as error:
        problems.append(str(error))
        return default


def _points(metrics: Path) -> Iterator[dict[str, float]]:
    if metrics.is_file() and metrics.stat().st_size > MAX_METRICS_BYTES:
        raise UserError(
            f"a metrics file must have at most {MAX_METRICS_BYTES:,} bytes to be compared; got "
            f"more in {metrics}"
        )
    return each_point(metrics)
