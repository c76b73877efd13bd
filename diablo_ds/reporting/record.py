"""Runs read from their folders, whoever wrote them: settings, starts, curves, how they stand."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import load_recorded
from diablo_ds.config.starts import load_starts
from diablo_ds.errors import UserError
from diablo_ds.files.layout import Kind, RunFolder, kind_of
from diablo_ds.launcher.sweep_report import read_sweep
from diablo_ds.training.metrics_file import read_metrics
from diablo_ds.training.run_numbers import RunNumbers
from diablo_ds.training.standing import Standing, find_standing

T = TypeVar("T")
MAX_METRICS_BYTES = 1 << 28
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
    starts: Sequence[dict[str, Any]] = ()
    points: Sequence[dict[str, float]] = ()
    num_steps: int | None = None
    problem: str = ""
    """Why something could not be read."""
    keeps_best: bool = False
    """Whether the run's adapter is that of the lowest held-out loss."""

    @cached_property
    def numbers(self) -> RunNumbers:
        """What it came to."""
        return RunNumbers.of(self.points)

    @property
    def last_start(self) -> dict[str, Any]:
        """The record of its last start; empty where there is none."""
        return self.starts[-1] if self.starts else {}

    @property
    def adapter_loss(self) -> float | None:
        """The held-out loss of its adapter, or of its last evaluation so far."""
        return self.numbers.best_heldout if self.keeps_best else self.numbers.last_heldout


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
        points=_read(lambda: _read_points(files.metrics), [], problems),
        num_steps=files.num_steps(),
        problem="; ".join(dict.fromkeys(problems)),
        keeps_best=bool(run_config and run_config.keep_best),
    )


def find_runs(root: Path) -> list[RunRecord]:
    """Return the runs in a folder and in those below it, by name.

    Links are not followed, nor is anything looked for inside a run.

    Raises:
        UserError: if there is no such folder, or it holds too many others.
    """
    if not root.is_dir():
        raise UserError(f"folder must be one with runs in it; got {root}, {kind_of(root).value}")
    found = []
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
            found.append(read_run(folder, "" if is_root else str(folder.relative_to(root))))
        else:
            folders[:] = sorted(name for name in folders if not name.startswith("."))
    return found


def read_given(folders: Sequence[Path]) -> list[RunRecord]:
    """Read the runs that a user names; a sweep stands for its runs.

    Raises:
        UserError: if a folder is neither.
    """
    found: list[RunRecord] = []
    for folder in folders:
        kind = kind_of(folder)
        if kind is Kind.SWEEP:
            names = [result.name for result in read_sweep(folder)[0]]
            runs = [
                folder / name for name in names if RunFolder(folder / name).run_config.is_file()
            ]
            found += [read_run(run) for run in runs]
        elif kind is Kind.RUN:
            found.append(read_run(folder))
        else:
            raise UserError(
                f"path must be the folder of a run or a sweep; got {folder}, {kind.value}"
            )
    return _told_apart(found)


def _told_apart(runs: list[RunRecord]) -> list[RunRecord]:
    """Return the runs under names that differ: where they do not, by their paths."""
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else replace(run, name=str(run.folder)) for run in runs
    ]


def _read(read: Callable[[], T], default: T, problems: list[str]) -> T:
    """Return what can be read, or a default, with the reason added to the problems."""
    try:
        return read()
    except (UserError, OSError) as error:
        problems.append(str(error))
        return default


def _read_points(metrics: Path) -> list[dict[str, float]]:
    if metrics.is_file() and metrics.stat().st_size > MAX_METRICS_BYTES:
        raise UserError(
            f"a metrics file must have at most {MAX_METRICS_BYTES:,} bytes to be compared; got "
            f"more in {metrics}"
        )
    return read_metrics(metrics)[0]
