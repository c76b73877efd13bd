"""What an evaluation leaves in its folder: results.json, report.md, charts and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diablo_ds import __version__
from diablo_ds.evaluation.charts import (
    SCORES_PLOT,
    TRADE_OFF_PLOT,
    draw_charts,
    text_chart,
)
from diablo_ds.evaluation.inputs import TaskInput
from diablo_ds.evaluation.items import LOSS
from diablo_ds.evaluation.results import Results
from diablo_ds.evaluation.tables import (
    NATURAL,
    describe_units,
    markdown_comparisons,
    markdown_scores,
    refusal_table,
    screen_table,
)
from diablo_ds.files import owned
from diablo_ds.files.atomic import write_json, write_text
from diablo_ds.files.layout import (
    PREDICTIONS_FILE,
    REPORT_FILE,
    RESULTS_FILE,
    TENSORBOARD_FOLDER,
    step_of,
)
from diablo_ds.ranks.software import installed_versions
from diablo_ds.ranks.tensorboard import TensorBoard

_NO_CHART = "No chart was drawn, as matplotlib is missing: pip install matplotlib."


def report(
    folder: Path,
    results: Results,
    inputs: Sequence[TaskInput],
    models: Sequence[str],
    settings: Mapping[str, Any],
    run: Mapping[str, Any],
) -> str:
    """Write all that an evaluation leaves but the predictions; return what a person is told.

    Args:
        folder: the output folder.
        results: the scores.
        inputs: the tasks.
        models: names of the models.
        settings: the options.
        run: what was chosen: precision, placement, templates, and the folders of the models.

    Raises:
        OSError: if a file cannot be written.
    """
    write_json(folder / RESULTS_FILE, _as_json(results, inputs, settings, run))
    for name in (SCORES_PLOT, TRADE_OFF_PLOT):  # of the scores before
        (folder / name).unlink(missing_ok=True)
    charts = draw_charts(results, models, folder)
    write_text(folder / REPORT_FILE, _markdown(results, inputs, settings, run, charts))
    _write_tensorboard(folder, results, run)
    lines = [screen_table(results)]
    if table := refusal_table(results):
        lines += ["", table]
    num_cut = sum(len(ids) for tasks in results.truncated.values() for ids in tasks.values())
    if num_cut:
        lines += [
            "",
            f"{num_cut:,} prompts or texts were cut: {RESULTS_FILE} lists them as truncated.",
        ]
    lines += [
        "",
        *filter(None, [describe_units(results)]),
        f"  report       {folder / REPORT_FILE}",
        f"  results      {folder / RESULTS_FILE}",
        f"  predictions  {folder / PREDICTIONS_FILE}",
        f"  TensorBoard  {folder / TENSORBOARD_FOLDER}",
    ]
    return "\n".join(lines if charts else [*lines, _NO_CHART])


def _as_json(
    results: Results,
    inputs: Sequence[TaskInput],
    settings: Mapping[str, Any],
    run: Mapping[str, Any],
) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for given in inputs:
        rows = [score.estimate.n for score in results.scores if score.task == given.name]
        num_rows = max(rows, default=0) if LOSS in given.asks else len(given.questions)
        data[given.name] = {"path": str(given.path), "sha256": given.sha256, "rows": num_rows}
    return {
        "results": [score.as_json() for score in results.scores],
        "comparisons": [found.as_json() for found in results.comparisons],
        "settings": dict(settings),
        "run": dict(run),
        "versions": {"diablo-ds": __version__, **installed_versions()},
        "data": data,
        "tasks": {given.name: given.task.version for given in inputs},
        "truncated": {
            model: {task: {"count": len(ids), "ids": ids} for task, ids in tasks.items()}
            for model, tasks in results.truncated.items()
        },
    }


def _markdown(
    results: Results,
    inputs: Sequence[TaskInput],
    settings: Mapping[str, Any],
    run: Mapping[str, Any],
    charts: Sequence[str],
) -> str:
    units = "Intervals are of 95 %."
    if any(score.metric not in NATURAL for score in results.scores):
        units = "Shares are in percent, intervals of 95 %."
    parts = ["# Evaluation", units, markdown_scores(results)]
    if SCORES_PLOT in charts:
        parts.append(f"![Scores with their intervals]({SCORES_PLOT})")
    elif chart := text_chart(results):
        parts.append(f"```\n{chart}\n```\n\n{_NO_CHART}")
    if results.comparisons:
        parts += ["## Differences on the same questions", markdown_comparisons(results)]
    if table := refusal_table(results):
        parts += ["## Refusals", f"```\n{table}\n```"]
        if TRADE_OFF_PLOT in charts:
            parts.append(f"![Refusals of harmful against harmless prompts]({TRADE_OFF_PLOT})")
    if results.truncated:
        lines = [
            f"- {model}, {task}: {len(ids)}: {', '.join(ids[:20])}{', ...' * (len(ids) > 20)}"
            for model, tasks in results.truncated.items()
            for task, ids in tasks.items()
        ]
        parts += ["## Prompts that were too long, and cut", "\n".join(lines)]
    data = [f"- {g.name}, version {g.task.version}: `{g.path}`, {g.sha256[:16]}" for g in inputs]
    parts += [
        "## Data",
        "\n".join(data),
        "## Settings",
        f"```json\n{json.dumps({**run, 'settings': settings}, indent=2, ensure_ascii=False)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _write_tensorboard(folder: Path, results: Results, run: Mapping[str, Any]) -> None:
    """Write the scores anew, a run of TensorBoard for each model, and the tables as text."""
    root = folder / TENSORBOARD_FOLDER
    owned.remove_own(root)
    for model in dict.fromkeys(score.model for score in results.scores):
        step = max(0, step_of(Path(run["models"][model])))
        scores = {
            f"scores/{score.task.replace(':', '-')}/{score.metric}": score.estimate.score
            for score in results.scores
            if score.model == model and math.isfinite(score.estimate.score)
        }
        with contextlib.closing(TensorBoard(root / model.replace("/", "-"))) as board:
            board.scalars(step, scores)
    with contextlib.closing(TensorBoard(root)) as board:
        board.text(0, "scores", markdown_scores(results))
        if results.comparisons:
            board.text(0, "differences", markdown_comparisons(results))
