"""The evaluations that belong to a run, and their scores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json
from diablo_ds.files.layout import EVALUATION_FILE, RESULTS_FILE
from diablo_ds.reporting.html import table, text

_MOST_NEIGHBOURS = 1000
"""Folders beside a run that are looked at."""


def find_evaluations(run: Path) -> list[Path]:
    """Return the folders of evaluations of a run's adapters: in the run's folder or beside it."""
    run = run.resolve()
    return [folder for folder in _neighbours(run) if _is_of(folder, run)]


def describe_scores(folder: Path) -> str:
    """Return the scores of an evaluation as a table, or why there is none."""
    from diablo_ds.evaluation.description import load_scores  # it needs torch
    from diablo_ds.evaluation.tables import describe_units, interval, number

    try:
        results = load_scores(folder)
    except UserError as error:
        return f'<p class="note">{text(error)}</p>'
    if results is None:
        return '<p class="note">It has no scores yet.</p>'
    rows = []
    for score in results.scores:
        value = number(score.metric, score.estimate.score)
        bounds = interval(score.metric, score.estimate.interval)
        cells = (score.task, score.metric, score.model, value, bounds, f"{score.estimate.n:,}")
        rows.append([text(cell) for cell in cells])
    header = ["task", "metric", "model", "score", "95 % interval", "n"]
    units = describe_units(results)
    note = f'<p class="note">{text(units)}</p>' if units else ""
    return table(header, rows, numbers=(3, 4, 5)) + note


def _neighbours(run: Path) -> Iterator[Path]:
    for root in (run, run.parent):
        try:
            with os.scandir(root) as entries:
                names = sorted(entry.name for entry in entries)[:_MOST_NEIGHBOURS]
        except OSError:
            continue
        yield from (root / name for name in names if (root / name / EVALUATION_FILE).is_file())


def _is_of(folder: Path, run: Path) -> bool:
    """Return whether an evaluation's results name a folder inside the run."""
    if not (folder / RESULTS_FILE).is_file():
        return False
    try:
        record, results = read_json(folder / EVALUATION_FILE), read_json(folder / RESULTS_FILE)
        models: Any = results["run"]["models"].values()
        place = Path(record.get("working_folder") or ".")
        return any((place / str(model)).resolve().is_relative_to(run) for model in models)
    except (KeyError, TypeError, ValueError, AttributeError, OSError, RuntimeError):
        return False
