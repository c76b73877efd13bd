"""What is in the folder of an evaluation, as text: models, tasks, answers, scores, what is left."""

from __future__ import annotations

import math
import os
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diablo_ds.config.setting import option_words, settings_of
from diablo_ds.errors import UserError
from diablo_ds.evaluation.folder import Record, load_record
from diablo_ds.evaluation.items import GENERATION
from diablo_ds.evaluation.options import EvaluateOptions
from diablo_ds.evaluation.predictions import complete_rows
from diablo_ds.evaluation.results import Comparison, Results, Score
from diablo_ds.evaluation.statistics import Difference, Estimate, Interval
from diablo_ds.evaluation.tables import describe_units, screen_table
from diablo_ds.files.atomic import read_json
from diablo_ds.files.layout import PREDICTIONS_FILE, REPORT_FILE, RESULTS_FILE
from diablo_ds.files.ownership import living_owner


def describe_evaluation(folder: Path) -> str:
    """Return what an evaluation asked whom, how far it is, and its scores.

    Raises:
        UserError: if its files are damaged.
    """
    record = load_record(folder)
    results = _load_results(folder)
    lines = [
        *_standing(folder, record, results),
        f"  precision    {record.get('precision', 'unknown')}",
        f"  tasks        {', '.join(_task_text(*task) for task in record['tasks'].items())}",
    ]
    if results is not None:
        scores = _scores(results, folder)
        lines += ["", screen_table(scores), "", *filter(None, [describe_units(scores)])]
        if not _is_done(record, results):
            lines.append("These are the scores of the last evaluation here that came to its end.")
        lines.append(f"Report: {folder / REPORT_FILE}")
    return "\n".join([*lines, *_continuation(record, is_done=_is_done(record, results))])


def describe_evaluation_status(folder: Path) -> str:
    """Return how far an evaluation is, and how it is continued.

    Raises:
        UserError: if its files are damaged.
    """
    record, results = load_record(folder), _load_results(folder)
    lines = _standing(folder, record, results)
    if not _is_done(record, results):
        lines += _continuation(record, is_done=False)
    return "\n".join(lines)


def _standing(folder: Path, record: Record, results: Mapping[str, Any] | None) -> list[str]:
    """Return a headline, and how many answers there are of each model to each task."""
    answered, unjudged = _count_answers(folder)
    asked = _asked(record)
    num_left = sum(max(0, n - answered[key]) for key, n in asked.items())
    if _is_done(record, results):
        state = "done"
    elif owner := living_owner(folder):
        state = f"in use by {owner}"
    else:
        state = "not done"
    left = f", {num_left:,} of {sum(asked.values()):,} answers are to come" if num_left else ""
    if left and state == "done":
        left = f" as it was last asked, without {num_left:,} answers of a command before"
    lines, name = [f"Evaluation {folder}: {state}{left}"], ""
    for (model, task), n in asked.items():
        label = "" if model == name else model
        name = model
        known = min(answered[model, task], n)
        text = f"{task}: {known:,} of {n:,} answers"
        if unjudged[model, task]:
            text += f", {unjudged[model, task]:,} programs not run yet"
        lines += [f"  model        {label}"] * bool(label) + [f"    {text}"]
    return lines


def _asked(record: Record) -> dict[tuple[str, str], int]:
    """Return the number of answers that each model is asked for in each task."""
    counts = record.get("answers")
    if not isinstance(counts, dict):
        counts = {}
    return {
        (model, task): n
        for model, by_task in counts.items()
        if isinstance(by_task, dict)
        for task, n in by_task.items()
        if type(n) is int
    }


def _count_answers(folder: Path) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
    """Return the answers by model and task, and those whose programs were not run yet."""
    kinds = ("generation", "choice", "loss")
    is_judged: dict[Any, bool] = {}
    path = folder / PREDICTIONS_FILE
    if path.is_file():
        for key, row, _ in complete_rows(path):  # of a key the last one counts
            if key.kind in kinds:
                is_judged[key] = key.kind != GENERATION or "scores" in row
    answered = Counter((key.model, key.task) for key in is_judged)
    unjudged = Counter((key.model, key.task) for key, judged in is_judged.items() if not judged)
    return answered, unjudged


def load_scores(folder: Path) -> Results | None:
    """Return the scores of an evaluation; None where it has none yet.

    Raises:
        UserError: if its file of results is damaged.
    """
    results = _load_results(folder)
    return None if results is None else _scores(results, folder)


def _load_results(folder: Path) -> dict[str, Any] | None:
    path = folder / RESULTS_FILE
    if not path.is_file():
        return None
    results = read_json(path)
    if not isinstance(results, dict):
        raise UserError(f"{RESULTS_FILE} must be an object; got other content in {path}")
    return results


def _is_done(record: Record, results: Mapping[str, Any] | None) -> bool:
    """Return whether the results are those of what was asked for last."""
    return results is not None and results.get("settings") == record.get("settings")


def _scores(results: Mapping[str, Any], folder: Path) -> Results:
    """Return the scores and comparisons of a file of results."""
    try:
        return Results(
            [
                Score(
                    _text(row["model"]),
                    _text(row["task"]),
                    _text(row["metric"]),
                    Estimate(_number(row["score"]), _count(row["n"]), _interval(row["interval"])),
                    _count(row.get("num_unjudged", 0)),
                )
                for row in results["results"]
            ],
            [
                Comparison(
                    _text(row["task"]),
                    _text(row["metric"]),
                    (_text(row["models"][0]), _text(row["models"][1])),
                    _count(row["n"]),
                    Difference(
                        _number(row["difference"]),
                        _interval(row["interval"]),
                        _number(row["p"]),
                        _text(row["test"]),
                    ),
                )
                for row in results["comparisons"]
            ],
        )
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        raise UserError(
            f"{RESULTS_FILE} must have results and comparisons as this program writes them; got "
            f"other content in {folder / RESULTS_FILE}; the same evaluation again writes it anew"
        ) from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a name must be text")
    return value


def _count(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("a count must be an integer")
    return value


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _interval(value: Any) -> Interval:
    low, high = map(_number, value)
    return Interval(low, high)


def _task_text(name: str, values: Any) -> str:
    version = values.get("version") if isinstance(values, dict) else None
    return f"{name}, version {version}" if version else name


def _continuation(record: Record, *, is_done: bool) -> list[str]:
    """Return how the evaluation is continued, or more is asked."""
    words = command_words(record.get("settings"))
    if not words:
        return [] if is_done else ["Continue: the same command again"]
    place = record.get("working_folder")
    where = f" (in {place})" if isinstance(place, str) and place != os.getcwd() else ""
    what = "More tasks, models or a higher limit" if is_done else "Continue"
    return [f"{what}{where}: diablo-ds evaluate {shlex.join(words)}"]


def command_words(settings: Any) -> list[str]:
    """Return the words of a command line that give the settings of a record.

    Args:
        settings: values by name, as JSON has them; anything else gives none.
    """
    if not isinstance(settings, dict):
        return []
    words: list[str] = []
    for setting in settings_of(EvaluateOptions):
        value = settings.get(setting.name)
        value = tuple(value) if isinstance(value, list) else value
        if value not in (None, (), setting.default):
            words += option_words(setting.name, value)
    return words
